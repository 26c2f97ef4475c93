from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from courses.management.base import AppCommand
from enrollments.exchange.exporter import export_courses


class Command(AppCommand):
    help = "Writes all courses as CSV, each with its stored count, its true count and its drift."

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_output_argument(parser)

    def handle(self, *, output: Path | None, verbosity: int, **options: Any) -> None:
        with self.output(output) as file:
            number = export_courses(file=file)
        if output and verbosity:
            self.stdout.write(f"{number} courses written to {output}.")
