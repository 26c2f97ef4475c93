"""Finding drift without locks, and correcting it without stopping anybody."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from courses.managers import CourseQuerySet, true_count
from courses.models import Course
from courses.transactions import retry_transaction

BATCH_SIZE = 1_000  # courses looked at in one query
# Courses locked at once. Of 1,000 keys MariaDB makes a join, which locks what it passes by.
MAX_LOCKED_COURSES = 500
# Rows counted while they are locked, unless one course has more: some 50 milliseconds.
MAX_COUNTED_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class Drift:
    """A course whose stored count was wrong. Counts are numbers of enrollments."""

    course_id: int
    title: str
    stored: int
    true: int

    @property
    def drift(self) -> int:
        return self.stored - self.true


@dataclass(frozen=True, slots=True)
class Batch:
    """What was done with one batch of courses."""

    first_id: int
    last_id: int
    courses_checked: int  # number of courses
    drifted: int  # of those
    stored: int  # sum of their stored counts, as they were looked at
    true: int  # sum of their true counts, at the same moment
    locked_for: float  # seconds, in the longest of its transactions


def find_drift(
    *,
    courses: CourseQuerySet | None = None,
    batch_size: int = BATCH_SIZE,
    pause: float = 0.0,
    courses_checked: Callable[[int], object] | None = None,
    batch_done: Callable[[Batch], object] | None = None,
) -> Iterator[Drift]:
    """Yield the courses that drifted, in key order. Takes no lock and changes nothing.

    Row and counter are committed together, and each batch is one query: what differs
    there did differ, however busy the site is. Between batches it rests for `pause` seconds.
    `courses_checked` is called after each with its number of courses, `batch_done` with all of it.
    """
    for batch in _batches(courses, batch_size, pause):
        yield from (found := [course for course in batch if course.drift])
        _tell(batch, found, 0.0, courses_checked, batch_done)


def rebuild(
    *,
    courses: CourseQuerySet | None = None,
    batch_size: int = BATCH_SIZE,
    pause: float = 0.0,
    courses_checked: Callable[[int], object] | None = None,
    batch_done: Callable[[Batch], object] | None = None,
    committed: Callable[[Sequence[Drift]], object] | None = None,
) -> Iterator[Drift]:
    """Correct the courses that drifted, and yield each with the count that was stored.

    Looks first, without locks; only what looks wrong is locked, recounted and corrected,
    at most MAX_LOCKED_COURSES courses of MAX_COUNTED_ROWS rows together in one transaction. A course is
    yielded after its correction is committed, and `committed` is called before that, with all
    that one transaction corrected. The rest is as for `find_drift()`. Run it outside a
    transaction, so that locks are held for one batch only.
    """
    for batch in _batches(courses, batch_size, pause):
        found: list[Drift] = []
        locked_for = 0.0
        for course_keys in _at_once([course for course in batch if course.drift]):
            corrected = _correct(course_keys)
            locked_for = max(locked_for, time.monotonic() - corrected.locked_at)
            found += corrected.courses
            if committed:
                committed(corrected.courses)
            yield from corrected.courses
        _tell(batch, found, locked_for, courses_checked, batch_done)


def _batches(
    courses: CourseQuerySet | None, batch_size: int, pause: float
) -> Iterator[list[Drift]]:
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    # Joins that the caller's courses come with would yield a course once a row.
    courses = Course.objects.all() if courses is None else courses.distinct()
    # The rows of each course are counted by a range of their index: on MariaDB that is as
    # fast as one grouped scan, and a third faster than to join with one.
    ordered = courses.with_true_count().order_by("pk")
    names = ("pk", "title", "total_enrollments", "true_count")
    columns = ordered.values_list(*names)
    batch = [Drift(*values) for values in columns[:batch_size]]
    while batch:
        yield batch
        remaining = columns.filter(pk__gt=batch[-1].course_id)
        if len(batch) == batch_size:
            time.sleep(pause)
        batch = [Drift(*values) for values in remaining[:batch_size]]


def _at_once(found: Sequence[Drift]) -> Iterator[list[int]]:
    """Yield the keys of courses that are locked together."""
    keys: list[int] = []
    rows = 0
    for course in found:
        if keys and (len(keys) == MAX_LOCKED_COURSES or rows + course.true > MAX_COUNTED_ROWS):
            yield keys
            keys, rows = [], 0
        keys.append(course.course_id)
        rows += course.true
    if keys:
        yield keys


def _tell(
    batch: list[Drift],
    found: list[Drift],
    locked_for: float,
    courses_checked: Callable[[int], object] | None,
    batch_done: Callable[[Batch], object] | None,
) -> None:
    if courses_checked:
        courses_checked(len(batch))
    if batch_done:
        first, last = batch[0].course_id, batch[-1].course_id
        stored, true = sum(course.stored for course in batch), sum(course.true for course in batch)
        batch_done(Batch(first, last, len(batch), len(found), stored, true, locked_for))


class _Corrected(NamedTuple):
    courses: list[Drift]
    locked_at: float


@retry_transaction(is_own_result=lambda earlier, now: not now.courses)
def _correct(course_keys: Sequence[int]) -> _Corrected:
    courses = Course.objects.filter(pk__in=course_keys).order_by("pk")
    locked_at = time.monotonic()  # the first of them; the others may have to be waited for
    before = list(courses.select_for_update())
    recount_locked(course_keys)
    # Read with a lock again: a plain read may be of before.
    after = dict(courses.select_for_update().values_list("pk", "total_enrollments"))
    found = [
        Drift(course.pk, course.title, course.total_enrollments, after[course.pk])
        for course in before
    ]
    return _Corrected([course for course in found if course.drift], locked_at)


def recount_locked(course_keys: Sequence[int]) -> None:
    """Set the stored counts of courses to the true ones.

    Lock them in an earlier statement of the same transaction. Without it the count is of a
    snapshot that is older than the lock, and a right counter becomes wrong when somebody
    enrolls at the same time.
    """
    Course.objects.filter(pk__in=course_keys).update(total_enrollments=true_count())
