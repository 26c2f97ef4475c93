import sys
from datetime import date
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from tqdm import tqdm

from courses.management.one_line import OneLineErrorCommand
from enrollments.importing import (
    BadLine,
    Summary,
    UnreadableFile,
    import_registrations,
    read_registrations,
)


class Command(OneLineErrorCommand):
    help = (
        "Imports registrations from the Open University's studentRegistration.csv: makes "
        "courses and students as needed, sets each enrolment to what the file says, and "
        "leaves alone what the file lacks. Run again, it changes nothing. Exit status: 0 all "
        "lines are in, 1 some were passed over, 2 the file can't be read."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path)
        parser.add_argument(
            "--start",
            action="append",
            default=[],
            dest="starts",
            metavar="PRESENTATION=YYYY-MM-DD",
            help="first day of a presentation (default: October 1 of the year for J, "
            "February 1 for B); may be repeated",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would be done, and do nothing"
        )

    def handle(
        self, *, file: Path, starts: list[str], dry_run: bool, verbosity: int, **options: Any
    ) -> None:
        first_days = dict(self._start(given) for given in starts)
        try:
            # Read once: it may be a pipe, or change meanwhile.
            lines = list(read_registrations(path=file, starts=first_days))
        except UnreadableFile as error:
            raise self.bad_input(str(error)) from error
        with self.progress(total=len(lines), unit="line") as bar:
            summary = import_registrations(
                lines=lines, dry_run=dry_run, complain=self._complain, looked_at=bar.update
            )
        if verbosity:
            self.stdout.write(self._told(summary, dry_run=dry_run))
        if summary.bad or summary.refused:
            sys.exit(1)

    def _complain(self, bad: BadLine) -> None:
        with tqdm.external_write_mode():
            self.stderr.write(str(bad))

    def _start(self, given: str) -> tuple[str, date]:
        presentation, _, day = given.partition("=")
        try:
            return presentation, date.fromisoformat(day)
        except ValueError:
            raise self.bad_input(f"--start takes PRESENTATION=YYYY-MM-DD, not {given!r}.") from None

    def _told(self, done: Summary, *, dry_run: bool) -> str:
        parts = [
            f"{done.courses_made} courses and {done.students_made} students made",
            f"{done.created} enrolments created",
            f"{done.taken_up} taken up again",
            f"{done.withdrawn} withdrawn",
            f"{done.updated} updated",
            f"{done.unchanged} unchanged",
            f"{done.refused} without a seat",
            f"{done.bad} bad lines",
        ]
        would = "Dry run, nothing is changed. It would be: " if dry_run else ""
        return f"{would}{done.lines} lines: {', '.join(parts)}."
