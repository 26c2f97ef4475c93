"""Services inside the caller's own transaction."""

import pytest
from django.contrib.auth.models import User
from django.db import transaction

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import CourseFull, enroll, unenroll
from tests.support.enrollments import (
    MISSING_PK,
    MakeCourse,
    MakeStudents,
    rolled_back,
    stored_count,
)


def test_rows_and_counter_roll_back_together(course: Course, make_students: MakeStudents) -> None:
    first, second = make_students(2)
    with rolled_back():
        enroll(student=second, course=course)
        with rolled_back():
            enroll(student=first, course=course)
        assert stored_count(course) == 1
        unenroll(student=second, course=course)
    assert stored_count(course) == 0
    assert not Enrollment.objects.exists()


def test_the_transaction_is_usable_after_a_service_raises(
    make_course: MakeCourse, make_students: MakeStudents
) -> None:
    first, second = make_students(2)
    full_course, other_course = make_course(capacity=1), make_course()
    with transaction.atomic():
        enroll(student=first, course=full_course)
        with pytest.raises(CourseFull):
            enroll(student=second, course=full_course)
        with pytest.raises(User.DoesNotExist):
            enroll(student=MISSING_PK, course=other_course)
        assert enroll(student=first, course=full_course)[1] is False
        enroll(student=second, course=other_course)
    assert (stored_count(full_course), stored_count(other_course)) == (1, 1)
