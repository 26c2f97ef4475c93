import pytest
from django.contrib.auth.models import User
from django.db import connection

from enrollments.models import Enrollment
from enrollments.services import CourseFull, NotEnrolled, enroll, set_status, transfer
from tests.support.enrollments import MakeCourse, MakeStudents, stored_count


@pytest.mark.parametrize("reverse", [False, True], ids=["to the higher key", "to the lower key"])
def test_transfer_moves_the_student_and_both_counters(
    student: User, make_course: MakeCourse, reverse: bool
) -> None:
    source, target = make_course(), make_course()
    if reverse:
        source, target = target, source
    enroll(student=student, course=source)
    enrollment, changed = transfer(student=student, source=source, target=target)
    assert changed is True
    assert (enrollment.course, enrollment.status) == (target, "active")
    assert (stored_count(source), stored_count(target)) == (0, 1)
    assert Enrollment.objects.get(course=source).status == "withdrawn"


def test_a_repeated_transfer_returns_changed_false(student: User, make_course: MakeCourse) -> None:
    source, target = make_course(), make_course()
    enroll(student=student, course=source)
    enrollment, _ = transfer(student=student, source=source, target=target)
    assert transfer(student=student, source=source, target=target) == (enrollment, False)
    assert (stored_count(source), stored_count(target)) == (0, 1)


def test_a_transfer_can_be_reversed(student: User, make_course: MakeCourse) -> None:
    source, target = make_course(), make_course()
    enroll(student=student, course=source)
    transfer(student=student, source=source, target=target)
    assert transfer(student=student, source=target, target=source)[1] is True
    assert (stored_count(source), stored_count(target)) == (1, 0)


def test_a_student_of_both_courses_only_leaves_the_source(
    student: User, make_course: MakeCourse
) -> None:
    source, target = make_course(), make_course(capacity=1)
    enroll(student=student, course=source)
    enroll(student=student, course=target)
    enrollment, changed = transfer(student=student, source=source, target=target)
    assert (enrollment.course, changed) == (target, True)
    assert (stored_count(source), stored_count(target)) == (0, 1)


def test_returns_the_primary_key_without_insert_returning(
    student: User, make_course: MakeCourse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MySQL has no INSERT … RETURNING."""
    monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
    source, target = make_course(), make_course()
    enroll(student=student, course=source)
    enrollment, _ = transfer(student=student, source=source, target=target)
    assert enrollment == Enrollment.objects.get(course=target)


class TestRejected:
    def test_a_full_target_raises_course_full_and_changes_nothing(
        self, make_students: MakeStudents, make_course: MakeCourse
    ) -> None:
        first, second = make_students(2)
        source, target = make_course(), make_course(capacity=1)
        enroll(student=first, course=source)
        enroll(student=second, course=target)
        with pytest.raises(CourseFull, match=target.title):
            transfer(student=first, source=source, target=target)
        assert Enrollment.objects.get(student=first).status == "active"
        assert (stored_count(source), stored_count(target)) == (1, 1)

    def test_a_student_without_an_enrollment_raises_not_enrolled(
        self, student: User, make_course: MakeCourse
    ) -> None:
        with pytest.raises(NotEnrolled, match="no active enrollment"):
            transfer(student=student, source=make_course(), target=make_course())

    def test_a_completed_enrollment_raises_not_enrolled(
        self, student: User, make_course: MakeCourse
    ) -> None:
        source, target = make_course(), make_course()
        enroll(student=student, course=source)
        set_status(student=student, course=source, status="completed")
        with pytest.raises(NotEnrolled):
            transfer(student=student, source=source, target=target)

    def test_the_same_course_twice_raises_value_error(
        self, student: User, make_course: MakeCourse
    ) -> None:
        course = make_course()
        with pytest.raises(ValueError, match="same course"):
            transfer(student=student, source=course, target=course)
