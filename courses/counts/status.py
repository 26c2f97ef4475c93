"""Report whether all counts are correct, as of the recorded runs.

All functions read only the records of runs, in a few queries whatever the size of the catalog.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from django.db import DEFAULT_DB_ALIAS
from django.db.models import Count, Max, Sum
from django.db.models.functions import Abs, TruncDate
from django.utils import timezone

from courses.managers import total
from courses.models import CountDiscrepancy, CountRun

MAX_LISTED_DISCREPANCIES = 20
STALE_AFTER = timedelta(days=1)
CHART_DAYS = 60


@dataclass(frozen=True, slots=True)
class CountStatus:
    last_full_run: CountRun | None
    drifted: int  # number of courses
    absolute_drift: int  # sum of their drifts without the signs, in enrollments
    largest: Sequence[CountDiscrepancy]

    @property
    def checked_at(self) -> datetime | None:
        return self.last_full_run.finished_at if self.last_full_run else None

    @property
    def is_correct(self) -> bool:
        """Return whether the last full run left no drifted course, and no run found one since."""
        run = self.last_full_run
        return run is not None and not run.uncorrected and not self.drifted

    @property
    def is_stale(self) -> bool:
        return self.checked_at is not None and self.checked_at < timezone.now() - STALE_AFTER


def count_status() -> CountStatus:
    open_discrepancies = CountDiscrepancy.objects.using(DEFAULT_DB_ALIAS).open()
    totals = open_discrepancies.aggregate(drifted=Count("pk"), error=total(Abs("drift")))
    largest = open_discrepancies.order_by(Abs("drift").desc(), "pk")[:MAX_LISTED_DISCREPANCIES]
    runs = CountRun.objects.using(DEFAULT_DB_ALIAS)
    last_full_run = runs.filter(is_full=True).order_by("-pk").first()
    return CountStatus(last_full_run, totals["drifted"], int(totals["error"]), list(largest))


@dataclass(frozen=True, slots=True)
class ChartDay:
    day: date
    drifted: int | None  # the most that one run found; None if nothing was checked
    corrected: int  # by all runs


def chart_days() -> list[ChartDay]:
    """Return the numbers of drifted and corrected courses of the last CHART_DAYS days."""
    today = timezone.now().astimezone(UTC).date()
    runs = CountRun.objects.using(DEFAULT_DB_ALIAS)
    rows = (
        runs.filter(started_at__gte=timezone.now() - timedelta(days=CHART_DAYS))
        .order_by()
        .values_list(TruncDate("started_at", tzinfo=UTC))
        .annotate(Max("drifted"), Sum("corrected"))
    )
    numbers = {day: counts for day, *counts in rows}
    days = [today - timedelta(days=age) for age in reversed(range(CHART_DAYS))]
    return [ChartDay(day, *numbers.get(day, (None, 0))) for day in days]
