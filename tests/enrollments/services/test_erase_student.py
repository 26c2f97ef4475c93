import pytest

from enrollments.models import Enrollment
from enrollments.services import enroll_many, erase_student, set_status, unenroll
from tests.support.enrollments import MISSING_PK, MakeCourse, MakeStudents, User, stored_count


def test_deletes_the_student_rows_of_every_status_and_updates_the_counters(
    make_course: MakeCourse, make_students: MakeStudents
) -> None:
    student, other_student = make_students(2)
    courses = [make_course() for _ in range(3)]
    for course in courses:
        enroll_many(course=course, students=[student, other_student])
    unenroll(student=student, course=courses[0])
    set_status(student=student, course=courses[1], status="completed")
    assert erase_student(student=student) == 3
    assert not Enrollment.objects.filter(student=student).exists()
    assert Enrollment.objects.filter(student=other_student).count() == 3
    assert [stored_count(course) for course in courses] == [1, 1, 1]


def test_returns_0_for_a_student_without_rows(student: User) -> None:
    assert erase_student(student=student) == 0


def test_the_user_can_be_deleted_afterwards(student: User, make_course: MakeCourse) -> None:
    enroll_many(course=make_course(), students=[student])
    erase_student(student=student)
    student.delete()
    assert not User.objects.exists()


def test_an_unknown_student_raises_does_not_exist(db: None) -> None:
    with pytest.raises(User.DoesNotExist):
        erase_student(student=MISSING_PK)
