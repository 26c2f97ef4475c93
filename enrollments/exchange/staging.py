"""The rows of a file on disk, so that files of any size are imported in bounded memory."""

import pickle
import sqlite3
from collections.abc import Iterable, Iterator

from enrollments.exchange.reader import ParsedRow


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
                line_number INTEGER PRIMARY KEY, course TEXT, username TEXT, record_key TEXT,
                status TEXT, pickled_row BLOB, UNIQUE (course, username, record_key)
            );
            CREATE TABLE new_student (username TEXT PRIMARY KEY) WITHOUT ROWID;
            """
        )

    def close(self) -> None:
        self._db.close()

    def add(self, rows: Iterable[ParsedRow]) -> int:
        """Add rows and return their number.

        If a record appears again, its last row is used, in the place of its first row.
        """
        self._db.execute("BEGIN")
        added = self._db.executemany(
            """
            INSERT INTO staged VALUES (?, ?, ?, ?, ?, ?)
            ON CONFLICT (course, username, record_key)
            DO UPDATE SET status = excluded.status, pickled_row = excluded.pickled_row
            """,
            map(_to_columns, rows),
        )
        self._db.execute("COMMIT")
        return added.rowcount

    def effective_rows(self) -> Iterator[ParsedRow]:
        """Yield one row per student and course, ordered by course.

        If a student has several records in a course, an active one takes precedence over a
        completed one, and that over a withdrawn one. Withdrawals come first, because they free
        seats. Apart from that, students are in the order of the file.
        """
        rows = self._db.execute(
            """
            SELECT pickled_row FROM staged JOIN (
                SELECT line_number, ROW_NUMBER() OVER (
                    -- The statuses are in order of precedence if sorted by the alphabet.
                    PARTITION BY course, username ORDER BY status, line_number
                ) AS precedence
                FROM staged
            ) USING (line_number)
            WHERE precedence = 1
            ORDER BY course, status = 'withdrawn' DESC, line_number
            """
        )
        return (pickle.loads(pickled_row) for (pickled_row,) in rows)

    def record_new_students(self, usernames: Iterable[str]) -> None:
        """Record students who were created. A dry run creates a student again in each course."""
        rows = ((username,) for username in usernames)
        self._db.executemany("INSERT OR IGNORE INTO new_student VALUES (?)", rows)

    def count_new_students(self) -> int:
        ((count,),) = self._db.execute("SELECT COUNT(*) FROM new_student")
        return count


def _to_columns(row: ParsedRow) -> tuple[int, str, str, str, str, bytes]:
    record = row.record
    columns = row.line_number, record.course_key, record.username, record.record_key, record.status
    return *columns, pickle.dumps(row)
