"""Finding drift without locks, and correcting it without stopping anybody."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from courses.models import Course
from courses.querysets import CourseQuerySet, true_count
from courses.transactions import in_transaction

BATCH_SIZE = 1_000  # courses looked at in one query
# Courses locked at once. Of 1,000 keys MariaDB makes a join, which locks what it passes by.
MOST_LOCKED = 500


@dataclass(frozen=True, slots=True)
class Drift:
    """A course whose stored count was wrong. Counts are numbers of enrolments."""

    course_id: int
    title: str
    stored: int
    true: int

    @property
    def drift(self) -> int:
        return self.stored - self.true


def find_drift(
    *,
    courses: CourseQuerySet | None = None,
    batch_size: int = BATCH_SIZE,
    looked_at: Callable[[int], object] | None = None,
) -> Iterator[Drift]:
    """Yield the courses that drifted, in key order. Takes no lock and changes nothing.

    Row and counter are committed together, and each batch is one query: what differs
    there did differ, however busy the site is. `looked_at` is called after each batch
    with its number of courses.
    """
    for batch in _drifted_batches(courses, batch_size, looked_at):
        yield from batch


def rebuild(
    *,
    courses: CourseQuerySet | None = None,
    batch_size: int = BATCH_SIZE,
    looked_at: Callable[[int], object] | None = None,
) -> Iterator[Drift]:
    """Correct the courses that drifted, and yield each with the count that was stored.

    Looks first, without locks; only what looks wrong is locked, recounted and corrected,
    at most MOST_LOCKED in one transaction. A course is yielded after its correction is committed.
    Run it outside a transaction, so that locks are held for one batch only.
    """
    for batch in _drifted_batches(courses, batch_size, looked_at):
        for start in range(0, len(batch), MOST_LOCKED):
            yield from _correct([found.course_id for found in batch[start : start + MOST_LOCKED]])


def _drifted_batches(
    courses: CourseQuerySet | None,
    batch_size: int,
    looked_at: Callable[[int], object] | None,
) -> Iterator[list[Drift]]:
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    # Joins that the caller's courses come with would yield a course once a row.
    courses = Course.objects.all() if courses is None else courses.distinct()
    remaining = courses.with_true_count().order_by("pk")
    while batch := list(
        remaining.values_list("pk", "title", "total_enrollments", "true_count")[:batch_size]
    ):
        found = [Drift(*values) for values in batch]
        if drifted := [course for course in found if course.drift]:
            yield drifted
        if looked_at:
            looked_at(len(batch))
        remaining = remaining.filter(pk__gt=batch[-1][0])


def _correct_now(course_keys: Sequence[int]) -> list[Drift]:
    courses = Course.objects.filter(pk__in=course_keys).order_by("pk")
    before = list(courses.select_for_update())
    recount_locked(course_keys)
    # Read with a lock again: a plain read may be of before.
    after = dict(courses.select_for_update().values_list("pk", "total_enrollments"))
    found = [
        Drift(course.pk, course.title, course.total_enrollments, after[course.pk])
        for course in before
    ]
    return [course for course in found if course.drift]


_correct = in_transaction(_correct_now, is_own_doing=lambda earlier, now: not now)


def recount_locked(course_keys: Sequence[int]) -> None:
    """Set the stored counts of courses to the true ones.

    Lock them in an earlier statement of the same transaction. Without it the count is of a
    snapshot that is older than the lock, and a right counter becomes wrong when somebody
    enrols at the same time.
    """
    Course.objects.filter(pk__in=course_keys).update(total_enrollments=true_count())
