from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS
from django.template.defaultfilters import pluralize

from courses.management.base import AppCommand
from enrollments.exchange import FORMATS
from enrollments.exchange.exporter import UnsupportedRecord, export_enrollments
from enrollments.models import Enrollment


class Command(AppCommand):
    help = (
        "Writes all enrollments as CSV, in a format that import_enrollments reads. The export is "
        "not a snapshot: changes made while it runs may be included."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--format", choices=FORMATS, default="canvas", help="default: %(default)s"
        )
        self.add_output_argument(parser)

    def handle(self, *, format: str, output: Path | None, **options: Any) -> None:
        total = Enrollment.objects.using(DEFAULT_DB_ALIAS).count()
        try:
            with (
                self.output(output) as file,
                self.progress(total=total, unit="row", disable=file.isatty()) as bar,
            ):
                written_as_active = export_enrollments(
                    file=file, format=FORMATS[format], on_progress=bar.update
                )
        except UnsupportedRecord as error:
            raise self.usage_error(
                f"The {format} format cannot represent {error}. Choose another --format."
            ) from error
        if written_as_active:
            self.stderr.write(
                f"{written_as_active} completed enrollment{pluralize(written_as_active)} "
                f"{pluralize(written_as_active, 'was,were')} exported as active, because the "
                f"{format} format has no such status. To keep the status, choose --format canvas."
            )
