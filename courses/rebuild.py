"""Finding drift without locks, and correcting it without stopping anybody."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from courses.models import Course
from courses.querysets import CourseQuerySet
from courses.transactions import in_transaction

BATCH_SIZE = 1_000  # courses looked at in one query


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
    a batch in one transaction. A course is yielded after its correction is committed.
    Run it outside a transaction, so that locks are held for one batch only.
    """
    for batch in _drifted_batches(courses, batch_size, looked_at):
        yield from _correct([found.course_id for found in batch])


def _drifted_batches(
    courses: CourseQuerySet | None,
    batch_size: int,
    looked_at: Callable[[int], object] | None,
) -> Iterator[list[Drift]]:
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    if courses is None:
        courses = Course.objects.all()
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


@in_transaction
def _correct(course_ids: Sequence[int]) -> list[Drift]:
    courses = Course.objects.filter(pk__in=course_ids).order_by("pk")
    before = list(courses.select_for_update())
    courses.order_by().recount()
    # Read with a lock again: under REPEATABLE READ a plain read may be of before.
    after = dict(courses.select_for_update().values_list("pk", "total_enrollments"))
    found = [
        Drift(course.pk, course.title, course.total_enrollments, after[course.pk])
        for course in before
    ]
    return [course for course in found if course.drift]
