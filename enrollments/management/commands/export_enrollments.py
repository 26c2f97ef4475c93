from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from courses.management.base import AppCommand
from enrollments.exchange.exporter import FORMATS, InexpressibleRow, export_enrollments
from enrollments.management.starts import add_start_argument, first_days


class Command(AppCommand):
    help = (
        "Writes all enrollments as CSV, in a format that import_enrollments reads. Others may "
        "write meanwhile: each row is as it was when its turn came."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--format", choices=FORMATS, default="canvas", dest="format_name")
        parser.add_argument(
            "--school", default="", help="the sourcedId of the school, which OneRoster asks for"
        )
        add_start_argument(parser)
        self.add_output_argument(parser)

    def handle(
        self,
        *,
        format_name: str,
        school: str,
        starts: list[str],
        output: Path | None,
        verbosity: int,
        **options: Any,
    ) -> None:
        days = first_days(starts)
        try:
            with self.output(output) as file:
                number = export_enrollments(
                    file=file, format_name=format_name, starts=days, school=school
                )
        except InexpressibleRow as error:
            raise self.usage_error(f"{format_name} can't say this: {error}.") from error
        if output and verbosity:
            self.stdout.write(f"{number} enrollments written to {output}.")
