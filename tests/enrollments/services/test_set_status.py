import pytest
from django.contrib.auth.models import User

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import CourseFull, NotEnrolled, enroll, set_status, unenroll
from tests.support.enrollments import MakeCourse, MakeStudents, stored_count


def test_the_counter_follows_every_status(student: User, course: Course) -> None:
    enroll(student=student, course=course)
    for status, count in [
        ("completed", 1),
        ("withdrawn", 0),
        ("completed", 1),
        ("active", 1),
        ("withdrawn", 0),
        ("active", 1),
    ]:
        assert set_status(student=student, course=course, status=status) is True
        assert set_status(student=student, course=course, status=status) is False
        assert Enrollment.objects.get().status == status
        assert stored_count(course) == count


def test_completing_keeps_the_enrollment_date(student: User, course: Course) -> None:
    enrollment, _ = enroll(student=student, course=course)
    set_status(student=student, course=course, status="completed")
    completed = Enrollment.objects.get()
    assert completed.enrollment_date == enrollment.enrollment_date
    assert completed.withdrawal_date is None


def test_withdrawing_keeps_the_enrollment_date_and_sets_the_withdrawal_date(
    student: User, course: Course
) -> None:
    enrollment, _ = enroll(student=student, course=course)
    set_status(student=student, course=course, status="withdrawn")
    withdrawn = Enrollment.objects.get()
    assert withdrawn.enrollment_date == enrollment.enrollment_date
    assert withdrawn.withdrawal_date >= enrollment.enrollment_date


@pytest.mark.parametrize("status", ["active", "completed"])
def test_restoring_a_withdrawn_enrollment_sets_a_new_enrollment_date(
    student: User, course: Course, status: str
) -> None:
    enrollment, _ = enroll(student=student, course=course)
    unenroll(student=student, course=course)
    set_status(student=student, course=course, status=status)
    restored = Enrollment.objects.get()
    assert restored.enrollment_date > enrollment.enrollment_date
    assert restored.withdrawal_date is None


def test_restoring_a_withdrawn_enrollment_needs_a_free_seat(
    make_course: MakeCourse, make_students: MakeStudents
) -> None:
    course = make_course(capacity=1)
    withdrawn, enrolled = make_students(2)
    enroll(student=withdrawn, course=course)
    unenroll(student=withdrawn, course=course)
    enroll(student=enrolled, course=course)
    with pytest.raises(CourseFull):
        set_status(student=withdrawn, course=course, status="completed")


def test_completing_an_enrollment_in_a_full_course_needs_no_seat(
    make_course: MakeCourse, student: User
) -> None:
    course = make_course(capacity=1)
    enroll(student=student, course=course)
    assert set_status(student=student, course=course, status="completed") is True


@pytest.mark.parametrize("status", ["active", "completed"])
def test_raises_not_enrolled_without_a_row(student: User, course: Course, status: str) -> None:
    with pytest.raises(NotEnrolled) as exception:
        set_status(student=student, course=course, status=status)
    assert isinstance(exception.value, Enrollment.DoesNotExist)


def test_an_unknown_status_raises_and_names_the_valid_ones(student: User, course: Course) -> None:
    with pytest.raises(ValueError, match=r"asleep.* active, completed, withdrawn"):
        set_status(student=student, course=course, status="asleep")
