"""Thousands of students in one call."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import Model
from simple_history.utils import bulk_create_with_history

from benchmarks.data import add_students, bare_driver, database
from benchmarks.enrolling import new_course, no_history, row_first
from benchmarks.measuring import FLOOR, OURS, Run, Way, Work, timed
from benchmarks.models import PlainCourse, PlainEnrollment, TrackedEnrollment
from benchmarks.sizes import Size
from courses.models import Course
from enrollments.history import Origin, Source
from enrollments.services import enroll_many

MOVE_COUNTER = "UPDATE courses_course SET total_enrollments = total_enrollments + %s WHERE id = %s"


def many(size: Size) -> Iterator[list[Work]]:
    with database("many"), bare_driver() as driver, ExitStack() as stack:
        add_students(size.many)
        students = range(1, size.many + 1)
        enroll = row_first(stack)

        def one_by_one(course: int) -> None:
            for student in students[: size.one_by_one]:
                enroll(student, course)

        def ours(course: int) -> None:
            origin = Origin(Source.IMPORT, "benchmarks")
            enroll_many(course=course, students=students, origin=origin)

        def without_history(course: int) -> None:
            with no_history():
                ours(course)

        def run(model: type[Model], work: Callable[[int], object], done: int = size.many) -> Run:
            return timed(partial(work, new_course(model)), done=done)

        ways = {
            f"{FLOOR}, multi-row INSERT": partial(run, Course, partial(insert, driver, students)),
            "multi-row INSERT, no history": partial(
                run, Course, partial(insert, driver, students, history=False)
            ),
            "LOAD DATA, no history": partial(run, Course, partial(load, driver, students)),
            f"{OURS}, enroll_many()": partial(run, Course, ours),
            "enroll_many() without its history": partial(run, Course, without_history),
            "bulk_create_with_history of django-simple-history": partial(
                run, PlainCourse, partial(tracked, students)
            ),
            "bulk_create, count, save": partial(run, PlainCourse, partial(bulk_create, students)),
            f"one by one ({size.one_by_one:,} of them)": partial(
                run, PlainCourse, one_by_one, size.one_by_one
            ),
        }
        title = f"enroll {size.many:,} students in one call"
        yield [Work("many", title, [Way(name, call) for name, call in ways.items()])]


def insert(driver: Any, students: range, course: int, *, history: bool = True) -> None:
    with driver.cursor() as cursor:
        cursor.execute(MOVE_COUNTER, (len(students), course))
        now = datetime.now(UTC).replace(tzinfo=None)
        # Any value but %s, and the driver would send row by row.
        cursor.executemany(
            "INSERT INTO enrollments_enrollment (student_id, course_id, status, enrollment_date) "
            "VALUES (%s, %s, %s, %s)",
            [(student, course, "active", now) for student in students],
        )
        if history:
            cursor.executemany(
                "INSERT INTO enrollments_enrollmentevent (student_id, course_id, status, "
                "enrollment_date, action, created_at, source, actor) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    (student, course, "active", now, "enrolled", now, "import", "benchmarks")
                    for student in students
                ],
            )
    driver.commit()


def load(driver: Any, students: range, course: int) -> None:
    with tempfile.TemporaryDirectory() as folder, driver.cursor() as cursor:
        path = Path(folder, "students")
        path.write_text("".join(f"{student}\n" for student in students))
        cursor.execute(MOVE_COUNTER, (len(students), course))
        cursor.execute(
            "LOAD DATA LOCAL INFILE %s INTO TABLE enrollments_enrollment (student_id) "
            "SET course_id = %s, status = 'active', enrollment_date = NOW(6)",
            (str(path), course),
        )
    driver.commit()


@transaction.atomic
def bulk_create(students: range, course_key: int) -> None:
    # It sends no post_save: the receiver's recount is done by hand, once.
    course = PlainCourse.objects.get(pk=course_key)
    PlainEnrollment.objects.bulk_create(
        [PlainEnrollment(student_id=student, course=course) for student in students],
        batch_size=1_000,
    )
    course.total_enrollments = course.enrollments.filter(status="active").count()
    course.save()


@transaction.atomic
def tracked(students: range, course: int) -> None:
    PlainCourse.objects.filter(pk=course).update(total_enrollments=len(students))
    bulk_create_with_history(
        [TrackedEnrollment(student_id=student, course_id=course) for student in students],
        TrackedEnrollment,
        batch_size=1_000,
        default_change_reason="import",
    )
