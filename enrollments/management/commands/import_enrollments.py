import csv
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from tqdm import tqdm

from courses.management.base import AppCommand
from enrollments.exchange.importer import Summary, import_file
from enrollments.exchange.reader import Refused, UnreadableFile, enrollment_file
from enrollments.management.starts import add_start_argument, first_days


class Command(AppCommand):
    help = (
        "Imports enrollments from a Canvas or OneRoster enrollments.csv, or from the Open "
        "University's studentRegistration.csv: makes courses and students as needed, sets each "
        "enrollment to what the file says, and leaves alone what the file lacks. Run again, it "
        "changes nothing. Exit status: 0 all rows are applied, 1 some were refused, 2 the file "
        "can't be read, or something broke off: what is in stays, and the next run does the rest."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "file",
            metavar="FILE",
            type=Path,
            help="as it is, or packed with gzip, bzip2, xz or zip; - is standard input",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would be done, and do nothing"
        )
        parser.add_argument(
            "--existing-only",
            action="store_true",
            help="refuse rows that name courses or users that aren't there, and make none",
        )
        parser.add_argument(
            "--report",
            metavar="CSV",
            type=Path,
            help="write the refused rows there, with line and reason, instead of telling each",
        )
        parser.add_argument(
            "--encoding", help="cp1252, for instance (default: UTF-8, or UTF-16 with its mark)"
        )
        add_start_argument(parser)

    def handle(
        self,
        *,
        file: Path,
        dry_run: bool,
        existing_only: bool,
        report: Path | None,
        encoding: str | None,
        starts: list[str],
        verbosity: int,
        **options: Any,
    ) -> None:
        days = first_days(starts)
        self._require_encoding(encoding)
        try:
            with (
                enrollment_file(path=file, encoding=encoding, starts=days) as opened,
                self._refused(report, opened.header) as refuse,
                self.progress(total=None, unit="row") as bar,
            ):
                summary = import_file(
                    file=opened,
                    refuse=refuse,
                    actor=self.actor_name(),
                    dry_run=dry_run,
                    existing_only=existing_only,
                    expect=bar.reset,
                    on_progress=bar.update,
                )
        except UnreadableFile as error:
            raise self.usage_error(str(error)) from error
        except sqlite3.Error as error:
            raise self.usage_error(
                f"The rows have no room in a temporary file ({error}): make room, or name "
                "another folder in SQLITE_TMPDIR, and call again."
            ) from error
        if verbosity:
            self.stdout.write(self._told(summary, dry_run=dry_run))
        if summary.rejected:
            sys.exit(1)

    @contextmanager
    def _refused(
        self, report: Path | None, header: list[str]
    ) -> Iterator[Callable[[Refused], object]]:
        if report is None:
            yield self._complain
            return
        # Written aside and put in place at the end: it may be the very file that is read.
        with self.output(report) as file:
            rows = csv.writer(file)
            rows.writerow(["line", "reason", *header])
            yield lambda row: rows.writerow([row.number, row.reason, *row.values])

    def _complain(self, refused: Refused) -> None:
        with tqdm.external_write_mode():
            self.stderr.write(str(refused))

    def _require_encoding(self, encoding: str | None) -> None:
        try:
            "".encode(encoding or "utf-8")
        except LookupError:
            raise self.usage_error(
                f"--encoding takes a name like cp1252, not {encoding!r}."
            ) from None

    def _told(self, done: Summary, *, dry_run: bool) -> str:
        parts = [
            f"{done.courses_made} courses and {done.students_made} students made",
            f"{done.created} enrollments created",
            f"{done.reenrolled} taken up again",
            f"{done.withdrawn} withdrawn",
            f"{done.updated} updated",
            f"{done.unchanged} unchanged",
            f"{done.passed_over} passed over",
            f"{done.rejected} refused",
        ]
        would = "Dry run, nothing is changed. It would be: " if dry_run else ""
        return f"{would}{done.rows} rows: {', '.join(parts)}."
