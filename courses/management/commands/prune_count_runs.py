from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from courses.counts.audit import prune
from courses.management.base import AppCommand

KEEP_DAYS = 400


class Command(AppCommand):
    help = "Deletes from the ledger what is older than so many days, a thousand rows at a time."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--keep-days",
            default=KEEP_DAYS,
            metavar="N",
            help="what is younger is kept (default: %(default)s)",
        )

    def handle(self, *, keep_days: str, verbosity: int, **options: Any) -> None:
        runs, drifts = prune(before=timezone.now() - timedelta(days=self._days(keep_days)))
        if verbosity:
            self.stdout.write(f"Deleted from the ledger: runs {runs}, drifts {drifts}.")

    def _days(self, value: str | int) -> int:
        try:
            days = int(value)
        except ValueError:
            days = 0
        if not 0 < days <= 36_500:
            raise self.usage_error(f"--keep-days takes 1 to 36500 days, not {value!r}.")
        return days
