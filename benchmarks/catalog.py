"""Read the first page of the catalog, with the most popular courses first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cachalot.api import invalidate
from cachalot.settings import cachalot_settings
from django.db.models import Count, Q, QuerySet

from benchmarks.counting import add_drift
from benchmarks.databases import (
    bare_driver,
    execute,
    insert_courses,
    insert_enrollments,
    insert_students,
    table_name,
    temporary_database,
)
from benchmarks.measuring import (
    FLOOR,
    PROJECT,
    Benchmark,
    Size,
    command_memory,
    run_rounds,
    timed_approach,
)
from courses.models import Course, Subject
from enrollments.managers import COUNTED_STATUSES
from enrollments.models import Enrollment

PAGE_SIZE = 51  # 50, and one that shows whether there is a next page
PAGES = 20  # in a round
ENROLLMENTS = 2  # per course


def measure_catalog(size: Size) -> list[Benchmark]:
    with temporary_database("catalog"), bare_driver() as driver:
        _insert_rows(size)
        approaches = [
            timed_approach(f"{FLOOR}: bare query", compile_bare_query(driver), calls=PAGES),
            timed_approach(f"{PROJECT}: by the column", list_by_column, calls=PAGES),
            timed_approach("annotated Count", list_by_annotation),
            timed_approach(
                "django-cachalot over the annotation, hit",
                list_by_annotation,
                calls=PAGES,
                context=filled_cachalot,
            ),
            timed_approach(
                "django-cachalot over the annotation, miss",
                list_by_annotation,
                context=empty_cachalot,
            ),
        ]
        title = f"catalog page of 50 by popularity, {size.catalog_courses:,} courses (pages)"
        benchmark = Benchmark("catalog", title, approaches)
        run_rounds(benchmark, rounds=size.rounds)
        add_drift()
        benchmark.memory = command_memory("rebuild_counts")
    return [benchmark]


def _insert_rows(size: Size) -> None:
    insert_students(ENROLLMENTS)
    Subject.objects.create(name="Any", slug="any")
    insert_courses(size.catalog_courses)
    execute(f"UPDATE {table_name(Course)} SET subject_id = 1")
    insert_enrollments(per_course=ENROLLMENTS)
    execute(f"ANALYZE TABLE {table_name(Course)}, {table_name(Enrollment)}")


@contextmanager
def empty_cachalot() -> Iterator[None]:
    cachalot_settings.load()
    try:
        invalidate(Course, Enrollment)
        yield
    finally:
        cachalot_settings.unload()


@contextmanager
def filled_cachalot() -> Iterator[None]:
    with empty_cachalot():
        list_by_annotation()
        yield


def compile_bare_query(driver: Any) -> Callable[[], None]:
    """Return a function that executes the compiled query of `list_by_column()`."""
    statement, params = _courses_by_column().query.sql_with_params()

    def fetch_page() -> None:
        with driver.cursor() as cursor:
            cursor.execute(statement, params)
            cursor.fetchall()
        driver.commit()

    return fetch_page


def list_by_column() -> list[Course]:
    return list(_courses_by_column())


def _courses_by_column() -> QuerySet:
    courses = Course.objects.select_related("subject")
    return courses.order_by("-total_enrollments", "-pk")[:PAGE_SIZE]


def list_by_annotation() -> list[Course]:
    counted = Count("enrollments", filter=Q(enrollments__status__in=COUNTED_STATUSES))
    courses = Course.objects.select_related("subject").annotate(number=counted)
    return list(courses.order_by("-number", "-pk")[:PAGE_SIZE])
