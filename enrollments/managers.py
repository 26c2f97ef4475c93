"""Querysets of enrollments and their history: the rule of what counts, and the write guard."""

from collections.abc import Callable
from typing import Any, NoReturn, Self

from django.db import models

# Rows of any other status do not count. `EnrollmentQuerySet.counted()` is the rule, and
# `Enrollment.is_counted` is the same rule for a row in memory.
COUNTED_STATUSES = ("active", "completed")


class DirectWriteError(RuntimeError):
    """Code tried to write an enrollment, or its history, without the services.

    Call the service that the message names.
    """


def forbid_write(operation: str, service: str) -> Callable[..., NoReturn]:
    """Return a method that replaces `operation` and raises DirectWriteError."""
    return _raise_on_call(
        operation,
        f"{operation}() would write enrollments without the counter of their course. "
        f"Call enrollments.services.{service} instead.",
    )


def forbid_event_write(operation: str) -> Callable[..., NoReturn]:
    return _raise_on_call(
        operation,
        f"{operation}() would change the history of enrollments. The services add to it with "
        "each change, and enrollments.services.erase_student() removes a student from it.",
    )


def _raise_on_call(operation: str, message: str) -> Callable[..., NoReturn]:
    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise DirectWriteError(message)

    method.__name__ = operation
    method.alters_data = True  # type: ignore[attr-defined]  # templates must not call it
    return method


class EnrollmentQuerySet(models.QuerySet):
    """Enrollments. Writing methods raise DirectWriteError."""

    def counted(self) -> Self:
        """Keep the rows that count toward the total of their course."""
        return self.filter(status__in=COUNTED_STATUSES)

    create = forbid_write("create", "enroll()")
    get_or_create = forbid_write("get_or_create", "enroll()")
    update_or_create = forbid_write("update_or_create", "enroll() or set_status()")
    bulk_create = forbid_write("bulk_create", "enroll_many()")
    update = forbid_write("update", "set_status() or unenroll_many()")
    bulk_update = forbid_write("bulk_update", "register_many()")
    delete = forbid_write("delete", "unenroll() or erase_student()")


class EnrollmentEventQuerySet(models.QuerySet):
    """The history. Writing methods raise DirectWriteError."""

    create = forbid_event_write("create")
    get_or_create = forbid_event_write("get_or_create")
    update_or_create = forbid_event_write("update_or_create")
    bulk_create = forbid_event_write("bulk_create")
    update = forbid_event_write("update")
    bulk_update = forbid_event_write("bulk_update")
    delete = forbid_event_write("delete")
