"""The rows of a file on disk, so that files of any size are imported in bounded memory."""

import pickle
import sqlite3
from collections.abc import Iterable, Iterator

from enrollments.exchange.base import Format
from enrollments.exchange.reader import ParsedRow, RejectedRow


class StagingTable:
    """A temporary SQLite database with the rows of one file.

    Raises sqlite3.Error if the disk is full.
    """

    def __init__(self) -> None:
        # An empty name makes a temporary file that SQLite deletes with the connection.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(
            """
            PRAGMA journal_mode = OFF;
            CREATE TABLE staged (
                line_number INTEGER PRIMARY KEY, slug TEXT, username TEXT, record_key TEXT,
                status TEXT, pickled_row BLOB
            );
            CREATE TABLE created (
                kind TEXT, name TEXT, PRIMARY KEY (kind, name)
            ) WITHOUT ROWID;
            """
        )

    def close(self) -> None:
        self._db.close()

    def add(self, rows: Iterable[ParsedRow]) -> int:
        """Add rows and return their number."""
        self._db.execute("BEGIN")
        added = self._db.executemany(
            "INSERT INTO staged VALUES (?, ?, ?, ?, ?, ?)", map(_to_columns, rows)
        )
        self._db.execute("COMMIT")
        return added.rowcount

    def remove_duplicates(self, format: Format) -> Iterator[RejectedRow]:
        """Remove and yield the rows that the format rejects as duplicates of earlier rows."""
        if format.duplicate_message is None:
            return
        self._db.execute(
            """
            CREATE TEMPORARY TABLE duplicate AS SELECT line_number, first_line FROM (
                SELECT
                    line_number,
                    FIRST_VALUE(line_number) OVER same_key AS first_line,
                    slug = FIRST_VALUE(slug) OVER same_key
                    AND username = FIRST_VALUE(username) OVER same_key
                    AND status = FIRST_VALUE(status) OVER same_key AS is_identical
                FROM staged WINDOW same_key AS (PARTITION BY record_key ORDER BY line_number)
            ) WHERE line_number > first_line AND NOT (is_identical AND ?)
            """,
            [format.accepts_identical_duplicates],
        )
        duplicates = self._db.execute(
            "SELECT pickled_row, first_line FROM staged NATURAL JOIN duplicate ORDER BY line_number"
        )
        for pickled_row, first_line in duplicates:
            row = pickle.loads(pickled_row)
            reason = format.duplicate_message.format(first_line=first_line, **row.record._asdict())
            yield RejectedRow(row.line_number, reason, row.values)
        self._db.execute(
            "DELETE FROM staged WHERE line_number IN (SELECT line_number FROM duplicate)"
        )

    def effective_rows(self) -> Iterator[ParsedRow]:
        """Yield one row per student and course, ordered by course.

        Only the last row of each record_key matters. If a student then has several rows in a
        course, an active row takes precedence over a completed one, and that over a withdrawn
        one. Withdrawals come first, because they free seats. Apart from that, students are in
        the order of the file.
        """
        rows = self._db.execute(
            """
            WITH latest AS (
                SELECT
                    line_number, slug, username, status,
                    ROW_NUMBER() OVER (PARTITION BY record_key ORDER BY line_number DESC) AS age,
                    MIN(line_number) OVER (PARTITION BY slug, username) AS first_line
                FROM staged
            ), ranked AS (
                SELECT
                    line_number, slug, first_line, status = 'withdrawn' AS is_withdrawal,
                    -- The statuses are in order of precedence if sorted by the alphabet.
                    ROW_NUMBER() OVER (
                        PARTITION BY slug, username ORDER BY status, line_number
                    ) AS precedence
                FROM latest WHERE age = 1
            )
            SELECT pickled_row FROM ranked JOIN staged USING (line_number) WHERE precedence = 1
            ORDER BY ranked.slug, is_withdrawal DESC, first_line
            """
        )
        return (pickle.loads(pickled_row) for (pickled_row,) in rows)

    def record_created(self, created: Iterable[tuple[str, str]]) -> None:
        """Record the kind and name of created objects. A dry run creates some repeatedly."""
        self._db.executemany("INSERT OR IGNORE INTO created VALUES (?, ?)", created)

    def count_created(self, kind: str) -> int:
        """Return the number of different objects of a kind that were created."""
        ((count,),) = self._db.execute("SELECT COUNT(*) FROM created WHERE kind = ?", [kind])
        return count


def _to_columns(row: ParsedRow) -> tuple[int, str, str, str, str, bytes]:
    record = row.record
    columns = row.line_number, row.slug, record.username, record.record_key, record.status
    return *columns, pickle.dumps(row)
