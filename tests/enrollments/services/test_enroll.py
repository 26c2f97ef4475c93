import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import CourseFull, enroll, set_status, unenroll
from tests.support.enrollments import MISSING_PK, MakeCourse, MakeStudents, User, stored_count


class TestNewEnrollment:
    def test_inserts_an_active_row_and_increments_the_counter(
        self, student: User, course: Course
    ) -> None:
        enrollment, changed = enroll(student=student, course=course)
        assert changed is True
        assert (enrollment.student, enrollment.course) == (student, course)
        assert enrollment.status == "active"
        assert enrollment == Enrollment.objects.get()
        assert stored_count(course) == 1

    def test_accepts_primary_keys(self, student: User, course: Course) -> None:
        enrollment, changed = enroll(student=str(student.pk), course=course.pk)
        assert changed is True
        assert (enrollment.student, enrollment.course) == (student, course)

    def test_returns_the_primary_key_without_insert_returning(
        self, student: User, course: Course, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """MySQL has no INSERT … RETURNING."""
        monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
        enrollment, _ = enroll(student=student, course=course)
        assert enrollment == Enrollment.objects.get()

    def test_executes_one_update_and_two_inserts(self, student: User, course: Course) -> None:
        """The second INSERT is the event. SQLite also needs a SELECT to find the student."""
        with CaptureQueriesContext(connection) as queries:
            enroll(student=student, course=course)
        verbs = [query["sql"].split()[0] for query in queries]
        statements = [verb for verb in verbs if verb in ("SELECT", "UPDATE", "INSERT")]
        student_lookup = [] if connection.vendor == "mysql" else ["SELECT"]
        assert statements == [*student_lookup, "UPDATE", "INSERT", "INSERT"]


class TestRepeatedCall:
    def test_enroll_returns_changed_false_for_an_active_row(
        self, student: User, course: Course
    ) -> None:
        first, _ = enroll(student=student, course=course)
        second, changed = enroll(student=student, course=course)
        assert changed is False
        assert (second, second.enrollment_date) == (first, first.enrollment_date)
        assert stored_count(course) == 1

    def test_enroll_returns_changed_false_for_a_completed_row(
        self, student: User, course: Course
    ) -> None:
        enroll(student=student, course=course)
        set_status(student=student, course=course, status="completed")
        enrollment, changed = enroll(student=student, course=course)
        assert (enrollment.status, changed) == ("completed", False)

    def test_changed_is_correct_for_calls_at_the_same_time(
        self, student: User, course: Course, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = timezone.now()
        monkeypatch.setattr(timezone, "now", lambda: now)
        assert enroll(student=student, course=course)[1] is True
        assert enroll(student=student, course=course)[1] is False
        assert unenroll(student=student, course=course) is True
        assert unenroll(student=student, course=course) is False


def test_reenrolling_reactivates_the_withdrawn_row(student: User, course: Course) -> None:
    first, _ = enroll(student=student, course=course)
    unenroll(student=student, course=course)
    second, changed = enroll(student=student, course=course)
    assert changed is True
    assert (second.pk, second.status, second.withdrawal_date) == (first.pk, "active", None)
    assert second.enrollment_date > first.enrollment_date
    assert Enrollment.objects.get() == second
    assert stored_count(course) == 1


class TestFullCourse:
    def test_enroll_raises_course_full(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        course = make_course(capacity=2)
        first, second, third = make_students(3)
        enroll(student=first, course=course)
        enroll(student=second, course=course)
        with pytest.raises(CourseFull, match="is full: all 2 seats") as exception:
            enroll(student=third, course=course)
        assert exception.value.course == course
        assert stored_count(course) == 2

    def test_enrolled_students_can_call_enroll_again(
        self, make_course: MakeCourse, student: User
    ) -> None:
        course = make_course(capacity=1)
        enroll(student=student, course=course)
        assert enroll(student=student, course=course)[1] is False

    def test_a_withdrawal_frees_a_seat_for_another_student(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        course = make_course(capacity=1)
        first, second = make_students(2)
        enroll(student=first, course=course)
        unenroll(student=first, course=course)
        assert enroll(student=second, course=course)[1] is True
        with pytest.raises(CourseFull):
            enroll(student=first, course=course)
        assert stored_count(course) == 1

    def test_a_course_with_capacity_0_is_full(self, make_course: MakeCourse, student: User) -> None:
        with pytest.raises(CourseFull):
            enroll(student=student, course=make_course(capacity=0))

    def test_an_unknown_student_raises_does_not_exist(self, make_course: MakeCourse) -> None:
        with pytest.raises(User.DoesNotExist, match=str(MISSING_PK)):
            enroll(student=MISSING_PK, course=make_course(capacity=0))
