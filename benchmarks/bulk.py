"""Enroll thousands of students in one course with one call."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import Model
from simple_history.utils import bulk_create_with_history

from benchmarks.databases import bare_driver, insert_students, new_course, temporary_database
from benchmarks.enrolling import disable_history, enroll_row_first
from benchmarks.measuring import (
    FLOOR,
    PROJECT,
    Approach,
    Benchmark,
    Size,
    run_rounds,
    timed_approach,
)
from benchmarks.models import PlainCourse, PlainEnrollment, TrackedEnrollment
from courses.models import Course
from enrollments.history import Origin, Source
from enrollments.services import enroll_many

STUDENTS = 20_000

ADD_TO_COUNTER = (
    "UPDATE courses_course SET total_enrollments = total_enrollments + %s WHERE id = %s"
)
INSERT_ENROLLMENT = (
    "INSERT INTO enrollments_enrollment (student_id, course_id, status, enrollment_date) "
    "VALUES (%s, %s, %s, %s)"
)
INSERT_EVENT = (
    "INSERT INTO enrollments_enrollmentevent (student_id, course_id, status, enrollment_date, "
    "action, created_at, source, actor) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
)


def measure_bulk(size: Size) -> list[Benchmark]:
    students = range(1, STUDENTS + 1)
    few_students = students[: size.one_by_one]
    with temporary_database("bulk"), bare_driver() as driver:
        insert_students(len(students))
        insert = partial(insert_rows, driver)
        insert_without_history = partial(insert_rows, driver, has_history=False)
        approaches = [
            _approach(f"{FLOOR}: multi-row INSERT", insert, students),
            _approach("multi-row INSERT, no history", insert_without_history, students),
            _approach(f"{PROJECT}: enroll_many()", enroll_with_service, students),
            _approach("enroll_many() without its history", enroll_without_history, students),
            _approach(
                "bulk_create_with_history of django-simple-history",
                enroll_with_simple_history,
                students,
                PlainCourse,
            ),
            _approach("bulk_create, count, save", bulk_create, students, PlainCourse),
            _approach(
                f"one by one ({len(few_students):,} of them)",
                enroll_one_by_one,
                few_students,
                PlainCourse,
            ),
        ]
        title = f"enroll {len(students):,} students in one call"
        benchmark = Benchmark("bulk", title, approaches)
        run_rounds(benchmark, rounds=size.rounds)
    return [benchmark]


def _approach(
    name: str,
    enroll: Callable[[range, int], object],
    students: range,
    model: type[Model] = Course,
) -> Approach:
    def enroll_in_new_course() -> None:
        enroll(students, new_course(model))

    return timed_approach(name, enroll_in_new_course, items=len(students))


def insert_rows(driver: Any, students: range, course: int, *, has_history: bool = True) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    with driver.cursor() as cursor:
        cursor.execute(ADD_TO_COUNTER, (len(students), course))
        # The driver sends many rows at a time, because all values are placeholders.
        cursor.executemany(
            INSERT_ENROLLMENT, [(student, course, "active", now) for student in students]
        )
        if has_history:
            cursor.executemany(
                INSERT_EVENT,
                [
                    (student, course, "active", now, "enrolled", now, "import", "benchmarks")
                    for student in students
                ],
            )
    driver.commit()


def enroll_with_service(students: range, course: int) -> None:
    enroll_many(course=course, students=students, origin=Origin(Source.IMPORT, "benchmarks"))


def enroll_without_history(students: range, course: int) -> None:
    with disable_history():
        enroll_with_service(students, course)


@transaction.atomic
def enroll_with_simple_history(students: range, course: int) -> None:
    PlainCourse.objects.filter(pk=course).update(total_enrollments=len(students))
    bulk_create_with_history(
        [TrackedEnrollment(student_id=student, course_id=course) for student in students],
        TrackedEnrollment,
        batch_size=1_000,
        default_change_reason="import",
    )


@transaction.atomic
def bulk_create(students: range, course_pk: int) -> None:
    # bulk_create() sends no post_save, so the code has to count once by itself.
    course = PlainCourse.objects.get(pk=course_pk)
    PlainEnrollment.objects.bulk_create(
        [PlainEnrollment(student_id=student, course=course) for student in students],
        batch_size=1_000,
    )
    course.total_enrollments = course.plainenrollment_set.filter(status="active").count()
    course.save()


def enroll_one_by_one(students: range, course: int) -> None:
    for student in students:
        enroll_row_first(student, course)
