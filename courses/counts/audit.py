"""The ledger: what every check and rebuild found and changed, and on whose behalf.

Checks and rebuilds do what they do whether or not it can be written down. Where it can't,
because the database is read-only or the user may not write these tables, the log says so
once, and the rest of that run is not written.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heappush, heappushpop
from typing import Any

from django.db import Error
from django.db.models import QuerySet
from django.utils import timezone

from courses.counts.drift import Batch, Drift, find_drift, rebuild
from courses.managers import CourseQuerySet
from courses.models import CountDiscrepancy, CountRun, Course
from courses.transactions import retry_transaction

logger = logging.getLogger(__name__)

# Entries of one check, which finds the same again until it is corrected. A rebuild enters
# all that it corrects: it can't find that again.
MOST_FOUND = 500
CHECK_TIME_LIMIT = 10.0  # seconds
CHECK_BATCH = 250  # courses: a batch that has begun is finished, however little time is left
# The rows are read as a whole to count the days: not by every check.
COUNT_DAYS_EVERY = timedelta(hours=1)
DAYS = 60
PRUNED_AT_ONCE = 1_000  # rows


class StopAudit(Exception):
    """Raised by a `batch_done`: the run ends here, as one that did not look at all courses."""


class CheckInProgress(Exception):
    """A check began a moment ago: wait for what it finds."""


def run_audit(
    *,
    kind: CountRun.Kind,
    actor: str,
    alarm: bool = True,
    at_once: bool = False,
    courses: CourseQuerySet | None = None,
    batch_done: Callable[[Batch], object] | None = None,
    count_days_within: float = math.inf,
    **how: Any,
) -> Iterator[Drift]:
    """Check or rebuild as `find_drift()` and `rebuild()` do, and enter it in the ledger.

    `actor` says who or what asked for it. What else is given is theirs. Corrections are entered
    after each of the rebuild's transactions. A crash between the two loses these entries, of
    MAX_LOCKED_COURSES courses at most; the corrections themselves are there. Of what a check finds,
    the MOST_FOUND largest drifts are entered, and the numbers of all. A run that found drift
    is logged as one error, unless `alarm` is False because somebody is looking.

    A run is entered after its first batch or correction: one that could not even read leaves
    its error, and nothing else. `at_once` enters it before, for others to see that it goes on.

    A run over all courses that lasted no longer than `count_days_within` seconds also counts
    the enrollments by day, which reads all rows, where that was not done for an hour.
    """
    entry = _Entry(kind, actor, alarm)
    if at_once:
        entry.write()

    def done(batch: Batch) -> None:
        entry.add(batch)
        if batch_done:
            batch_done(batch)

    look_or_correct: Callable[..., Iterator[Drift]] = find_drift
    if kind == CountRun.Kind.REBUILD:
        look_or_correct, how["committed"] = rebuild, entry.add_corrected
    is_full = courses is None
    try:
        for drift in look_or_correct(courses=courses, batch_done=done, **how):
            if kind == CountRun.Kind.CHECK:
                entry.add_found(drift)
            yield drift
    except StopAudit:
        is_full = False
    except BaseException:
        entry.break_off()
        raise
    entry.finish(is_full=is_full, count_days_within=count_days_within)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check with a time limit came to. Numbers are of courses."""

    courses_checked: int
    drifted: int
    last_id: int | None
    is_whole: bool  # False: time was up, and courses after `last_id` were not looked at


def timed_check(*, actor: str, seconds: float = CHECK_TIME_LIMIT) -> Checked:
    """Check as many courses as that time allows, in key order, and enter it in the ledger.

    For whoever can't wait. Takes no lock; lasts one batch of CHECK_BATCH courses longer at
    most. Raises CheckInProgress where another run began within the last CHECK_TIME_LIMIT seconds
    and goes on: one at a time, so that impatience doesn't take all of the site's threads.
    """
    now = timezone.now()
    recently = now - timedelta(seconds=CHECK_TIME_LIMIT), now
    if CountRun.objects.filter(finished_at=None, started_at__range=recently).exists():
        raise CheckInProgress
    until = time.monotonic() + seconds
    courses_checked, last_id, is_whole = 0, None, True

    def done(batch: Batch) -> None:
        nonlocal courses_checked, last_id, is_whole
        courses_checked += batch.courses_checked
        last_id = batch.last_id
        if batch.courses_checked == CHECK_BATCH and time.monotonic() >= until:
            is_whole = False
            raise StopAudit

    found = run_audit(
        kind=CountRun.Kind.CHECK,
        actor=actor,
        at_once=True,
        batch_size=CHECK_BATCH,
        batch_done=done,
        count_days_within=seconds / 5,
    )
    drifted = sum(1 for _ in found)
    return Checked(courses_checked, drifted, last_id, is_whole)


