from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.db.models import Count, F, Value
from django.test.utils import CaptureQueriesContext

from courses.models import Course
from enrollments.services import enroll_many, set_status, unenroll
from tests.conftest import drifts


@pytest.fixture
def courses(
    make_course: Callable[..., Course], make_students: Callable[[int], list[Any]]
) -> list[Course]:
    """Four courses with 0, 1, 2 and 3 rows that count; the last has a withdrawn one more."""
    students = make_students(4)
    made = [make_course(title=f"{number} rows") for number in range(4)]
    for number, course in enumerate(made):
        enroll_many(course=course, students=students[:number])
    enroll_many(course=made[3], students=students)
    unenroll(student=students[0], course=made[3])
    set_status(student=students[1], course=made[3], status="completed")
    return made


def damage(course: Course, stored: int) -> None:
    Course.objects.filter(pk=course.pk).update(total_enrollments=stored)


def test_true_counts_are_those_of_the_rows(courses: list[Course]) -> None:
    counts = Course.objects.with_true_count().values_list("title", "true_count")
    assert dict(counts) == {"0 rows": 0, "1 rows": 1, "2 rows": 2, "3 rows": 3}
    assert not Course.objects.drifted().exists()


def test_drift_is_stored_minus_true_in_both_directions(courses: list[Course]) -> None:
    none, one, two, three = courses
    damage(none, 4)
    damage(one, 0)
    damage(three, 1)
    assert drifts() == {"0 rows": 4, "1 rows": -1, "3 rows": -2}
    assert Course.objects.with_drift().get(pk=two.pk).drift == 0


def test_one_query_whatever_the_number_of_courses(
    courses: list[Course], make_course: Callable[..., Course]
) -> None:
    for _ in range(2):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            seen = [(course.true_count, course.drift) for course in Course.objects.with_drift()]
        assert len(queries) == 1
        assert len(seen) == Course.objects.count()
        make_course()


def test_they_chain_with_all_that_querysets_do(courses: list[Course]) -> None:
    damage(courses[1], 9)
    damage(courses[2], 0)
    found = Course.objects.filter(title__endswith="rows").drifted()
    assert list(found.order_by("drift").values_list("drift", flat=True)) == [-2, 8]
    assert found.count() == 2
    assert found.filter(drift__gt=0).get() == courses[1]
    assert found.with_drift().with_true_count().drifted().count() == 2
    assert list(found.order_by("pk").reverse()[:1]) == [courses[2]]
    assert found.exclude(pk=courses[1].pk).get() == courses[2]
    # Joins and grouping elsewhere in the query do not multiply the count.
    joined = Course.objects.with_true_count().annotate(rows=Count("enrollments"))
    assert {(course.true_count, course.rows) for course in joined} == {
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 4),
    }
    assert Course.objects.annotate(one=Value(1)).drifted().values_list("one", flat=True)[0] == 1
    assert Course.objects.with_true_count().filter(true_count=F("total_enrollments")).count() == 2


def test_annotations_of_the_same_name_are_not_trusted(courses: list[Course]) -> None:
    damage(courses[1], 9)
    for theirs in (
        Course.objects.annotate(true_count=F("total_enrollments")),
        Course.objects.annotate(true_count=Value(0), drift=Value(0)),
    ):
        assert theirs.drifted().get().drift == 8


def test_they_are_live(courses: list[Course]) -> None:
    queryset = Course.objects.drifted()
    assert list(queryset.all()) == []
    with connection.cursor() as cursor:
        cursor.execute("UPDATE courses_course SET total_enrollments = 5 WHERE title = '0 rows'")
    assert list(queryset.all()) == [courses[0]]


def test_the_true_count_is_read_from_the_index(courses: list[Course]) -> None:
    plan = Course.objects.with_true_count().filter(pk=courses[0].pk).explain()
    assert "enrollment_course_status" in plan
