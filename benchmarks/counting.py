"""Find the courses whose stored count is wrong, and correct them."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from django.core.management import call_command
from django.db import transaction
from django.db.models import Model

from benchmarks.databases import (
    bare_driver,
    course_model,
    execute,
    insert_courses,
    insert_enrollments,
    insert_students,
    table,
    temporary_database,
)
from benchmarks.measuring import (
    FLOOR,
    PROJECT,
    Approach,
    Benchmark,
    Size,
    run_rounds,
    timed_approach,
)
from benchmarks.models import ComputedEnrollment
from courses.counts.drift import find_drift, rebuild
from courses.managers import true_count
from courses.models import Course
from enrollments.models import Enrollment

LOOP = "loop over courses, COUNT and save each"

GROUPED_SCAN = """
    SELECT course.id, course.total_enrollments, COALESCE(counts.true_count, 0)
    FROM {course} AS course
    LEFT JOIN (
        SELECT course_id, COUNT(*) AS true_count FROM {enrollment}
        WHERE status IN ('active', 'completed') GROUP BY course_id
    ) AS counts ON counts.course_id = course.id
    WHERE course.total_enrollments <> COALESCE(counts.true_count, 0)
"""


def measure_counting(size: Size) -> list[Benchmark]:
    with temporary_database("counting"), bare_driver() as driver:
        insert_students(size.enrollments_per_course)
        for model in (Enrollment, ComputedEnrollment):
            insert_courses(course_model(model), size.courses)
            insert_enrollments(per_course=size.enrollments_per_course, model=model)
        scale = f"{size.courses:,} courses, {size.courses * size.enrollments_per_course:,} rows"
        check = Benchmark(
            "check",
            f"check, {scale}, 1 % drifted (courses)",
            [
                timed_approach(name, function, items=size.courses)
                for name, function in {
                    f"{FLOOR}: grouped scan": partial(grouped_scan, driver),
                    f"{PROJECT}: find_drift()": lambda: list(find_drift()),
                    "loop over courses, COUNT each": loop_and_compare,
                }.items()
            ],
        )
        add_drift(Course)
        run_rounds(check, rounds=size.rounds)
        correction = Benchmark(
            "rebuild",
            f"rebuild, {scale}, 1 % drifted (courses)",
            [
                _rebuild(
                    f"{FLOOR}: grouped scan, UPDATE by key", partial(scan_and_update, driver), size
                ),
                _rebuild(f"{PROJECT}: rebuild()", lambda: list(rebuild()), size),
                _rebuild(LOOP, loop_and_save, size),
                _rebuild("loop over courses, lock, COUNT and save each", loop_with_locks, size),
                _rebuild("one UPDATE with subquery", update_with_subquery, size),
                _rebuild(
                    "updatedata of django-computedfields", update_data, size, ComputedEnrollment
                ),
            ],
        )
        run_rounds(correction, rounds=size.rounds)
    return [check, correction]


def _rebuild(
    name: str, function: Callable[[], object], size: Size, model: type[Model] = Enrollment
) -> Approach:
    def count_drift() -> int:
        with bare_driver() as driver:
            return sum(abs(stored - true) for _, stored, true in grouped_scan(driver, model))

    return timed_approach(
        name,
        function,
        items=size.courses,
        prepare=partial(add_drift, course_model(model)),
        count_drift=count_drift,
    )


def add_drift(model: type[Model]) -> None:
    """Add 1 to the stored count of every hundredth course."""
    execute(
        f"UPDATE {table(model)} SET total_enrollments = total_enrollments + 1 WHERE id % 100 = 0"
    )


def grouped_scan(driver: Any, model: type[Model] = Enrollment) -> list[tuple[int, int, int]]:
    """Return the id, the stored and the true count of each drifted course."""
    with driver.cursor() as cursor:
        cursor.execute(
            GROUPED_SCAN.format(course=table(course_model(model)), enrollment=table(model))
        )
        drifted = cursor.fetchall()
    driver.commit()
    return drifted


def scan_and_update(driver: Any) -> None:
    drifted = grouped_scan(driver)
    with driver.cursor() as cursor:
        cursor.executemany(
            "UPDATE courses_course SET total_enrollments = %s WHERE id = %s",
            [(true, pk) for pk, _, true in drifted],
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
        # update() and not save(), because the project's save() keeps the counter.
        Course.objects.filter(pk=course.pk).update(
            total_enrollments=course.enrollments.counted().count()
        )


def loop_with_locks() -> None:
    """The loop that stays correct while others enroll, as `rebuild()` does."""
    for pk in Course.objects.values_list("pk", flat=True):
        with transaction.atomic():
            course = Course.objects.select_for_update().get(pk=pk)
            Course.objects.filter(pk=pk).update(
                total_enrollments=course.enrollments.counted().count()
            )


def update_with_subquery() -> None:
    Course.objects.update(total_enrollments=true_count())


def update_data() -> None:
    with open(os.devnull, "w") as devnull:
        call_command("updatedata", "benchmarks.ComputedCourse", stdout=devnull)