def prune(*, before: datetime) -> tuple[int, int]:
    """Delete what is older; return the numbers of runs and of drifts. Memory stays the same."""
    drifts = _prune(CountDiscrepancy.objects.filter(found_at__lt=before))
    # The others have entries that are not so old: they go with these.
    return _prune(CountRun.objects.filter(started_at__lt=before, discrepancies=None)), drifts


# How it is done -----------------------------------------------------------------


class _Entry:
    """One run on its way into the ledger."""

    def __init__(self, kind: CountRun.Kind, actor: str, alarm: bool) -> None:
        length = CountRun._meta.get_field("actor").max_length
        actor = " ".join(actor.split())[:length]  # an event of the log is a line
        self.run = CountRun(kind=kind, actor=actor, started_at=timezone.now())
        self._largest: list[tuple[int, int, CountDiscrepancy]] = []
        self._is_given_up = False
        self._alarms = alarm

    def add(self, batch: Batch) -> None:
        is_first = not self.run.courses_checked
        self.run.courses_checked += batch.courses_checked
        # What it looked at is right when it is told, whoever corrected it.
        is_rebuild = self.run.kind == CountRun.Kind.REBUILD
        self.run.stored_sum += batch.true if is_rebuild else batch.stored
        self.run.true_sum += batch.true
        if is_first:
            self.write()

    def add_found(self, drift: Drift) -> None:
        self.run.drifted += 1
        self.run.absolute_drift += abs(drift.drift)
        add = heappush if len(self._largest) < MOST_FOUND else heappushpop
        add(self._largest, (abs(drift.drift), -drift.course_id, self._entry(drift)))

    def add_corrected(self, drifts: Sequence[Drift]) -> None:
        self.run.drifted += len(drifts)
        self.run.corrected += len(drifts)
        self.run.absolute_drift += sum(abs(drift.drift) for drift in drifts)
        self.write([self._entry(drift) for drift in drifts])

    def finish(self, *, is_full: bool, count_days_within: float) -> None:
        self.run.finished_at = now = timezone.now()
        self.run.is_full = is_full
        self._end()
        if is_full and (now - self.run.started_at).total_seconds() <= count_days_within:
            self._attempt(self._count_days)

    def break_off(self) -> None:
        if self.run.courses_checked or self.run.drifted:
            self._end()

    def _end(self) -> None:
        if self.run.drifted and self._alarms:
            self._alarm()
        self.write([entry for *_, entry in sorted(self._largest, reverse=True)])

    def _entry(self, drift: Drift) -> CountDiscrepancy:
        return CountDiscrepancy(
            course_id=drift.course_id,
            course_title=drift.title,
            stored=drift.stored,
            true=drift.true,
            drift=drift.drift,
            corrected=self.run.kind == CountRun.Kind.REBUILD,
            found_at=timezone.now(),
            last_seen_at=timezone.now(),
        )

    def _alarm(self) -> None:
        if self.run.kind == CountRun.Kind.CHECK:
            then = "Correct with: manage.py rebuild_counts"
        else:
            then = "Corrected. Look for what writes to the tables past the services."
        logger.error(
            "%d course%s drifted, by %d enrollments in all; %d looked at by %s. %s",
            self.run.drifted,
            "" if self.run.drifted == 1 else "s",
            self.run.absolute_drift,
            self.run.courses_checked,
            self.run.actor,
            then,
        )

    def write(self, entries: Sequence[CountDiscrepancy] = ()) -> None:
        def write() -> None:
            self.run.save()
            for entry in entries:
                entry.run = self.run
            CountDiscrepancy.objects.bulk_create(entries)

        self._attempt(write)

    def _count_days(self) -> None:
        counted = CountRun.objects.exclude(pk=self.run.pk).exclude(enrolled_by_day="")
        last = counted.order_by("-pk").first()
        now = timezone.now()
        if last and now - COUNT_DAYS_EVERY < last.started_at <= now:
            return
        rows: Any = Course._meta.get_field("enrollments").related_model._default_manager
        since = now - timedelta(days=DAYS)
        self.run.enrolled_by_day = json.dumps(rows.enrolled_by_day(since=since))
        self.run.save()
        if last:
            CountRun.objects.filter(pk=last.pk).update(enrolled_by_day="")

    def _attempt(self, work: Callable[[], None]) -> None:
        if self._is_given_up:
            return
        try:
            retry_transaction(idempotent=False)(work)()
        except (Error, OverflowError) as error:  # SQLite's columns hold more than its sums
            self._is_given_up = True
            said = " ".join(str(part) for part in error.args[-1:])
            logger.warning("This run is not, or not wholly, in the ledger: %s", said)


def _prune(rows: QuerySet) -> int:
    pruned = 0
    keys = rows.order_by("pk").values_list("pk", flat=True)
    while found := list(keys[:PRUNED_AT_ONCE]):
        rows.model._default_manager.filter(pk__in=found).delete()
        pruned += len(found)
    return pruned
