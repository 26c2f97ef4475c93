from collections.abc import Callable

import pytest
from django.contrib.auth.models import User

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import CourseCompleted, enroll, leave, set_status, unenroll
from tests.support.enrollments import stored_count

both_services = pytest.mark.parametrize("service", [unenroll, leave])


@both_services
def test_keeps_the_row_as_withdrawn_and_decrements_the_counter(
    student: User, course: Course, service: Callable[..., bool]
) -> None:
    enroll(student=student, course=course)
    assert service(student=student, course=course) is True
    enrollment = Enrollment.objects.get()
    assert enrollment.status == "withdrawn"
    assert enrollment.withdrawal_date >= enrollment.enrollment_date
    assert stored_count(course) == 0


@both_services
def test_returns_false_for_a_withdrawn_student(
    student: User, course: Course, service: Callable[..., bool]
) -> None:
    enroll(student=student, course=course)
    service(student=student, course=course)
    assert service(student=student, course=course) is False
    assert stored_count(course) == 0


@both_services
def test_returns_false_for_a_student_without_an_enrollment(
    student: User, course: Course, service: Callable[..., bool]
) -> None:
    assert service(student=student, course=course) is False
    assert not Enrollment.objects.exists()


def test_unenroll_withdraws_a_completed_enrollment(student: User, course: Course) -> None:
    enroll(student=student, course=course)
    set_status(student=student, course=course, status="completed")
    assert unenroll(student=student, course=course) is True
    assert stored_count(course) == 0


def test_leave_raises_for_a_completed_enrollment(student: User, course: Course) -> None:
    enroll(student=student, course=course)
    set_status(student=student, course=course, status="completed")
    with pytest.raises(CourseCompleted):
        leave(student=student, course=course)
    assert Enrollment.objects.get().status == "completed"
    assert stored_count(course) == 1
