"""Finding the courses whose stored count is wrong, and correcting them."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from django.core.management import call_command
from django.db import transaction
from django.db.models import Model

from benchmarks.data import (
    add_courses,
    add_rows,
    add_students,
    bare_driver,
    database,
    execute,
    table,
)
from benchmarks.measuring import FLOOR, OURS, Run, Way, Work, timed
from benchmarks.models import ComputedCourse, ComputedEnrollment
from benchmarks.sizes import Size
from courses.counts.drift import find_drift, rebuild
from courses.managers import true_count
from courses.models import Course
from enrollments.models import Enrollment

GROUPED_SCAN = """
    SELECT course.id, course.title, course.total_enrollments, COALESCE(found.counted, 0)
    FROM {course} AS course
    LEFT JOIN (
        SELECT course_id, COUNT(*) AS counted FROM {row}
        WHERE status IN ('active', 'completed') GROUP BY course_id
    ) AS found ON found.course_id = course.id
    WHERE course.total_enrollments <> COALESCE(found.counted, 0)
"""
ROW = "student_id, course_id, status, enrollment_date, withdrawal_date"
DRIFTED = "id % 100 = 0"


def counting(size: Size) -> Iterator[list[Work]]:
    with database("counting"), bare_driver() as driver:
        each = size.rows // size.courses
        students = each * 20
        add_students(students)
        add_courses(Course, size.courses)
        add_rows(
            Enrollment, courses=f"SELECT id FROM {table(Course)}", most=each, students=students
        )
        execute(
            f"INSERT INTO {table(ComputedCourse)} (id, title, slug, total_enrollments) "
            f"SELECT id, title, slug, total_enrollments FROM {table(Course)}",
            f"INSERT INTO {table(ComputedEnrollment)} ({ROW}) "
            f"SELECT {ROW} FROM {table(Enrollment)}",
        )
        scale = f"{size.courses:,} courses, {size.rows:,} rows"
        check = {
            f"{FLOOR}, grouped scan": partial(grouped_scan, driver),
            f"{OURS}, find_drift()": lambda: list(find_drift()),
            "loop over courses, COUNT each": loop_and_compare,
        }
        correct = {
            f"{FLOOR}, grouped scan, UPDATE by key": partial(scan_and_update, driver),
            f"{OURS}, rebuild()": lambda: list(rebuild()),
            "loop over courses, COUNT and save each": loop_and_save,
            "loop over courses, lock, COUNT and save each": loop_with_locks,
            "one UPDATE with subquery": lambda: Course.objects.update(
                total_enrollments=true_count()
            ),
        }
        yield [
            Work(
                "check",
                f"check, {scale} (courses)",
                [Way(name, partial(checked, call, size)) for name, call in check.items()],
            ),
            Work(
                "rebuild",
                f"rebuild, {scale}, 1 % drifted (courses)",
                [
                    *(Way(name, partial(rebuilt, call, size)) for name, call in correct.items()),
                    Way(
                        "django-computedfields' updatedata",
                        partial(rebuilt, update_data, size, ComputedCourse, ComputedEnrollment),
                    ),
                ],
            ),
        ]


def checked(call: Callable[[], object], size: Size) -> Run:
    move_counters(Course, +1)
    run = timed(call, done=size.courses)
    move_counters(Course, -1)
    return run


def rebuilt(
    call: Callable[[], object],
    size: Size,
    course: type[Model] = Course,
    row: type[Model] = Enrollment,
) -> Run:
    move_counters(course, +1)
    run = timed(call, done=size.courses)
    with bare_driver() as driver:
        left = grouped_scan(driver, course, row)
    return Run(run.seconds, run.done, drift=sum(abs(stored - true) for *_, stored, true in left))


def move_counters(course: type[Model], by: int) -> None:
    execute(
        f"UPDATE {table(course)} SET total_enrollments = total_enrollments + {by} WHERE {DRIFTED}"
    )


def grouped_scan(
    driver: Any, course: type[Model] = Course, row: type[Model] = Enrollment
) -> list[Any]:
    with driver.cursor() as cursor:
        cursor.execute(GROUPED_SCAN.format(course=table(course), row=table(row)))
        found = cursor.fetchall()
    driver.commit()
    return found


def scan_and_update(driver: Any) -> None:
    found = grouped_scan(driver)
    with driver.cursor() as cursor:
        cursor.executemany(
            "UPDATE courses_course SET total_enrollments = %s WHERE id = %s",
            [(true, key) for key, _, _, true in found],
        )
    driver.commit()


def loop_and_compare() -> list[Course]:
    return [
        course
        for course in Course.objects.all()
        if course.total_enrollments != course.enrollments.counted().count()
    ]


def loop_and_save() -> None:
    for course in Course.objects.all():
        # The project's own save() would keep the counter.
        Course.objects.filter(pk=course.pk).update(
            total_enrollments=course.enrollments.counted().count()
        )


def loop_with_locks() -> None:
    """The loop that is right while others enroll, as `rebuild()` is."""
    for key in Course.objects.values_list("pk", flat=True):
        with transaction.atomic():
            course = Course.objects.select_for_update().get(pk=key)
            Course.objects.filter(pk=key).update(
                total_enrollments=course.enrollments.counted().count()
            )


def update_data() -> None:
    with open(os.devnull, "w") as nowhere:
        call_command("updatedata", "benchmarks.ComputedCourse", stdout=nowhere)
