"""Enrollment rows: which of them count, and why they can't be written from here."""

from collections.abc import Callable
from typing import Any, NoReturn, Self

from django.db import models

# A row of any other status does not count. `EnrollmentQuerySet.counted()` is the rule;
# `Enrollment.is_counted` says the same of a row already read.
COUNTED_STATUSES = ("active", "completed")


class DirectWriteError(RuntimeError):
    """An enrollment row was about to be written without its course's counter.

    Call the service that the message names.
    """


def refused(operation: str, service: str) -> Callable[..., NoReturn]:
    """Return a method that stands in for `operation`, and names the service to call."""
    return _raises(
        operation,
        f"{operation}() would write enrollment rows past their course's counter: "
        f"call enrollments.services.{service} instead.",
    )


def refused_event(operation: str) -> Callable[..., NoReturn]:
    return _raises(
        operation,
        f"{operation}() would write the history of enrollments past them: the services add to "
        "it with each change, and enrollments.services.erase_student() takes a student out.",
    )


def _raises(operation: str, message: str) -> Callable[..., NoReturn]:
    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise DirectWriteError(message)

    method.__name__ = operation
    method.alters_data = True  # type: ignore[attr-defined]  # for templates
    return method


class EnrollmentQuerySet(models.QuerySet):
    def counted(self) -> Self:
        """Keep the rows that count towards their course's total."""
        return self.filter(status__in=COUNTED_STATUSES)

    create = refused("create", "enroll()")
    get_or_create = refused("get_or_create", "enroll()")
    update_or_create = refused("update_or_create", "enroll() or set_status()")
    bulk_create = refused("bulk_create", "enroll_many()")
    update = refused("update", "set_status() or unenroll_many()")
    bulk_update = refused("bulk_update", "register_many()")
    delete = refused("delete", "unenroll() or erase_student()")


class EnrollmentEventQuerySet(models.QuerySet):
    create = refused_event("create")
    get_or_create = refused_event("get_or_create")
    update_or_create = refused_event("update_or_create")
    bulk_create = refused_event("bulk_create")
    update = refused_event("update")
    bulk_update = refused_event("bulk_update")
    delete = refused_event("delete")
