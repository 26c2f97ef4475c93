"""Find drifted courses without locks, and correct them without blocking other writers for long."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import DEFAULT_DB_ALIAS
from django.utils import timezone

from courses.managers import CourseQuerySet, true_count
from courses.models import Course
from courses.transactions import retry_transaction

BATCH_SIZE = 1_000  # courses per query
# Courses locked in one transaction. MariaDB turns an IN list of 1,000 keys or more into a join,
# which locks more rows than it returns.
MAX_LOCKED_COURSES = 500
# Enrollments counted while their courses are locked, about 50 milliseconds. A single course may
# have more.
MAX_COUNTED_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class DriftedCourse:
    """A course whose stored count was wrong."""

    course_id: int
    title: str
    stored: int
    true: int

    @property
    def drift(self) -> int:
        return self.stored - self.true


@dataclass(frozen=True, slots=True)
class Batch:
    """Courses that were checked or corrected together, in key order. Never empty."""

    course_ids: Sequence[int]
    drifted: Sequence[DriftedCourse]
    # Not later than the moment at which the counts were read. For corrections: after COMMIT, since
    # a check reads the wrong counts until then.
    read_at: datetime


def find_drift(
    *,
    courses: CourseQuerySet | None = None,
    batch_size: int = BATCH_SIZE,
    pause: float = 0.0,
    on_batch: Callable[[Batch], object] | None = None,
) -> Iterator[DriftedCourse]:
    """Yield the drifted courses in key order, without locking or changing anything.

    Services commit row and counter together, and one query reads both. A difference is
    therefore real, however busy the site is. Sleep for `pause` seconds between batches. Call
    `on_batch` after the drifted courses of a batch were yielded.
    """
    for batch in _read_batches(courses, batch_size, pause):
        yield from batch.drifted
        if on_batch:
            on_batch(batch)


def rebuild(
    *,
    courses: CourseQuerySet | None = None,
    batch_size: int = BATCH_SIZE,
    pause: float = 0.0,
    on_batch: Callable[[Batch], object] | None = None,
) -> Iterator[DriftedCourse]:
    """Correct the drifted courses, and yield each one with the count that was stored.

    Find drifted courses without locks, then lock, recount and correct only these, at most
    MAX_LOCKED_COURSES courses and MAX_COUNTED_ROWS enrollments in one transaction. Call
    `on_batch` with the correct courses of each query, and with the courses of each committed
    transaction before they are yielded. The other arguments are those of `find_drift()`.

    Call it outside a transaction: a surrounding transaction would hold all locks to its end.
    """
    for batch in _read_batches(courses, batch_size, pause):
        drifted_ids = {course.course_id for course in batch.drifted}
        correct_ids = [pk for pk in batch.course_ids if pk not in drifted_ids]
        if correct_ids and on_batch:
            on_batch(Batch(correct_ids, [], batch.read_at))
        for course_ids in _lock_groups(batch.drifted):
            drifted = _correct_courses(course_ids)
            if on_batch:
                on_batch(Batch(course_ids, drifted, timezone.now()))
            yield from drifted


def recount_locked(*, course_pks: Sequence[int]) -> None:
    """Set the stored counts of courses to their true counts.

    Lock the courses in an earlier statement of the same transaction. Otherwise the rows are
    counted in a snapshot that is older than the lock, and a concurrent enrollment is lost.
    """
    Course.objects.filter(pk__in=course_pks).update(total_enrollments=true_count())


def _read_batches(courses: CourseQuerySet | None, batch_size: int, pause: float) -> Iterator[Batch]:
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    # distinct(): joins in the caller's queryset would yield a course once per joined row.
    courses = Course.objects.all() if courses is None else courses.distinct()
    # A replica lags behind, whatever the router or the caller's queryset says.
    courses = courses.using(DEFAULT_DB_ALIAS)
    # On MariaDB, a subquery per course is as fast as one grouped scan, and a third faster than
    # a join with one.
    columns = ("pk", "title", "total_enrollments", "true_count")
    rows = courses.with_true_count().order_by("pk").values_list(*columns)
    remaining = rows
    while True:
        read_at = timezone.now()
        found = [DriftedCourse(*values) for values in remaining[:batch_size]]
        if found:
            drifted = [course for course in found if course.drift]
            yield Batch([course.course_id for course in found], drifted, read_at)
        if len(found) < batch_size:
            return
        time.sleep(pause)
        remaining = rows.filter(pk__gt=found[-1].course_id)


def _lock_groups(drifted: Sequence[DriftedCourse]) -> Iterator[list[int]]:
    """Yield the primary keys of the courses to lock in one transaction."""
    group: list[int] = []
    counted_rows = 0
    for course in drifted:
        if group and (
            len(group) == MAX_LOCKED_COURSES or counted_rows + course.true > MAX_COUNTED_ROWS
        ):
            yield group
            group, counted_rows = [], 0
        group.append(course.course_id)
        counted_rows += course.true
    if group:
        yield group


@retry_transaction(is_own_result=lambda earlier, retried: not retried)
def _correct_courses(course_ids: Sequence[int]) -> list[DriftedCourse]:
    courses = Course.objects.filter(pk__in=course_ids).order_by("pk")
    wrong_courses = list(courses.select_for_update())
    recount_locked(course_pks=course_ids)
    # A plain read could return the counts of an older snapshot.
    true_counts = dict(courses.select_for_update().values_list("pk", "total_enrollments"))
    recounted = [
        DriftedCourse(course.pk, course.title, course.total_enrollments, true_counts[course.pk])
        for course in wrong_courses
    ]
    return [course for course in recounted if course.drift]
