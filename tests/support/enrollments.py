"""Names shared by the tests of enrollments."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from django.contrib.auth import get_user_model
from django.db import transaction

from courses.models import Course
from enrollments.history import Origin, Source
from enrollments.models import EnrollmentEvent

User = get_user_model()
# The types of the factory fixtures.
MakeCourse = Callable[..., Course]
MakeStudents = Callable[[int], list[User]]

MISSING_PK = User._meta.pk.to_python(10**8)  # no user and no course has this primary key
BY_ANNA = Origin(Source.ADMIN, "anna")


class _Rollback(Exception):
    pass


@contextmanager
def rolled_back() -> Iterator[None]:
    """Run the body in an atomic block that ends with an exception."""
    with suppress(_Rollback), transaction.atomic():
        yield
        raise _Rollback


def stored_count(course: Course) -> int:
    return Course.objects.values_list("total_enrollments", flat=True).get(pk=course.pk)


def set_stored_count(course: Course, count: int) -> None:
    """Give a course a wrong counter, as SQL from outside the project does."""
    Course.objects.filter(pk=course.pk).update(total_enrollments=count)


def recorded_actions() -> list[str]:
    """Return the actions of all enrollment events, oldest first."""
    return list(EnrollmentEvent.objects.order_by("pk").values_list("action", flat=True))


def recorded_origins() -> set[tuple[str, str]]:
    """Return source and actor of all enrollment events."""
    return set(EnrollmentEvent.objects.values_list("source", "actor"))
