"""Report whether all counts are correct, as of the recorded runs.

All functions read only the records of runs, in a few queries whatever the size of the catalog.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from django.db.models import Count, Max, Sum
from django.db.models.functions import Abs, TruncDate
from django.utils import timezone

from courses.models import CountDiscrepancy, CountRun

MAX_LISTED_RUNS = 10
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
        return (
            self.last_full_run is not None
            and not self.last_full_run.uncorrected
            and not self.drifted
        )

    @property
    def is_stale(self) -> bool:
        return self.checked_at is not None and self.checked_at < timezone.now() - STALE_AFTER


def count_status() -> CountStatus:
    open_discrepancies = CountDiscrepancy.objects.open()
    totals = open_discrepancies.aggregate(
        drifted=Count("pk"), absolute_drift=Sum(Abs("drift"), default=0)
    )
    largest = open_discrepancies.order_by(Abs("drift").desc(), "pk")[:MAX_LISTED_DISCREPANCIES]
    last_full_run = CountRun.objects.filter(is_full=True).order_by("-pk").first()
    return CountStatus(last_full_run, **totals, largest=list(largest))


def last_runs() -> list[CountRun]:
    return list(CountRun.objects.order_by("-pk")[:MAX_LISTED_RUNS])


@dataclass(frozen=True, slots=True)
class ChartDay:
    day: date
    drifted: int | None  # the most that one run found; None if nothing was checked
    corrected: int  # by all runs


@dataclass(frozen=True, slots=True)
class ChartBar:
    kind: str
    day: date
    number: int
    x: int
    height: int

    @property
    def y(self) -> int:
        return CountChart.HEIGHT - self.height


@dataclass(frozen=True, slots=True)
class CountChart:
    """Drifted and corrected courses per day, drawn as two bars side by side."""

    days: Sequence[ChartDay]

    HEIGHT = 100
    DAY_WIDTH = 10
    BAR_WIDTH = 4
    MIN_BAR_HEIGHT = 3  # keeps 1 visible beside a million

    @property
    def width(self) -> int:
        return self.DAY_WIDTH * len(self.days)

    @property
    def last_day(self) -> date:
        return self.days[-1].day

    @property
    def maximum(self) -> int:
        return max(max(day.drifted or 0, day.corrected) for day in self.days)

    @property
    def bars(self) -> list[ChartBar]:
        return [
            ChartBar(kind, day.day, number, x, self._bar_height(number))
            for position, day in enumerate(self.days)
            for kind, number, x in (
                ("drifted", day.drifted, position * self.DAY_WIDTH + 1),
                ("corrected", day.corrected, position * self.DAY_WIDTH + 1 + self.BAR_WIDTH),
            )
            if number
        ]

    @property
    def gaps(self) -> list[int]:
        """Return the x coordinates of the days on which nothing was checked."""
        return [
            position * self.DAY_WIDTH
            for position, day in enumerate(self.days)
            if day.drifted is None
        ]

    def _bar_height(self, number: int) -> int:
        return max(number * self.HEIGHT // self.maximum, self.MIN_BAR_HEIGHT)


def count_chart() -> CountChart:
    today = timezone.now().astimezone(UTC).date()
    days = [today - timedelta(days=age) for age in reversed(range(CHART_DAYS))]
    runs = CountRun.objects.filter(started_at__gte=timezone.now() - timedelta(days=CHART_DAYS))
    numbers = {
        row["day"]: row
        for row in runs.order_by()
        .annotate(day=TruncDate("started_at", tzinfo=UTC))
        .values("day")
        .annotate(max_drifted=Max("drifted"), sum_corrected=Sum("corrected"))
    }
    return CountChart(
        [
            ChartDay(day, numbers[day]["max_drifted"], int(numbers[day]["sum_corrected"]))
            if day in numbers
            else ChartDay(day, None, 0)
            for day in days
        ]
    )
