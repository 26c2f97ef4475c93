from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS

from courses.management.base import AppCommand
from courses.models import Course
from enrollments.exchange.exporter import export_courses


class Command(AppCommand):
    help = "Writes all courses as CSV, with their stored count, true count and drift."

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_output_argument(parser)

    def handle(self, *, output: Path | None, **options: Any) -> None:
        total = Course.objects.using(DEFAULT_DB_ALIAS).count()
        with (
            self.output(output) as file,
            self.progress(total=total, unit="course", disable=file.isatty()) as bar,
        ):
            export_courses(file=file, on_progress=bar.update)
