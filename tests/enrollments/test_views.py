import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.formats import date_format

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import enroll, set_status, unenroll
from tests.support.counts import drift_by_title
from tests.support.pages import displayed_counts, message_texts, visible_text
from tests.support.threads import run_after_queries

Make = Callable[..., Any]
LOOKUPS = "FROM courses_course", "FROM auth_user"


def post(client: Client, course: Course, action: str) -> str:
    """Enroll or leave, and return the text of the course page that follows."""
    response = client.post(f"{course.get_absolute_url()}{action}/", follow=True)
    assert response.redirect_chain == [(course.get_absolute_url(), 302)]
    assert displayed_counts(response) == [Course.objects.get(pk=course.pk).total_enrollments]
    return visible_text(response)


def test_enroll_and_leave_report_the_result_and_the_new_count(
    student_client: Client, course: Course, student: Any
) -> None:
    assert "You are enrolled in “Course 1”." in post(student_client, course, "enroll")
    assert "You were already enrolled in “Course 1”." in post(student_client, course, "enroll")
    assert Enrollment.objects.get().student == student
    assert "You have left “Course 1”." in post(student_client, course, "leave")
    assert "You were not enrolled in “Course 1”." in post(student_client, course, "leave")
    assert "You are enrolled in “Course 1”." in post(student_client, course, "enroll")
    assert drift_by_title() == {}


def test_enroll_in_a_full_course_is_rejected(
    student_client: Client, make_course: Make, make_students: Make
) -> None:
    course = make_course(capacity=1)
    enroll(student=make_students(1)[0], course=course)
    text = post(student_client, course, "enroll")
    assert "“Course 1” is full" in text
    assert "This course is full." in text
    assert drift_by_title() == {}


def test_course_without_seats_is_not_open_for_enrollment(
    student_client: Client, make_course: Make
) -> None:
    text = post(student_client, make_course(capacity=0), "enroll")
    assert "“Course 1” is not open for enrollment." in text
    assert "This course is not open for enrollment." in text
    assert "ull" not in text


def test_completed_course_cannot_be_left(
    student_client: Client, course: Course, student: Any
) -> None:
    enroll(student=student, course=course)
    set_status(student=student, course=course, status="completed")
    response = student_client.post(f"{course.get_absolute_url()}leave/", follow=True)
    assert "completed" in message_texts(response)[0]
    response = student_client.delete(f"/api/courses/{course.slug}/enrollment")
    assert (response.status_code, "completed" in response.json()["detail"]) == (409, True)
    assert Enrollment.objects.get().status == "completed"


@pytest.mark.parametrize("action", ["enroll", "leave"])
class TestRejectedRequests:
    def test_anonymous_user_is_redirected_to_sign_in(
        self, client: Client, course: Course, action: str
    ) -> None:
        response = client.post(f"/courses/{course.slug}/{action}/")
        assert response.url == f"/accounts/sign-in/?next=/courses/{course.slug}/"
        assert not Enrollment.objects.exists()

    def test_get_changes_nothing(self, student_client: Client, course: Course, action: str) -> None:
        response = student_client.get(f"/courses/{course.slug}/{action}/")
        assert response.url == course.get_absolute_url()
        assert not Enrollment.objects.exists()

    def test_post_without_csrf_token_is_rejected(
        self, course: Course, student: Any, action: str
    ) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(student)
        response = client.post(f"/courses/{course.slug}/{action}/")
        assert response.status_code == 403
        assert "Form not submitted" in visible_text(response)
        assert not Enrollment.objects.exists()

    def test_unknown_course_is_404(self, student_client: Client, action: str) -> None:
        response = student_client.post(f"/courses/none/{action}/")
        assert (response.status_code, "Page not found" in visible_text(response)) == (404, True)

    def test_form_data_cannot_name_another_student(
        self, student_client: Client, course: Course, make_students: Make, action: str
    ) -> None:
        other = make_students(1)[0]
        enroll(student=other, course=course)
        form = {"student": other.pk, "student_id": other.pk, "user": other.pk}
        student_client.post(f"/courses/{course.slug}/{action}/", form)
        row = Enrollment.objects.get(student=other)
        assert (row.status, row.withdrawal_date) == ("active", None)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("action", ["enroll", "leave"])
