"""What the ledger says of the counts: whether all are right, as of when, and how it has been.

Reads the ledger only, in the same few queries whatever the number of courses and rows.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from django.db.models import Count, F, Max, Sum
from django.db.models.functions import Abs, TruncDate
from django.utils import timezone

from courses.ledger import DAYS, MOST_FOUND
from courses.models import CountCorrection, CountRun

RUNS = 10  # the last ones that are listed
OLD = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of the counts. Numbers are of courses."""

    # The newest run that looked at all courses.
    whole: CountRun | None
    # The newest run, that one or a later one, that left courses wrong.
    wrong: CountRun | None
    corrected_since: int  # since `wrong`
    corrected_drift: int  # by how much those were wrong, in enrolments
    largest: list[CountCorrection]  # of what `wrong` found and nobody has corrected since

    @property
    def drifted(self) -> int:
        """Number of courses that were found wrong, and were not corrected since."""
        return max(self.wrong.left - self.corrected_since, 0) if self.wrong else 0

    @property
    def absolute_drift(self) -> int:
        """By how much they were found wrong, in enrolments."""
        if self.wrong is None or not self.drifted:
            return 0
        return max(self.wrong.absolute_drift - self.corrected_drift, 0)

    @property
    def is_right(self) -> bool:
        """Whether all courses were looked at, and none is known to be wrong since."""
        return self.whole is not None and self.wrong is None

    @property
    def is_old(self) -> bool:
        return self.whole is not None and self.whole.started_at < timezone.now() - OLD


def health() -> Health:
    newest_first = CountRun.objects.defer("enrolled_by_day").order_by("-pk")
    whole = newest_first.filter(of_all=True).first()
    since = newest_first.filter(pk__gte=whole.pk) if whole else newest_first
    wrong = since.filter(drifted__gt=F("corrected")).first()
    if wrong is None:
        return Health(whole, None, 0, 0, [])
    later = CountCorrection.objects.filter(run__gt=wrong.pk, corrected=True, course__isnull=False)
    found = wrong.corrections.exclude(course__in=later.values("course")).order_by("pk")
    since_then = later.aggregate(
        courses=Count("course", distinct=True), drift=Sum(Abs("drift"), default=0)
    )
    return Health(
        whole, wrong, since_then["courses"], int(since_then["drift"]), list(found[:MOST_FOUND])
    )


def last_runs() -> list[CountRun]:
    return list(CountRun.objects.defer("enrolled_by_day").order_by("-pk")[:RUNS])


@dataclass(frozen=True, slots=True)
class Plot:
    """A number a day, as bars. Lengths are in units of the drawing, WIDTH × HEIGHT."""

    name: str
    title: str
    unit: str
    numbers: dict[Any, int]  # by date, without gaps
    as_of: datetime | None = None  # None: now
    is_alarming: bool = False

    HEIGHT = 100
    STEP = 10

    @property
    def width(self) -> int:
        return self.STEP * len(self.numbers)

    @property
    def most(self) -> int:
        return max(self.numbers.values())

    @property
    def bars(self) -> list[dict[str, Any]]:
        # One among a million is still to be seen.
        heights = {
            day: max(number * self.HEIGHT // self.most, 3)
            for day, number in self.numbers.items()
            if number
        }
        return [
            {
                "day": day,
                "number": self.numbers[day],
                "x": place * self.STEP + 1,
                "y": self.HEIGHT - heights[day],
                "height": heights[day],
            }
            for place, day in enumerate(self.numbers)
            if day in heights
        ]

    @property
    def first_day(self) -> Any:
        return next(iter(self.numbers))

    @property
    def last_day(self) -> Any:
        return next(reversed(self.numbers))


def plots() -> list[Plot]:
    today = timezone.localdate()
    days = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    runs = CountRun.objects.filter(started_at__gte=timezone.now() - timedelta(days=DAYS))
    by_day: dict[date, Any] = {
        row["day"]: row
        for row in runs.order_by()
        .annotate(day=TruncDate("started_at"))
        .values("day")
        .annotate(runs=Count("pk"), most_drifted=Max("drifted"), all_corrected=Sum("corrected"))
    }

    def of(name: str) -> dict[Any, int]:
        return {day: int(by_day[day][name]) if day in by_day else 0 for day in days}

    counted = CountRun.objects.filter(enrolled_by_day__isnull=False).order_by("-pk").first()
    enrolled: dict[str, int] = (counted and counted.enrolled_by_day) or {}
    return [
        Plot(
            "drifted",
            "Drifted courses",
            "the most that one run found that day",
            of("most_drifted"),
            is_alarming=True,
        ),
        Plot("corrected", "Corrected courses", "a day", of("all_corrected")),
        Plot("runs", "Checks and rebuilds", "a day", of("runs")),
        *(
            [
                Plot(
                    "enrolled",
                    "New enrolments",
                    "a day, whatever became of them",
                    {day: enrolled.get(day.isoformat(), 0) for day in days},
                    as_of=counted.finished_at,
                )
            ]
            if counted
            else []
        ),
    ]
