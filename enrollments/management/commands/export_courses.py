from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.template.defaultfilters import pluralize

from courses.management.base import AppCommand
from courses.models import Course
from enrollments.exchange.exporter import export_courses


class Command(AppCommand):
    help = "Writes all courses as CSV, with their stored count, true count and drift."

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_output_argument(parser)

    def handle(self, *, output: Path | None, verbosity: int, **options: Any) -> None:
        with (
            self.output(output) as file,
            self.progress(
                total=Course.objects.count(), unit="course", disable=file.isatty()
            ) as bar,
        ):
            number = export_courses(file=file, on_progress=bar.update)
        if output and verbosity:
            self.stdout.write(f"Wrote {number} course{pluralize(number)} to {output}.")
