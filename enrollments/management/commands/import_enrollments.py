import csv
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.template.defaultfilters import pluralize
from tqdm import tqdm

from courses.management.base import AppCommand
from enrollments.exchange.exporter import escape_formula
from enrollments.exchange.importer import ImportSummary, import_file
from enrollments.exchange.reader import RejectedRow, UnreadableFile, open_enrollment_file


class Command(AppCommand):
    help = (
        "Imports enrollments from a Canvas or OneRoster enrollments.csv, or from the Open "
        "University's studentRegistration.csv. Creates courses and students as needed, and gives "
        "each enrollment the status in the file. Enrollments absent from the file are unchanged. "
        "Exit status: 0 if all rows were imported, 1 if some were rejected, 2 if the file is "
        "unreadable or the import was interrupted. An interrupted import keeps what it has "
        "committed: run it again to finish."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path, help="- is standard input")
        parser.add_argument(
            "--dry-run", action="store_true", help="report what an import would do, change nothing"
        )
        parser.add_argument(
            "--existing-only",
            action="store_true",
            help="create no courses and users: reject rows that need new ones",
        )
        parser.add_argument(
            "--allow-self-registered",
            action="store_true",
            help="also enroll users who signed up themselves and were not confirmed by staff",
        )
        parser.add_argument(
            "--report",
            metavar="FILE",
            type=Path,
            help="write rejected rows as CSV, with line and reason (default: standard error)",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="print the summary as one JSON object",
        )
        parser.add_argument(
            "--encoding",
            metavar="NAME",
            default="utf-8-sig",
            help="for example cp1252 or utf-16 (default: UTF-8)",
        )

    def handle(
        self,
        *,
        file: Path,
        encoding: str,
        report: Path | None,
        as_json: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        try:
            with (
                open_enrollment_file(path=file, encoding=encoding) as opened,
                self._rejected_rows(report, opened.header) as on_reject,
                self.progress(total=None, unit="row") as bar,
            ):
                summary = import_file(
                    file=opened,
                    on_reject=on_reject,
                    actor=self.actor_name(),
                    dry_run=options["dry_run"],
                    existing_only=options["existing_only"],
                    allow_self_registered=options["allow_self_registered"],
                    on_total=bar.reset,
                    on_progress=bar.update,
                )
        except UnreadableFile as error:
            raise self.usage_error(str(error)) from error
        except sqlite3.Error as error:
            raise self.usage_error(
                f"The temporary file with the rows cannot be written ({error}). Free disk space, "
                "or set SQLITE_TMPDIR to another folder, and run the import again."
            ) from error
        if as_json:
            self.stdout.write(json.dumps(asdict(summary)))
        elif verbosity:
            if options["dry_run"]:
                self.stdout.write("Dry run: nothing was changed. An import would do this:")
            self.stdout.write(_describe(summary))
        if summary.rejected:
            sys.exit(1)

    @contextmanager
    def _rejected_rows(
        self, report: Path | None, header: list[str]
    ) -> Iterator[Callable[[RejectedRow], object]]:
        """Yield a function that reports a rejected row."""
        if report is None:
            yield lambda row: tqdm.write(str(row), file=sys.stderr)
            return
        with self.output(report) as file:
            writer = csv.writer(file)
            writer.writerow(["line", "reason", *map(escape_formula, header)])
            yield lambda row: writer.writerow(
                map(escape_formula, [str(row.line_number), row.reason, *row.values])
            )


def _describe(summary: ImportSummary) -> str:
    courses, students = summary.courses_created, summary.students_created
    return (
        f"{summary.rows} row{pluralize(summary.rows)}: "
        f"{courses} course{pluralize(courses)} and {students} student{pluralize(students)} "
        f"created.\n"
        f"Enrollments: {summary.created} created, {summary.reenrolled} re-enrolled, "
        f"{summary.withdrawn} withdrawn, {summary.updated} updated, "
        f"{summary.unchanged} unchanged.\n"
        f"Rows: {summary.skipped} skipped, {summary.rejected} rejected."
    )
