"""Record every check and rebuild: who ran it, and which drifted courses it found.

A check or rebuild continues if it cannot be recorded, for example because the database is
read-only or its user may not write these tables. The run then logs one warning and records
nothing more.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import DEFAULT_DB_ALIAS, Error
from django.db.models import QuerySet
from django.template.defaultfilters import pluralize
from django.utils import timezone

from courses.counts.drift import Batch, DriftedCourse, find_drift, rebuild
from courses.managers import CourseQuerySet
from courses.models import CountDiscrepancy, CountRun
from courses.transactions import retry_transaction

logger = logging.getLogger(__name__)

CHECK_TIME_LIMIT = 10.0  # seconds
CHECK_BATCH_SIZE = 250  # courses, so that the last batch takes little time beyond the limit


class StopAudit(Exception):
    """Raised by an `on_batch` callback to end the run before it has checked all courses."""


class CheckInProgress(Exception):
    """Another run started a moment ago. Wait for its result."""


def run_audit(
    *,
    kind: CountRun.Kind,
    actor: str,
    log_drift: bool = True,
    exclusive: bool = False,
    courses: CourseQuerySet | None = None,
    on_batch: Callable[[Batch], object] | None = None,
    **options: Any,
) -> Iterator[DriftedCourse]:
    """Check or rebuild the courses, record the run, and yield the drifted courses.

    `options` are passed to `find_drift()` or `rebuild()`. The run and its discrepancies are
    recorded after each batch of a check and each transaction of a rebuild. A crash in between
    loses the records of at most one batch or transaction, but no correction.

    A run that found drift logs one error, unless `log_drift` is False because the caller
    reports the drift itself. `exclusive` records the run before it has read anything, and raises
    CheckInProgress if another run started within CHECK_TIME_LIMIT and is unfinished.
    """
    max_length = CountRun._meta.get_field("actor").max_length
    # A line break in a user name would start a new line in the log.
    actor = " ".join(actor.split())[:max_length]
    run = CountRun(kind=kind, actor=actor, started_at=timezone.now())
    recorder = _Recorder(run)
    if exclusive:
        recorder.save(exclusive=True)

    def record_and_report(batch: Batch) -> None:
        recorder.save_batch(batch)
        if on_batch:
            on_batch(batch)

    find = rebuild if run.is_rebuild else find_drift
    try:
        with suppress(StopAudit):
            yield from find(courses=courses, on_batch=record_and_report, **options)
            run.is_full = courses is None
        run.finished_at = timezone.now()
    finally:
        if run.drifted and log_drift:
            _log_drift(run)
        if run.finished_at or run.courses_checked:
            recorder.save()


@dataclass(frozen=True, slots=True)
class TimedCheckResult:
    courses_checked: int
    drifted: int  # number of courses
    last_id: int | None  # primary key of the last course that was checked
    is_complete: bool  # False: the time limit was reached before all courses were checked


def timed_check(*, actor: str, seconds: float = CHECK_TIME_LIMIT) -> TimedCheckResult:
    """Check courses in key order until the time limit, and record the run.

    For requests, which cannot wait for a full check. Locks no courses, and exceeds the limit by
    at most one batch of CHECK_BATCH_SIZE courses. Raises CheckInProgress if another run started
    within the last CHECK_TIME_LIMIT seconds and is unfinished, so that repeated requests do not
    occupy all threads of the site.
    """
    deadline = time.monotonic() + seconds
    courses_checked, last_id, is_complete = 0, None, True

    def stop_at_deadline(batch: Batch) -> None:
        nonlocal courses_checked, last_id, is_complete
        courses_checked += len(batch.course_ids)
        last_id = batch.course_ids[-1]
        if len(batch.course_ids) == CHECK_BATCH_SIZE and time.monotonic() >= deadline:
            is_complete = False
            raise StopAudit

    drifted_courses = run_audit(
        kind=CountRun.Kind.CHECK,
        actor=actor,
        exclusive=True,
        batch_size=CHECK_BATCH_SIZE,
        on_batch=stop_at_deadline,
    )
    drifted = sum(1 for _ in drifted_courses)
    return TimedCheckResult(courses_checked, drifted, last_id, is_complete)


def prune(*, before: datetime) -> tuple[int, int]:
    """Delete old runs and resolved discrepancies, and return the numbers of both.

    Open discrepancies stay, and so do the runs that still have discrepancies.
    """
    discrepancies, _ = CountDiscrepancy.objects.filter(resolved_at__lt=before).delete()
    runs, _ = CountRun.objects.filter(started_at__lt=before, discrepancies=None).delete()
    return runs, discrepancies


def _log_drift(run: CountRun) -> None:
    if run.is_rebuild:
        advice = (
            "The stored counts are corrected. "
            "Find out what writes to the tables without the services."
        )
    else:
        advice = f"Correct {pluralize(run.drifted, 'it,them')} with: manage.py rebuild_counts"
    logger.error(
        f"{run.courses_checked} course{pluralize(run.courses_checked)} checked: {run.drifted} "
        f"drifted, by {run.absolute_drift} enrollment{pluralize(run.absolute_drift)} in total "
        f"({run.actor}). {advice}"
    )


class _Recorder:
    """Writes one run and its discrepancies, or logs why it cannot."""

    def __init__(self, run: CountRun) -> None:
        self._run = run
        self._has_failed = False

    def save_batch(self, batch: Batch) -> None:
        self._run.courses_checked += len(batch.course_ids)
        self._run.drifted += len(batch.drifted)
        self._run.absolute_drift += sum(abs(course.drift) for course in batch.drifted)
        if self._run.is_rebuild:
            self._run.corrected += len(batch.drifted)
        self.save(batch)

    def save(self, batch: Batch | None = None, *, exclusive: bool = False) -> None:
        if self._has_failed:
            return
        try:
            if not batch or not self._run.pk or batch.drifted or _unresolved(batch).exists():
                _save(self._run, batch, is_new=self._run.pk is None, exclusive=exclusive)
        except (Error, OverflowError) as error:  # SQLite stores larger counts than their sum
            self._has_failed = True
            reason = " ".join(str(part) for part in error.args[-1:])
            logger.warning("This run could not be recorded completely: %s", reason)


@retry_transaction(idempotent=False)
def _save(run: CountRun, batch: Batch | None, *, is_new: bool, exclusive: bool = False) -> None:
    if is_new:
        run.pk = None  # a failed attempt leaves a key that another run may have now
    run.save(force_insert=is_new)
    # A locking read waits for runs that others are inserting. If they wait for this one, too, the
    # database rolls back one of the transactions, and its retry finds the other run.
    if exclusive and _unfinished_runs().exclude(pk=run.pk).select_for_update().exists():
        raise CheckInProgress
    if batch:
        _update_discrepancies(run, batch)
    if run.is_full:
        # A full run has seen every course. The courses of these rows were deleted.
        unseen = CountDiscrepancy.objects.filter(last_seen_at__lt=run.started_at)
        unseen.filter(resolved_at=None).update(resolved_at=run.finished_at)


def _unfinished_runs() -> QuerySet[CountRun]:
    """Return the unfinished runs that started within CHECK_TIME_LIMIT, by any machine's clock."""
    now, limit = timezone.now(), timedelta(seconds=CHECK_TIME_LIMIT)
    runs = CountRun.objects.using(DEFAULT_DB_ALIAS)
    return runs.filter(finished_at=None, started_at__range=(now - limit, now + limit))


