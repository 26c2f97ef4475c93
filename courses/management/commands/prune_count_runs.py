from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser
from django.template.defaultfilters import pluralize
from django.utils import timezone

from courses.counts.audit import prune
from courses.management.base import AppCommand, positive_int


class Command(AppCommand):
    help = (
        "Deletes the records of old checks and rebuilds, and of drifted courses that were "
        "corrected long ago. Keeps the records of courses that are still drifted."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--keep-days",
            type=positive_int,
            default=400,
            metavar="DAYS",
            help="delete only records older than this (default: %(default)s)",
        )

    def handle(self, *, keep_days: int, verbosity: int, **options: Any) -> None:
        try:
            before = timezone.now() - timedelta(days=keep_days)
        except OverflowError:
            raise self.usage_error("--keep-days reaches back before the year 1.") from None
        runs, discrepancies = prune(before=before)
        if verbosity:
            self.stdout.write(
                f"Deleted {runs} run{pluralize(runs)} and {discrepancies} "
                f"discrepanc{pluralize(discrepancies, 'y,ies')} older than {keep_days} "
                f"day{pluralize(keep_days)}."
            )
