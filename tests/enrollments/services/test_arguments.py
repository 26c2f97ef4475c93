"""Arguments that name no student, no course, or something else."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User

from courses.models import Course, Subject
from enrollments.models import Enrollment
from enrollments.services import (
    Registration,
    enroll,
    enroll_many,
    erase_student,
    leave,
    register_many,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from tests.support.enrollments import MISSING_PK, MakeCourse

# A service call, given a student and a course or what stands in their place.
ServiceCall = Callable[[Any, Any], object]


def register(student: Any, course: Any) -> object:
    registrations = [Registration(student, datetime(2026, 1, 1, tzinfo=UTC))]
    return register_many(course=course, registrations=registrations)


SERVICE_CALLS: dict[str, ServiceCall] = {
    "enroll": lambda student, course: enroll(student=student, course=course),
    "unenroll": lambda student, course: unenroll(student=student, course=course),
    "leave": lambda student, course: leave(student=student, course=course),
    "set_status": lambda student, course: set_status(
        student=student, course=course, status="completed"
    ),
    "enroll_many": lambda student, course: enroll_many(course=course, students=[student]),
    "unenroll_many": lambda student, course: unenroll_many(course=course, students=[student]),
    "register_many": register,
}


class OtherInteger(int):
    """An integer of another type, such as those of NumPy."""


every_service = pytest.mark.parametrize("call", SERVICE_CALLS.values(), ids=SERVICE_CALLS.keys())


class TestMissingCourse:
    @every_service
    def test_raises_does_not_exist_and_names_the_key(
        self, student: User, call: ServiceCall
    ) -> None:
        with pytest.raises(Course.DoesNotExist, match=str(MISSING_PK)):
            call(student, MISSING_PK)

    @pytest.mark.parametrize("missing", ["source", "target"])
    def test_transfer_raises_does_not_exist(
        self, student: User, course: Course, missing: str
    ) -> None:
        enroll(student=student, course=course)
        courses = {"source": course, "target": course} | {missing: MISSING_PK}
        with pytest.raises(Course.DoesNotExist, match=str(MISSING_PK)):
            transfer(student=student, **courses)
        assert Enrollment.objects.get().status == "active"

    def test_no_course_has_the_key_0(self, student: User) -> None:
        with pytest.raises(Course.DoesNotExist):
            enroll(student=student, course=0)


class TestMissingStudent:
    @every_service
    def test_raises_does_not_exist_and_names_the_key(
        self, course: Course, call: ServiceCall
    ) -> None:
        with pytest.raises(User.DoesNotExist, match=str(MISSING_PK)):
            call(MISSING_PK, course)
        assert not Enrollment.objects.exists()

    @every_service
    def test_raises_does_not_exist_if_the_course_is_full(
        self, make_course: MakeCourse, call: ServiceCall
    ) -> None:
        with pytest.raises(User.DoesNotExist, match=str(MISSING_PK)):
            call(MISSING_PK, make_course(capacity=0))

    @pytest.mark.parametrize("service", [enroll_many, unenroll_many])
    def test_one_missing_student_fails_the_whole_bulk_call(
        self, student: User, course: Course, service: Callable[..., object]
    ) -> None:
        with pytest.raises(User.DoesNotExist, match=str(MISSING_PK)):
            service(course=course, students=[student, MISSING_PK])
        assert not Enrollment.objects.exists()

    def test_transfer_raises_does_not_exist(self, make_course: MakeCourse) -> None:
        with pytest.raises(User.DoesNotExist, match=str(MISSING_PK)):
            transfer(student=MISSING_PK, source=make_course(), target=make_course())

    @every_service
    def test_no_student_has_the_key_0(self, course: Course, call: ServiceCall) -> None:
        with pytest.raises(User.DoesNotExist):
            call(0, course)


class TestInvalidStudentKey:
    @every_service
    @pytest.mark.parametrize(
        "key",
        [None, "abc", "", 2**63, -1, AnonymousUser(), User(), object()],
        ids=["None", "letters", "empty", "too large", "negative", "anonymous", "unsaved", "object"],
    )
    def test_raises_does_not_exist(self, course: Course, call: ServiceCall, key: Any) -> None:
        with pytest.raises(User.DoesNotExist):
            call(key, course)
        with pytest.raises(User.DoesNotExist):
            erase_student(student=key)


class TestOtherFormsOfAKey:
    """Django's `get(pk=…)` converts all of these to the key of a student or course."""

    @every_service
    @pytest.mark.parametrize("form", [int, str, OtherInteger])
    def test_an_integer_or_its_text_is_a_key(
        self, student: User, course: Course, call: ServiceCall, form: Callable[[int], Any]
    ) -> None:
        enroll(student=student, course=course)
        call(form(student.pk), form(course.pk))
        assert Enrollment.objects.count() == 1

    @every_service
    @pytest.mark.parametrize("text", ["0{}", "+{}", " {}", "{}\n", "{}_0", "{}.0"])
    def test_another_text_is_not(
        self, call: ServiceCall, student: User, course: Course, text: str
    ) -> None:
        with pytest.raises(User.DoesNotExist, match=r"^User '.*' does not exist\.$"):
            call(text.format(student.pk), course)
        with pytest.raises(Course.DoesNotExist, match=r"^Course '.*' does not exist\.$"):
            call(student, text.format(course.pk))
        assert not Enrollment.objects.exists()

    @every_service
    @pytest.mark.parametrize(
        "form",
        [
            float,
            Decimal,
            lambda pk: pk + Decimal("0.5"),
            lambda pk: Decimal("Infinity"),
            lambda pk: float("nan"),
            lambda pk: str(pk).encode(),
            lambda pk: True,
            lambda pk: Subject(pk=pk),
        ],
    )
    def test_a_value_of_another_type_raises_type_error(
        self, student: User, course: Course, call: ServiceCall, form: Callable[[int], Any]
    ) -> None:
        with pytest.raises(TypeError, match=f"User.* {type(form(1)).__name__}"):
            call(form(student.pk), course)
        with pytest.raises(TypeError, match=f"Course.* {type(form(1)).__name__}"):
            call(student, form(course.pk))
        assert not Enrollment.objects.exists()

    @every_service
    def test_an_instance_that_was_not_read_is_checked_like_its_key(
        self, student: User, course: Course, call: ServiceCall
    ) -> None:
        enroll(student=User(pk=str(student.pk)), course=course)
        call(User(pk=str(student.pk)), Course(pk=str(course.pk)))
        assert Enrollment.objects.count() == 1
        with pytest.raises(User.DoesNotExist):
            call(User(pk=f"0{student.pk}"), course)
