"""with_true_count(), with_drift() and drifted()."""

import pytest
from django.db import connection
from django.db.models import Count, F, Value
from django.test.utils import CaptureQueriesContext

from courses.models import Course
from enrollments.services import enroll_many, set_status, unenroll
from tests.support.counts import drift_by_title
from tests.support.enrollments import MakeCourse, MakeStudents, set_stored_count


@pytest.fixture
def courses(make_course: MakeCourse, make_students: MakeStudents) -> list[Course]:
    """Courses with a true count of 0, 1, 2 and 3. The last also has a withdrawn row."""
    students = make_students(4)
    courses = [make_course(title=f"{number} counted") for number in range(4)]
    for number, course in enumerate(courses):
        enroll_many(course=course, students=students[:number])
    enroll_many(course=courses[3], students=students)
    unenroll(student=students[0], course=courses[3])
    set_status(student=students[1], course=courses[3], status="completed")
    return courses


def test_true_count_is_the_number_of_counted_rows(courses: list[Course]) -> None:
    counts = Course.objects.with_true_count().values_list("title", "true_count")
    assert dict(counts) == {"0 counted": 0, "1 counted": 1, "2 counted": 2, "3 counted": 3}
    assert not Course.objects.drifted().exists()


def test_drift_is_the_stored_count_minus_the_true_count(courses: list[Course]) -> None:
    set_stored_count(courses[0], 4)
    set_stored_count(courses[1], 0)
    set_stored_count(courses[3], 1)
    assert drift_by_title() == {"0 counted": 4, "1 counted": -1, "3 counted": -2}
    assert Course.objects.with_drift().get(pk=courses[2].pk).drift == 0


def test_one_query_reads_any_number_of_courses(
    courses: list[Course], make_course: MakeCourse
) -> None:
    for _ in range(2):
        with CaptureQueriesContext(connection) as queries:
            counts = [(course.true_count, course.drift) for course in Course.objects.with_drift()]
        assert len(queries) == 1
        assert len(counts) == Course.objects.count()
        make_course()


def test_results_are_read_from_the_database_every_time(courses: list[Course]) -> None:
    drifted_courses = Course.objects.drifted()
    assert list(drifted_courses.all()) == []
    with connection.cursor() as cursor:
        cursor.execute("UPDATE courses_course SET total_enrollments = 5 WHERE title = '0 counted'")
    assert list(drifted_courses.all()) == [courses[0]]


def test_the_true_count_is_read_from_an_index(courses: list[Course]) -> None:
    plan = Course.objects.with_true_count().filter(pk=courses[0].pk).explain()
    assert "enrollment_course_status" in plan


class TestChaining:
    def test_drifted_courses_can_be_filtered_ordered_and_sliced(
        self, courses: list[Course]
    ) -> None:
        set_stored_count(courses[1], 9)
        set_stored_count(courses[2], 0)
        drifted_courses = Course.objects.filter(title__endswith="counted").drifted()
        assert drifted_courses.count() == 2
        drifts = drifted_courses.order_by("drift").values_list("drift", flat=True)
        assert list(drifts) == [-2, 8]
        assert drifted_courses.filter(drift__gt=0).get() == courses[1]
        assert drifted_courses.exclude(pk=courses[1].pk).get() == courses[2]
        assert list(drifted_courses.order_by("pk").reverse()[:1]) == [courses[2]]
        assert drifted_courses.with_drift().with_true_count().drifted().count() == 2

    def test_annotations_of_the_caller_are_kept(self, courses: list[Course]) -> None:
        set_stored_count(courses[1], 9)
        drifted_courses = Course.objects.annotate(one=Value(1)).drifted()
        assert drifted_courses.values_list("one", flat=True).get() == 1

    def test_filters_can_compare_the_true_count(self, courses: list[Course]) -> None:
        set_stored_count(courses[1], 9)
        correct_courses = Course.objects.with_true_count().filter(true_count=F("total_enrollments"))
        assert correct_courses.count() == 3

    def test_joins_do_not_multiply_the_true_count(self, courses: list[Course]) -> None:
        joined = Course.objects.with_true_count().annotate(rows=Count("enrollments"))
        counts = {(course.true_count, course.rows) for course in joined}
        assert counts == {(0, 0), (1, 1), (2, 2), (3, 4)}

    def test_annotations_with_the_same_names_are_replaced(self, courses: list[Course]) -> None:
        set_stored_count(courses[1], 9)
        for annotated in (
            Course.objects.annotate(true_count=F("total_enrollments")),
            Course.objects.annotate(true_count=Value(0), drift=Value(0)),
        ):
            assert annotated.drifted().get().drift == 8
