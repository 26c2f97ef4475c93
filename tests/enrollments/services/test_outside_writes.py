"""What services do about writes that bypass them."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, OperationalError, connection

from courses.models import Course
from courses.transactions import is_transient
from enrollments.models import Enrollment
from enrollments.services import (
    enroll,
    enroll_many,
    erase_student,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from tests.support.enrollments import (
    MakeCourse,
    MakeStudents,
    set_stored_count,
    stored_count,
)


@pytest.mark.parametrize(
    "withdraw",
    [
        lambda student, course, _: unenroll(student=student, course=course),
        lambda student, course, _: unenroll_many(course=course, students=[student]),
        lambda student, course, _: set_status(student=student, course=course, status="withdrawn"),
        lambda student, course, target: transfer(student=student, source=course, target=target),
        lambda student, course, _: erase_student(student=student),
    ],
    ids=["unenroll", "unenroll_many", "set_status", "transfer", "erase_student"],
)
def test_a_counter_that_would_become_negative_is_recounted_and_logged(
    make_students: MakeStudents,
    make_course: MakeCourse,
    caplog: pytest.LogCaptureFixture,
    withdraw: Callable[[User, Course, Course], object],
) -> None:
    course, target = make_course(), make_course()
    students = make_students(3)
    enroll_many(course=course, students=students)
    set_stored_count(course, 0)
    with caplog.at_level(logging.ERROR):
        withdraw(students[0], course, target)
    assert stored_count(course) == 2
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"course {course.pk}" in record.getMessage()


@pytest.mark.parametrize(
    "write",
    [
        lambda student, course: enroll(student=student, course=course),
        lambda student, course: enroll_many(course=course, students=[student]),
        lambda student, course: erase_student(student=student),
    ],
    ids=["enroll", "enroll_many", "erase_student"],
)
def test_a_row_erased_after_it_was_read_is_a_transient_error(
    student: User, course: Course, write: Callable[[User, Course], object]
) -> None:
    """Only another node of a cluster can erase it. The counter must not follow the lost row."""
    enroll(student=student, course=course)
    unenroll(student=student, course=course)

    def erase_row_first(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(("UPDATE", "DELETE")) and "enrollments_enrollment" in sql:
            execute("DELETE FROM enrollments_enrollment", (), False, context)
        return execute(sql, params, many, context)

    with (
        connection.execute_wrapper(erase_row_first),
        pytest.raises(OperationalError) as exception,
    ):
        write(student, course)
    assert is_transient(exception.value)
    assert Enrollment.objects.get().status == "withdrawn"


@pytest.mark.parametrize("number", [1, 2], ids=["one student", "two students"])
def test_a_row_inserted_without_the_course_lock_raises_integrity_error(
    make_students: MakeStudents, course: Course, number: int
) -> None:
    students = make_students(number)
    inserted_rows: list[None] = []

    def insert_row_first(execute: Any, sql: str, *arguments: Any) -> Any:
        is_insert = sql.startswith("INSERT") and "enrollments_enrollment" in sql
        if is_insert and not inserted_rows:
            inserted_rows.append(None)
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO enrollments_enrollment "
                    "(student_id, course_id, status, enrollment_date) "
                    "VALUES (%s, %s, 'active', '2026-01-01')",
                    (students[0].pk, course.pk),
                )
        return execute(sql, *arguments)

    with (
        connection.execute_wrapper(insert_row_first),
        pytest.raises(IntegrityError, match=rf"course {course.pk}\b.*lock"),
    ):
        enroll_many(course=course, students=students)
    assert not Enrollment.objects.exists()