def _unresolved(batch: Batch) -> QuerySet[CountDiscrepancy]:
    """Return the unresolved discrepancies of a batch, and perhaps of courses between its keys."""
    return CountDiscrepancy.objects.using(DEFAULT_DB_ALIAS).filter(
        resolved_at=None, course__gte=batch.course_ids[0], course__lte=batch.course_ids[-1]
    )


def _update_discrepancies(run: CountRun, batch: Batch) -> None:
    """Open, update and resolve the discrepancies of the courses in a batch.

    A rebuild has corrected the drifted courses of the batch. All other courses are correct. What
    another run recorded about a course after this batch was read is left as it is.
    """
    outcome = {
        "run": run,
        "last_seen_at": batch.read_at,
        "corrected": run.is_rebuild,
        "resolved_at": batch.read_at if run.is_rebuild else None,
    }
    course_ids = set(batch.course_ids)
    drifted = {course.course_id: course for course in batch.drifted}
    seen_again, resolved = [], []
    for row in _unresolved(batch).select_for_update().order_by("pk"):
        if row.course_id not in course_ids:
            continue
        if row.last_seen_at >= batch.read_at:
            if not run.is_rebuild:
                drifted.pop(row.course_id, None)
        elif course := drifted.pop(row.course_id, None):
            seen_again.append(row.pk)
            # Drift that nobody corrects is found again by every check, mostly with these counts.
            if (row.stored, row.true) != (course.stored, course.true):
                row.stored, row.true, row.drift = course.stored, course.true, course.drift
                row.save(update_fields=["stored", "true", "drift"])
        else:
            # The course is correct, or this is its second row.
            resolved.append(row.pk)
    if drifted and not run.is_rebuild:
        if _newer_full_runs(batch).exists():
            drifted.clear()
        for course_id in _resolved_since(batch):
            drifted.pop(course_id, None)
    # The range of the batch bounds the rows that MariaDB reads for a long IN list.
    _unresolved(batch).filter(pk__in=resolved).update(resolved_at=batch.read_at)
    _unresolved(batch).filter(pk__in=seen_again).update(**outcome)
    CountDiscrepancy.objects.bulk_create(
        CountDiscrepancy(
            course_id=course.course_id,
            course_title=course.title,
            stored=course.stored,
            true=course.true,
            drift=course.drift,
            found_at=batch.read_at,
            **outcome,
        )
        for course in drifted.values()
    )


def _newer_full_runs(batch: Batch) -> QuerySet[CountRun]:
    """Return the runs that have read all courses after the batch was read."""
    runs = CountRun.objects.using(DEFAULT_DB_ALIAS)
    return runs.filter(is_full=True, started_at__gte=batch.read_at)


def _resolved_since(batch: Batch) -> QuerySet:
    """Return the keys of courses in the batch that another run corrected after it was read."""
    resolved = CountDiscrepancy.objects.using(DEFAULT_DB_ALIAS).filter(
        resolved_at__gte=batch.read_at,
        course__gte=batch.course_ids[0],
        course__lte=batch.course_ids[-1],
    )
    return resolved.values_list("course", flat=True)
