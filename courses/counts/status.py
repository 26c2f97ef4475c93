"""What the ledger says of the counts: whether all are right, as of when, and how it has been.

Reads the ledger only, in the same few queries whatever the number of courses and rows.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.db.models import Count, Exists, F, Max, OuterRef, Q, Sum
from django.db.models.functions import TruncDate
from django.utils import timezone

from courses.counts.audit import DAYS, MOST_FOUND
from courses.models import CountDiscrepancy, CountRun

RUNS = 10  # the last ones that are listed
LARGEST = 20  # drifts that are listed
OLD = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of the counts. Numbers are of courses."""

    # The newest run that looked at all courses.
    whole: CountRun | None
    # The newest run, that one or a later one, that found what is still wrong; where nothing
    # is, the newest that left courses wrong.
    wrong: CountRun | None = None
    drifted: int = 0  # that were found wrong, and neither corrected nor deleted since
    absolute_drift: int = 0  # by how much those are wrong, in enrollments
    corrected_since: int = 0
    largest: list[CountDiscrepancy] = field(default_factory=list)  # the newest of each course

    @property
    def is_right(self) -> bool:
        """Whether all courses were looked at, and none was found wrong since."""
        return self.whole is not None and self.wrong is None

    @property
    def is_old(self) -> bool:
        return self.whole is not None and self.whole.started_at < timezone.now() - OLD


def health() -> Health:
    newest_first = CountRun.objects.defer("enrolled_by_day").order_by("-pk")
    whole = newest_first.filter(is_full=True).first()
    runs = newest_first.filter(drifted__gt=F("corrected"))
    found = CountDiscrepancy.objects.filter(corrected=False)
    if whole:
        # One that had begun before may have come to a course after this one had passed it.
        runs = runs.filter(Q(pk__gte=whole.pk) | Q(started_at__gt=whole.started_at - OLD))
        found = found.filter(Q(run__gte=whole.pk) | Q(found_at__gt=whole.started_at))
    of_run: defaultdict[int, list[CountDiscrepancy]] = defaultdict(list)
    newest: dict[int, CountDiscrepancy] = {}
    for entry in found.filter(run__in=runs.values("pk")).order_by("pk"):
        of_run[entry.run_id].append(entry)
        if entry.course_id is not None:
            newest[entry.course_id] = entry
    # Asked of these only: the same is found again and again until it is corrected.
    seen_last = CountDiscrepancy.objects.filter(pk__in=[entry.pk for entry in newest.values()])
    corrected = set(seen_last.filter(Exists(_CORRECTED)).values_list("course", flat=True))
    wrong = {key: entry for key, entry in newest.items() if key not in corrected}

    # Several runs may have found the same courses: the most that is known is of all of them,
    # or of one that found more than it entered. Which those were, nobody knows, and whether
    # they were corrected: they are wrong until a run over all.
    most = len(wrong), _size(wrong.values())
    concerned, left_by = [], []
    for run in runs:
        entered = of_run[run.pk]
        still = [wrong[entry.course_id] for entry in entered if entry.course_id in wrong]
        left = len(still)
        if whole is None or run.pk >= whole.pk:
            left += run.uncorrected - len(entered)
            most = max(most, (left, run.absolute_drift - _size(entered) + _size(still)))
        elif not entered:
            continue
        concerned.append(run)
        if left:
            left_by.append(run)
    return Health(
        whole,
        next(iter(left_by or concerned), None),
        *most,
        len(corrected),
        sorted(wrong.values(), key=lambda entry: -abs(entry.drift))[:LARGEST],
    )


# The same course's corrections: those entered later, and those made while the run that found
# it wrong went on, which enters what it found at its end.
_CORRECTED = CountDiscrepancy.objects.filter(corrected=True, course=OuterRef("course")).filter(
    Q(pk__gt=OuterRef("pk"))
    | Q(found_at__gt=OuterRef("found_at"), found_at__lt=OuterRef("run__finished_at"))
)


def _size(entries: Iterable[CountDiscrepancy]) -> int:
    return sum(abs(entry.drift) for entry in entries)


@dataclass(frozen=True, slots=True)
class KnownDrifts:
    """What the ledger has of courses that were found wrong. Some may be corrected since."""

    whole: CountRun | None  # the newest run that looked at all courses
    # The largest drifts that it found, and the last ones found since: MOST_FOUND of each at most.
    course_ids: set[int]

    @property
    def is_cut(self) -> bool:
        """Whether more were found than the ledger has entries of."""
        return self.whole is not None and self.whole.uncorrected > MOST_FOUND


def known_drifts() -> KnownDrifts:
    whole = CountRun.objects.defer("enrolled_by_day").filter(is_full=True).order_by("-pk").first()
    entries = CountDiscrepancy.objects.filter(corrected=False, course__isnull=False)
    found = entries.values_list("course", flat=True).order_by("-run_id", "-pk")
    if whole is None:
        return KnownDrifts(None, set(found[:MOST_FOUND]))
    since = found.filter(run__gt=whole.pk)[:MOST_FOUND]
    return KnownDrifts(whole, {*found.filter(run=whole.pk)[:MOST_FOUND], *since})


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
    today = timezone.now().date()
    days = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    runs = CountRun.objects.filter(started_at__gte=timezone.now() - timedelta(days=DAYS))
    by_day: dict[date, Any] = {
        row["day"]: row
        for row in runs.order_by()
        .annotate(day=TruncDate("started_at", tzinfo=UTC))
        .values("day")
        .annotate(runs=Count("pk"), most_drifted=Max("drifted"), all_corrected=Sum("corrected"))
    }

    def of(name: str) -> dict[Any, int]:
        return {day: int(by_day[day][name]) if day in by_day else 0 for day in days}

    counted = CountRun.objects.exclude(enrolled_by_day="").order_by("-pk").first()
    enrolled: dict[str, int] = json.loads(counted.enrolled_by_day) if counted else {}
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
                    "New enrollments",
                    "a day, whatever became of them",
                    {day: enrolled.get(day.isoformat(), 0) for day in days},
                    as_of=counted.finished_at,
                )
            ]
            if counted
            else []
        ),
    ]
