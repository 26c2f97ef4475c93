import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import enroll, set_status, unenroll
from tests.conftest import drifts
from tests.support.pages import counts, text

Make = Callable[..., Any]


def press(client: Client, course: Course, what: str) -> str:
    """The words of the page that one comes back to."""
    page = client.post(f"{course.get_absolute_url()}{what}/", follow=True)
    assert page.redirect_chain == [(course.get_absolute_url(), 302)]
    assert counts(page) == [Course.objects.get(pk=course.pk).total_enrollments]
    return text(page)


def test_enrolling_and_leaving_show_the_count_at_once(
    signed_in: Client, course: Course, student: Any
) -> None:
    assert "You are enrolled in “Course 1”." in press(signed_in, course, "enroll")
    assert "You were enrolled in “Course 1” already." in press(signed_in, course, "enroll")
    assert Enrollment.objects.get().student == student
    assert "You have left “Course 1”." in press(signed_in, course, "leave")
    assert "You were not enrolled in “Course 1”." in press(signed_in, course, "leave")
    assert "You are enrolled in “Course 1”." in press(signed_in, course, "enroll")
    assert drifts() == {}


def test_a_full_course_is_said(signed_in: Client, make_course: Make, make_students: Make) -> None:
    course = make_course(capacity=1)
    enroll(student=make_students(1)[0], course=course)
    said = press(signed_in, course, "enroll")
    assert "“Course 1” is full: all 1 seats are taken." in said
    assert "This course is full." in said
    assert drifts() == {}


def test_what_is_completed_stays(signed_in: Client, course: Course, student: Any) -> None:
    enroll(student=student, course=course)
    set_status(student=student, course=course, status="completed")
    assert "You have completed this course: it stays" in press(signed_in, course, "leave")
    answer = signed_in.delete(f"/api/courses/{course.slug}/enrollment")
    assert (answer.status_code, "completed" in answer.json()["detail"]) == (409, True)
    assert Enrollment.objects.get().status == "completed"


@pytest.mark.parametrize("what", ["enroll", "leave"])
class TestRefused:
    def test_who_is_not_signed_in_is_asked_to_and_comes_back(
        self, client: Client, course: Course, what: str
    ) -> None:
        page = client.post(f"/courses/{course.slug}/{what}/")
        assert page.url == f"/accounts/sign-in/?next=/courses/{course.slug}/"
        assert not Enrollment.objects.exists()

    def test_looking_changes_nothing(self, signed_in: Client, course: Course, what: str) -> None:
        page = signed_in.get(f"/courses/{course.slug}/{what}/")
        assert page.url == course.get_absolute_url()
        assert not Enrollment.objects.exists()

    def test_other_sites_can_not_press(self, course: Course, student: Any, what: str) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(student)
        page = client.post(f"/courses/{course.slug}/{what}/")
        assert page.status_code == 403
        assert "Your form was not sent" in text(page)
        assert not Enrollment.objects.exists()

    def test_a_course_that_is_not_there(self, signed_in: Client, what: str) -> None:
        page = signed_in.post(f"/courses/none/{what}/")
        assert (page.status_code, "There is nothing here" in text(page)) == (404, True)

    def test_nobody_acts_for_somebody_else(
        self, signed_in: Client, course: Course, make_students: Make, what: str
    ) -> None:
        other = make_students(1)[0]
        enroll(student=other, course=course)
        form = {"student": other.pk, "student_id": other.pk, "user": other.pk}
        signed_in.post(f"/courses/{course.slug}/{what}/", form)
        row = Enrollment.objects.get(student=other)
        assert (row.status, row.withdrawal_date) == ("active", None)


def test_the_page_of_a_course_says_how_one_stands(
    signed_in: Client, course: Course, student: Any
) -> None:
    def said() -> str:
        return text(signed_in.get(course.get_absolute_url()))

    assert "Enroll" in said()
    row, _ = enroll(student=student, course=course)
    assert f"You are enrolled since {row.enrollment_date:%-d %B %Y}." in said()
    set_status(student=student, course=course, status="completed")
    assert "You have completed this course." in said()
    assert "Leave this course" not in said()
    unenroll(student=student, course=course)
    assert re.search(r"You left on .* Enroll ", said())


def test_my_courses_are_mine_by_status(
    signed_in: Client, make_course: Make, make_students: Make, student: Any
) -> None:
    for status in ("active", "completed", "withdrawn"):
        course = make_course(title=f"The {status} one")
        enroll(student=student, course=course)
        set_status(student=student, course=course, status=status)
    enroll(student=make_students(1)[0], course=make_course(title="Of others"))
    said = text(signed_in.get("/my-courses/"))
    places = [said.index(f"{s.capitalize()} The {s} one") for s in Enrollment.Status.values]
    assert places == sorted(places)
    assert "Of others" not in said


def test_no_course_yet(signed_in: Client) -> None:
    assert "You are in no course yet." in text(signed_in.get("/my-courses/"))


def test_my_courses_need_a_name(client: Client, db: None) -> None:
    assert client.get("/my-courses/").url == "/accounts/sign-in/?next=/my-courses/"


def test_the_number_of_queries_is_constant(
    signed_in: Client, make_course: Make, student: Any, django_assert_num_queries: Make
) -> None:
    for _ in range(3):
        course = make_course(instructor=student)
        enroll(student=student, course=course)
        with django_assert_num_queries(3):  # session, user, rows
            signed_in.get("/my-courses/")
        with django_assert_num_queries(4):  # session, user, course, row
            signed_in.get(course.get_absolute_url())


def test_enrolling_is_a_constant_number_of_queries(
    signed_in: Client, make_course: Make, make_students: Make, student: Any
) -> None:
    def queries() -> int:
        course = make_course()
        for other in make_students(number):
            enroll(student=other, course=course)
        with CaptureQueriesContext(connection) as captured:
            signed_in.post(f"/courses/{course.slug}/enroll/")
        return len(captured)

    number = 0
    first = queries()
    number = 5
    assert queries() == first
