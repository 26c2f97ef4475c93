"""What the services return and raise."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from courses.models import Course
from enrollments.models import Enrollment


class CourseFull(Exception):
    """The course has no free seat. Show the message to the student."""

    def __init__(self, course: Course) -> None:
        self.course = course
        reason = f"is full: all {course.capacity} seats are taken"
        if course.capacity == 0:
            reason = "is not open for enrollment"
        super().__init__(f"“{course.title}” {reason}.")


class NotEnrolled(Enrollment.DoesNotExist):
    """The student has no such enrollment in the course. Enroll the student first."""


class CourseCompleted(Exception):
    """The student has completed the course. Staff can withdraw them with `unenroll()`."""


class Outcome(StrEnum):
    """What a service did for one student."""

    CREATED = "created"  # inserted a row
    REENROLLED = "reenrolled"  # a withdrawn row counts again
    WITHDRAWN = "withdrawn"  # a counted row counts no longer
    UPDATED = "updated"  # changed status or dates, but not the count
    UNCHANGED = "unchanged"
    REJECTED = "rejected"  # no free seat


Outcomes = dict[Any, Outcome]  # by student key, in the order of the arguments


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What a bulk service did, in numbers of students."""

    created: int = 0
    reenrolled: int = 0
    withdrawn: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: tuple[Any, ...] = ()  # keys of the students without a seat, in the given order
    # The outcome of each student by key, in the given order. None unless it was requested.
    outcomes: Mapping[Any, Outcome] | None = field(default=None, repr=False)

    @property
    def changed(self) -> int:
        return self.created + self.reenrolled + self.withdrawn + self.updated

    @classmethod
    def from_outcomes(cls, outcomes: Outcomes, *, include_outcomes: bool) -> Self:
        counts = Counter(outcomes.values())
        return cls(
            created=counts[Outcome.CREATED],
            reenrolled=counts[Outcome.REENROLLED],
            withdrawn=counts[Outcome.WITHDRAWN],
            updated=counts[Outcome.UPDATED],
            unchanged=counts[Outcome.UNCHANGED],
            rejected=tuple(key for key, value in outcomes.items() if value is Outcome.REJECTED),
            outcomes=outcomes if include_outcomes else None,
        )
