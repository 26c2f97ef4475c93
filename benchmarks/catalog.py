"""The first page of the catalog, the most popular courses first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import Any

from cachalot.api import invalidate
from cachalot.settings import cachalot_settings
from django.db.models import Count, Q, QuerySet

from benchmarks.counting import move_counters
from benchmarks.data import (
    add_courses,
    add_rows,
    add_students,
    bare_driver,
    database,
    execute,
    table,
)
from benchmarks.measuring import FLOOR, OURS, Run, Way, Work, timed, timed_each
from benchmarks.memory import memory_of
from benchmarks.sizes import Size
from courses.models import Course, Subject
from enrollments.managers import COUNTED_STATUSES
from enrollments.models import Enrollment

PAGE = 51  # 50, and one to know whether there are more


def by_column() -> QuerySet:
    return Course.objects.select_related("subject").order_by("-total_enrollments", "-pk")[:PAGE]


def by_annotation() -> QuerySet:
    counted = Count("enrollments", filter=Q(enrollments__status__in=COUNTED_STATUSES))
    courses = Course.objects.select_related("subject").annotate(number=counted)
    return courses.order_by("-number", "-pk")[:PAGE]


def catalog(size: Size) -> Iterator[list[Work]]:
    with database("browsing"), bare_driver() as driver:
        add_students(1_000)
        Subject.objects.create(name="Any", slug="any")
        add_courses(Course, size.catalog)
        execute(f"UPDATE {table(Course)} SET subject_id = 1")
        courses = f"SELECT id FROM {table(Course)}"
        add_rows(Enrollment, courses=courses, each="course.id % 5", most=4, students=1_000)
        execute(f"ANALYZE TABLE {table(Course)}, {table(Enrollment)}")
        ways = {
            f"{FLOOR}, bare query": partial(pages, size, partial(fetch, driver, by_column())),
            f"{OURS}, by the column": partial(pages, size, lambda: list(by_column())),
            "annotated Count": partial(pages, size, lambda: list(by_annotation()), 1),
            "cachalot over the annotation, hit": partial(hits, size),
            "cachalot over the annotation, miss": misses,
        }
        title = f"catalog page of 50 by popularity, {size.catalog:,} courses (pages)"
        work = Work("catalog", title, [Way(name, run) for name, run in ways.items()])
        yield [work]
        move_counters(Course, +1)
        work.memory = memory_of("rebuild_counts")


def pages(size: Size, page: Callable[[], object], times: int | None = None) -> Run:
    return timed_each(repeat(page, times or size.pages))


def fetch(driver: Any, page: QuerySet) -> None:
    statement, values = page.query.sql_with_params()
    with driver.cursor() as cursor:
        cursor.execute(statement, values)
        cursor.fetchall()
    driver.commit()


@contextmanager
def cachalot() -> Iterator[None]:
    cachalot_settings.load()
    try:
        yield
    finally:
        cachalot_settings.unload()


def hits(size: Size) -> Run:
    with cachalot():
        list(by_annotation())
        return pages(size, lambda: list(by_annotation()))


def misses() -> Run:
    with cachalot():
        invalidate(Course, Enrollment)
        seconds = timed(lambda: list(by_annotation())).seconds
        return Run(seconds, 1, latencies=[seconds])
