"""The services inside a caller's transaction that has read already, at both isolation levels."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction

from courses.models import Course
from courses.transactions import retry_transaction
from enrollments.models import Enrollment
from enrollments.services import (
    BulkResult,
    CourseFull,
    enroll,
    enroll_many,
    erase_student,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from tests.conftest import drifts
from tests.support.threads import ConcurrentThread

Make = Callable[..., Any]
pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True, params=["read committed", "repeatable read"])
def isolation(request: pytest.FixtureRequest) -> Iterator[str]:
    options = connection.settings_dict["OPTIONS"]
    connection.close()
    before, options["isolation_level"] = options["isolation_level"], request.param
    yield request.param
    connection.close()
    options["isolation_level"] = before
    assert drifts() == {}


def after_reading(meanwhile: Callable[[], Any], then: Callable[[], Any]) -> Any:
    """Read all in a transaction, let somebody else do something, go on in the transaction."""
    with transaction.atomic():
        list(Course.objects.with_drift())
        list(Enrollment.objects.all())
        ConcurrentThread(meanwhile).start_and_finish()
        return then()


def test_enroll_sees_who_was_enrolled_meanwhile(course: Course, student: Any) -> None:
    arguments = {"student": student.pk, "course": course.pk}
    _, changed = after_reading(lambda: enroll(**arguments), lambda: enroll(**arguments))
    assert changed is False


def test_unenroll_sees_who_was_enrolled_meanwhile(course: Course, student: Any) -> None:
    arguments = {"student": student.pk, "course": course.pk}
    assert after_reading(lambda: enroll(**arguments), lambda: unenroll(**arguments)) is True


def test_unenroll_sees_who_left_meanwhile(course: Course, student: Any) -> None:
    arguments = {"student": student.pk, "course": course.pk}
    enroll(**arguments)
    assert after_reading(lambda: unenroll(**arguments), lambda: unenroll(**arguments)) is False


def test_enroll_takes_up_who_left_meanwhile(course: Course, student: Any) -> None:
    arguments = {"student": student.pk, "course": course.pk}
    enroll(**arguments)
    assert after_reading(lambda: unenroll(**arguments), lambda: enroll(**arguments))[1] is True


def test_a_seat_that_was_taken_meanwhile_is_taken(make_course: Make, make_students: Make) -> None:
    course = make_course(capacity=1)
    first, second = make_students(2)
    with pytest.raises(CourseFull):
        after_reading(
            lambda: enroll(student=first, course=course),
            lambda: enroll(student=second, course=course),
        )


def test_set_status_sees_the_status_of_now(course: Course, student: Any) -> None:
    arguments = {"student": student.pk, "course": course.pk}
    enroll(**arguments)
    changed = after_reading(
        lambda: set_status(**arguments, status="withdrawn"),
        lambda: set_status(**arguments, status="completed"),
    )
    assert changed is True
    assert Enrollment.objects.get().status == "completed"


def test_transfer_sees_who_was_enrolled_meanwhile(make_course: Make, student: Any) -> None:
    source, target = make_course(), make_course()
    row, changed = after_reading(
        lambda: enroll(student=student, course=source),
        lambda: transfer(student=student, source=source, target=target),
    )
    assert (row.course, changed) == (target, True)


def test_bulk_services_see_who_came_and_went_meanwhile(course: Course, make_students: Make) -> None:
    students = make_students(4)
    enroll_many(course=course, students=students[:2])

    def meanwhile() -> None:
        unenroll(student=students[0], course=course)
        enroll(student=students[2], course=course)

    result = after_reading(meanwhile, lambda: enroll_many(course=course, students=students))
    assert result == BulkResult(created=1, reenrolled=1, unchanged=2)

    def back() -> None:
        unenroll(student=students[0], course=course)

    result = after_reading(back, lambda: unenroll_many(course=course, students=students))
    assert result == BulkResult(withdrawn=3, unchanged=1)


def test_erasing_moves_the_counter_by_what_the_row_is_now(course: Course, student: Any) -> None:
    enroll(student=student, course=course)
    erased = after_reading(
        lambda: unenroll(student=student, course=course),
        lambda: erase_student(student=student),
    )
    assert erased == 1


def test_a_counter_too_low_is_recounted_to_what_is_there_now(
    course: Course, make_students: Make
) -> None:
    students = make_students(3)
    enroll_many(course=course, students=students[:2])

    def meanwhile() -> None:
        enroll(student=students[2], course=course)
        Course.objects.update(total_enrollments=0)

    assert after_reading(meanwhile, lambda: unenroll(student=students[0], course=course)) is True
    assert Course.objects.get().total_enrollments == 2


def test_the_counter_goes_back_with_the_rows(course: Course, make_students: Make) -> None:
    first, second = make_students(2)

    class Undo(Exception):
        pass

    def fails_afterwards() -> None:
        enroll(student=second, course=course)
        raise Undo

    with pytest.raises(Undo):
        after_reading(lambda: enroll(student=first, course=course), fails_afterwards)
    assert Enrollment.objects.get().student == first


def test_a_hook_after_the_commit_reads_as_its_own_transaction_does(
    course: Course, make_students: Make
) -> None:
    students = make_students(2)
    enroll_many(course=course, students=students)
    answers = []

    def hook() -> None:
        answers.append(
            after_reading(
                lambda: unenroll(student=students[0], course=course),
                lambda: unenroll(student=students[0], course=course),
            )
        )

    retry_transaction()(lambda: transaction.on_commit(hook))()
    assert answers == [False]
