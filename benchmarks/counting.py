"""Find the courses whose stored count is wrong, and correct them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.db import transaction

from benchmarks.databases import (
    bare_driver,
    execute,
    insert_courses,
    insert_enrollments,
    insert_students,
    temporary_database,
)
from benchmarks.measuring import (
    FLOOR,
    PROJECT,
    Benchmark,
    Size,
    run_rounds,
    timed_approach,
)
from courses.counts.drift import find_drift, rebuild
from courses.managers import true_count
from courses.models import Course

LOOP = "loop over courses, COUNT and save each"
LOCKING_LOOP = "loop over courses, lock, COUNT and save each"

GROUPED_SCAN = """
    SELECT course.id, course.total_enrollments, COALESCE(counts.true_count, 0)
    FROM courses_course AS course
    LEFT JOIN (
        SELECT course_id, COUNT(*) AS true_count FROM enrollments_enrollment
        WHERE status IN ('active', 'completed') GROUP BY course_id
    ) AS counts ON counts.course_id = course.id
    WHERE course.total_enrollments <> COALESCE(counts.true_count, 0)
"""
ENROLLMENTS = 400  # per course


def measure_counting(size: Size) -> list[Benchmark]:
    with temporary_database("counting"), bare_driver() as driver:
        insert_students(ENROLLMENTS)
        insert_courses(size.courses)
        insert_enrollments(per_course=ENROLLMENTS)
        scale = f"{size.courses:,} courses, {size.courses * ENROLLMENTS:,} rows, 1 % drifted"
        check = Benchmark(
            "check",
            f"check, {scale} (courses)",
            [
                timed_approach(name, function, items=size.courses, context=drifted_counts)
                for name, function in {
                    f"{FLOOR}: grouped scan": partial(grouped_scan, driver),
                    f"{PROJECT}: find_drift()": lambda: list(find_drift()),
                    "loop over courses, COUNT each": loop_and_compare,
                }.items()
            ],
        )
        correction = Benchmark(
            "rebuild",
            f"rebuild, {scale} (courses)",
            [
                timed_approach(
                    name,
                    function,
                    items=size.courses,
                    context=drifted_counts,
                    count_drift=partial(total_drift, driver),
                )
                for name, function in {
                    f"{FLOOR}: grouped scan, UPDATE by key": partial(scan_and_update, driver),
                    f"{PROJECT}: rebuild()": lambda: list(rebuild()),
                    LOOP: loop_and_save,
                    LOCKING_LOOP: loop_with_locks,
                    "one UPDATE with subquery": update_with_subquery,
                }.items()
            ],
        )
        run_rounds(check, correction, rounds=size.rounds)
    return [check, correction]


@contextmanager
def drifted_counts() -> Iterator[None]:
    add_drift()
    yield


def add_drift() -> None:
    """Add 1 to the stored count of every hundredth course."""
    execute(
        "UPDATE courses_course SET total_enrollments = total_enrollments + 1 WHERE id % 100 = 0"
    )


def total_drift(driver: Any) -> int:
    return sum(abs(stored - true) for _, stored, true in grouped_scan(driver))


def grouped_scan(driver: Any) -> list[tuple[int, int, int]]:
    """Return the id, the stored and the true count of each drifted course."""
    with driver.cursor() as cursor:
        cursor.execute(GROUPED_SCAN)
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