class TestDeletedDuringTheRequest:
    """The service runs after the course and the user were read, and after one was deleted."""

    @pytest.fixture(params=["page", "api"])
    def send(
        self, request: pytest.FixtureRequest, student_client: Client, course: Course, action: str
    ) -> Callable[..., HttpResponse]:
        if request.param == "page":
            return partial(student_client.post, f"{course.get_absolute_url()}{action}/")
        method = {"enroll": student_client.put, "leave": student_client.delete}[action]
        return partial(method, f"/api/courses/{course.slug}/enrollment")

    def test_deleted_course_is_404(
        self, send: Callable[..., HttpResponse], course: Course, action: str
    ) -> None:
        with run_after_queries(*LOOKUPS, work=course.delete):
            assert send().status_code == 404

    @pytest.mark.parametrize("with_session", [False, True])
    def test_deleted_user_must_sign_in(
        self,
        send: Callable[..., HttpResponse],
        student: Any,
        course: Course,
        action: str,
        with_session: bool,
    ) -> None:
        def delete() -> None:
            student.delete()
            if with_session:
                Session.objects.all().delete()

        with run_after_queries(*LOOKUPS, work=delete):
            response = send()
        if response.status_code == 302:
            assert response.url == f"/accounts/sign-in/?next={course.get_absolute_url()}"
        else:
            assert (response.status_code, response.json()) == (401, {"detail": "Unauthorized"})
        assert send().status_code in (302, 401)
        assert drift_by_title() == {}


def test_course_page_shows_the_students_status(
    student_client: Client, course: Course, student: Any
) -> None:
    def page_text() -> str:
        return visible_text(student_client.get(course.get_absolute_url()))

    assert "Enroll" in page_text()
    enrollment, _ = enroll(student=student, course=course)
    assert f"Enrolled since {date_format(enrollment.enrollment_date)}." in page_text()
    set_status(student=student, course=course, status="completed")
    assert "You have completed this course." in page_text()
    assert "Leave this course" not in page_text()
    unenroll(student=student, course=course)
    assert re.search(r"You left on .* Enroll ", page_text())


def test_my_courses_lists_own_enrollments_by_status(
    student_client: Client, make_course: Make, make_students: Make, student: Any
) -> None:
    for status in ("active", "completed", "withdrawn"):
        course = make_course(title=f"The {status} one")
        enroll(student=student, course=course)
        set_status(student=student, course=course, status=status)
    enroll(student=make_students(1)[0], course=make_course(title="Of another student"))
    text = visible_text(student_client.get("/my-courses/"))
    positions = [text.index(f"{s.capitalize()} The {s} one") for s in Enrollment.Status.values]
    assert positions == sorted(positions)
    assert "Of another student" not in text


def test_my_courses_without_enrollments_has_a_message(student_client: Client) -> None:
    assert "You have not enrolled in a course yet." in visible_text(
        student_client.get("/my-courses/")
    )


def test_my_courses_requires_sign_in(client: Client, db: None) -> None:
    assert client.get("/my-courses/").url == "/accounts/sign-in/?next=/my-courses/"


def test_pages_use_a_constant_number_of_queries(
    student_client: Client, make_course: Make, student: Any, django_assert_num_queries: Make
) -> None:
    for _ in range(3):
        course = make_course(instructor=student)
        enroll(student=student, course=course)
        with django_assert_num_queries(3):  # session, user, rows
            student_client.get("/my-courses/")
        with django_assert_num_queries(4):  # session, user, course, row
            student_client.get(course.get_absolute_url())


def test_enroll_uses_a_constant_number_of_queries(
    student_client: Client, make_course: Make, make_students: Make, student: Any
) -> None:
    def count_queries(others: int) -> int:
        course = make_course()
        for other in make_students(others):
            enroll(student=other, course=course)
        with CaptureQueriesContext(connection) as captured:
            student_client.post(f"/courses/{course.slug}/enroll/")
        return len(captured)

    assert count_queries(others=0) == count_queries(others=5)
