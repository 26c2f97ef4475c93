"""Record every check and rebuild: who ran it, and which drifted courses it found.

A check or rebuild continues if it cannot be recorded, for example because the database is
read-only or its user may not write these tables. The run then logs one warning and records
nothing more.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.db import Error
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
MAX_IN_LIST = 999  # keys; MariaDB turns a longer list into a join
PRUNE_BATCH_SIZE = 1_000  # rows


class StopAudit(Exception):
    """Raised by an `on_batch` callback to end the run before it has checked all courses."""


class CheckInProgress(Exception):
    """Another run started a moment ago. Wait for its result."""


def run_audit(
    *,
    kind: CountRun.Kind,
    actor: str,
    log_drift: bool = True,
    create_immediately: bool = False,
    courses: CourseQuerySet | None = None,
    on_batch: Callable[[Batch], object] | None = None,
    **options: Any,
) -> Iterator[DriftedCourse]:
    """Check or rebuild the courses, record the run, and yield the drifted courses.

    `options` are passed to `find_drift()` or `rebuild()`. The run and its discrepancies are
    recorded after each batch of a check and each transaction of a rebuild. A crash in between
    loses the records of at most one batch or transaction, but no correction.

    A run that found drift logs one error, unless `log_drift` is False because the caller
    reports the drift itself. `create_immediately` records the run before it has read anything,
    so that others can see it running.
    """
    recorder = _Recorder(kind=kind, actor=actor)
    if create_immediately:
        recorder.save_run()

    def record_and_report(batch: Batch) -> None:
        recorder.record_batch(batch)
        if on_batch:
            on_batch(batch)

    options |= {"courses": courses, "on_batch": record_and_report}
    is_full = courses is None
    try:
        if kind == CountRun.Kind.REBUILD:
            yield from rebuild(on_commit=recorder.record_corrections, **options)
        else:
            yield from find_drift(**options)
    except StopAudit:
        is_full = False
    except BaseException:
        recorder.record_interruption(log_drift=log_drift)
        raise
    recorder.record_end(is_full=is_full, log_drift=log_drift)


@dataclass(frozen=True, slots=True)
class TimedCheckResult:
    courses_checked: int
    drifted: int  # number of courses
    last_id: int | None  # primary key of the last course that was checked
    is_complete: bool  # False: the time limit was reached before all courses were checked


def timed_check(*, actor: str, seconds: float = CHECK_TIME_LIMIT) -> TimedCheckResult:
    """Check courses in key order until the time limit, and record the run.

    For requests, which cannot wait for a full check. Takes no locks, and exceeds the limit by
    at most one batch of CHECK_BATCH_SIZE courses. Raises CheckInProgress if another run started
    within the last CHECK_TIME_LIMIT seconds and is unfinished, so that repeated requests do not
    occupy all threads of the site.
    """
    now = timezone.now()
    recently = (now - timedelta(seconds=CHECK_TIME_LIMIT), now)
    if CountRun.objects.filter(finished_at=None, started_at__range=recently).exists():
        raise CheckInProgress
    deadline = time.monotonic() + seconds
    courses_checked, last_id, is_complete = 0, None, True

    def stop_at_deadline(batch: Batch) -> None:
        nonlocal courses_checked, last_id, is_complete
        courses_checked += batch.courses_checked
        last_id = batch.last_id
        if batch.courses_checked == CHECK_BATCH_SIZE and time.monotonic() >= deadline:
            is_complete = False
            raise StopAudit

    drifted_courses = run_audit(
        kind=CountRun.Kind.CHECK,
        actor=actor,
        create_immediately=True,
        batch_size=CHECK_BATCH_SIZE,
        on_batch=stop_at_deadline,
    )
    drifted = sum(1 for _ in drifted_courses)
    return TimedCheckResult(courses_checked, drifted, last_id, is_complete)


def prune(*, before: datetime) -> tuple[int, int]:
    """Delete old runs and resolved discrepancies, and return the numbers of both.

    Open discrepancies stay, and so do the runs that still have discrepancies.
    """
    discrepancies = _delete_in_batches(CountDiscrepancy.objects.filter(resolved_at__lt=before))
    runs = _delete_in_batches(CountRun.objects.filter(started_at__lt=before, discrepancies=None))
    return runs, discrepancies


def _delete_in_batches(rows: QuerySet) -> int:
    deleted = 0
    primary_keys = rows.order_by("pk").values_list("pk", flat=True)
    while batch := list(primary_keys[:PRUNE_BATCH_SIZE]):
        rows.model._default_manager.filter(pk__in=batch).delete()
        deleted += len(batch)
    return deleted


class _Recorder:
    """Writes one run and its discrepancies, or logs why it cannot."""

    def __init__(self, *, kind: CountRun.Kind, actor: str) -> None:
        max_length = CountRun._meta.get_field("actor").max_length
        # A line break in a user name would start a new line in the log.
        actor = " ".join(actor.split())[:max_length]
        self.run = CountRun(kind=kind, actor=actor, started_at=timezone.now())
        self._is_rebuild = kind == CountRun.Kind.REBUILD
        self._has_failed = False

    def record_batch(self, batch: Batch) -> None:
        self.run.courses_checked += batch.courses_checked
        if self._is_rebuild:
            # All courses of the batch are correct now. Its corrections are already recorded.
            batch = replace(batch, drifted=[])
        self._add_drift(batch)
        self._write_if_changed(batch)

    def record_corrections(self, batch: Batch) -> None:
        self.run.corrected += len(batch.drifted)
        self._add_drift(batch)
        self._write_if_changed(batch)

    def save_run(self) -> None:
        self._write(self.run.save)

    def record_end(self, *, is_full: bool, log_drift: bool) -> None:
        self.run.finished_at = timezone.now()
        self.run.is_full = is_full
        if self.run.drifted and log_drift:
            self._log_drift()
        self._write(self._finish)

    def record_interruption(self, *, log_drift: bool) -> None:
        if self.run.drifted and log_drift:
            self._log_drift()
        if self.run.courses_checked or self.run.drifted:
            self.save_run()

    def _add_drift(self, batch: Batch) -> None:
        self.run.drifted += len(batch.drifted)
        self.run.absolute_drift += sum(abs(course.drift) for course in batch.drifted)

    def _log_drift(self) -> None:
        checked, drifted = self.run.courses_checked, self.run.drifted
        error = self.run.absolute_drift
        if self._is_rebuild:
            advice = (
                "The stored counts are corrected. "
                "Find out what writes to the tables without the services."
            )
        else:
            advice = f"Correct {pluralize(drifted, 'it,them')} with: manage.py rebuild_counts"
        logger.error(
            f"{checked} course{pluralize(checked)} checked: {drifted} drifted, by "
            f"{error} enrollment{pluralize(error)} in total ({self.run.actor}). {advice}"
        )

    def _write_if_changed(self, batch: Batch) -> None:
        def write() -> None:
            self.run.save()
            _update_discrepancies(self.run, batch)

        def is_changed() -> bool:
            return self.run.pk is None or bool(batch.drifted) or _unresolved(batch).exists()

        self._write(write, condition=is_changed)

    def _finish(self) -> None:
        self.run.save()
        if self.run.is_full:
            # A full run has seen every course. The courses of these rows were deleted.
            unseen = CountDiscrepancy.objects.filter(last_seen_at__lt=self.run.started_at)
            unseen.filter(resolved_at=None).update(resolved_at=self.run.finished_at)

    def _write(
        self, write: Callable[[], None], *, condition: Callable[[], bool] = lambda: True
    ) -> None:
        if self._has_failed:
            return
        try:
            if condition():
                retry_transaction(idempotent=False)(write)()
        except (Error, OverflowError) as error:  # SQLite stores larger counts than their sum
            self._has_failed = True
            reason = " ".join(str(part) for part in error.args[-1:])
            logger.warning("This run could not be recorded completely: %s", reason)


def _unresolved(batch: Batch) -> QuerySet[CountDiscrepancy]:
    """Return the unresolved discrepancies of a batch, and perhaps of courses between its keys."""
    rows = CountDiscrepancy.objects.filter(resolved_at=None)
    if len(batch.course_ids) <= MAX_IN_LIST:
        return rows.filter(course__in=batch.course_ids)
    return rows.filter(course__gte=batch.first_id, course__lte=batch.last_id)


def _update_discrepancies(run: CountRun, batch: Batch) -> None:
    """Open, update and resolve the discrepancies of the courses in a batch.

    A rebuild has corrected the drifted courses of the batch. All other courses are correct.
    """
    is_rebuild = run.kind == CountRun.Kind.REBUILD
    now = timezone.now()
    course_ids = set(batch.course_ids)
    drifted = {course.course_id: course for course in batch.drifted}
    still_drifted, correct = [], []
    for row in _unresolved(batch).select_for_update().order_by("pk"):
        if row.course_id not in course_ids:
            continue
        if row.last_seen_at >= batch.read_at:
            # Another run saw the course drifted after this batch was read.
            if not is_rebuild:
                drifted.pop(row.course_id, None)
        elif course := drifted.pop(row.course_id, None):
            _save_counts(row, course)
            still_drifted.append(row.pk)
        else:
            # The course is correct, or this is its second row.
            correct.append(row.pk)
    outcome = {
        "run": run,
        "last_seen_at": now,
        "corrected": is_rebuild,
        "resolved_at": now if is_rebuild else None,
    }
    _update(still_drifted, **outcome)
    _update(correct, resolved_at=now)
    CountDiscrepancy.objects.bulk_create(
        CountDiscrepancy(
            course_id=course.course_id, found_at=now, **_count_values(course), **outcome
        )
        for course in drifted.values()
    )


def _save_counts(row: CountDiscrepancy, course: DriftedCourse) -> None:
    values = _count_values(course)
    # Drift that nobody corrects is found again by every check, mostly with the same counts.
    if any(getattr(row, name) != value for name, value in values.items()):
        CountDiscrepancy.objects.filter(pk=row.pk).update(**values)


def _count_values(course: DriftedCourse) -> dict[str, Any]:
    return {
        "course_title": course.title,
        "stored": course.stored,
        "true": course.true,
        "drift": course.drift,
    }


def _update(primary_keys: Sequence[int], **values: Any) -> None:
    for start in range(0, len(primary_keys), MAX_IN_LIST):
        batch = primary_keys[start : start + MAX_IN_LIST]
        CountDiscrepancy.objects.filter(pk__in=batch).update(**values)
