from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError
from prometheus_client import REGISTRY

from courses.transactions import retry_transaction
from enrollments.services import CourseFull, enroll, enroll_many

Make = Callable[..., Any]


def increase(name: str, work: Callable[[], Any]) -> float:
    """Return by how much `work` increases a counter."""
    start = REGISTRY.get_sample_value(f"courses_{name}_total")
    work()
    return REGISTRY.get_sample_value(f"courses_{name}_total") - start


def test_rejected_enrollments_are_counted(make_course: Make, make_students: Make) -> None:
    course, students = make_course(capacity=1), make_students(4)
    enroll(student=students[0], course=course)

    def enroll_in_full_course() -> None:
        with pytest.raises(CourseFull):
            enroll(student=students[1], course=course)

    assert increase("rejections", enroll_in_full_course) == 1
    assert increase("rejections", lambda: enroll_many(course=course, students=students)) == 3
    assert increase("rejections", lambda: enroll(student=students[0], course=course)) == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("code", "deadlocks"), [(1213, 2), (1205, 0)])
def test_retries_and_deadlocks_are_counted(code: int, deadlocks: int) -> None:
    def fail_twice() -> None:
        errors = [OperationalError(code, "conflict")] * 2

        def work() -> None:
            if errors:
                raise errors.pop()

        retry_transaction()(work)()

    assert increase("retries", fail_twice) == 2
    assert increase("deadlocks", fail_twice) == deadlocks
