"""The admin pages that show enrollment events."""

import re
from html import unescape
from urllib.parse import parse_qsl

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from courses.models import Course
from enrollments.history import Origin, Source
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.services import enroll, erase_student, transfer, unenroll
from tests.support.enrollments import BY_ANNA, MakeCourse, MakeStudents
from tests.support.pages import sign_in_staff

EVENT_LIST = "/admin/enrollments/enrollmentevent/"


def enrollment_url(enrollment: Enrollment) -> str:
    return reverse("admin:enrollments_enrollment_change", args=[enrollment.pk])


def student_url(student: User) -> str:
    return reverse("admin:auth_user_change", args=[student.pk])


def get_html(client: Client, url: str, **query: object) -> str:
    response = client.get(url, query, follow=True)
    assert response.status_code == 200
    return response.content.decode()


def get_linked_events(client: Client, url: str) -> str:
    """Return the event list to which the page of an enrollment or a student links."""
    (query,) = re.findall(rf'href="{EVENT_LIST}\?(.*?)"', get_html(client, url))
    return get_html(client, EVENT_LIST, **dict(parse_qsl(unescape(query))))


def number_of_listed_events(html: str) -> int:
    return len(re.findall(r'class="field-created_at', html))


class TestTransferredStudent:
    @pytest.fixture
    def source(self, make_course: MakeCourse) -> Course:
        return make_course()

    @pytest.fixture
    def target(self, make_course: MakeCourse) -> Course:
        return make_course()

    @pytest.fixture
    def enrollment(
        self, student: User, make_students: MakeStudents, source: Course, target: Course
    ) -> Enrollment:
        """The withdrawn row of a transferred student, beside another student's row."""
        enroll(student=student, course=source)
        transfer(student=student, source=source, target=target, origin=BY_ANNA)
        (other_student,) = make_students(1)
        enroll(student=other_student, course=source, origin=Origin(Source.API, "other actor"))
        return Enrollment.objects.get(student=student, course=source)

    def test_the_enrollment_page_links_to_the_events_of_that_enrollment(
        self, staff_client: Client, enrollment: Enrollment, source: Course, target: Course
    ) -> None:
        html = get_linked_events(staff_client, enrollment_url(enrollment))
        assert f"Transferred out: {target}" in html
        assert f"Transferred in: {source}" not in html
        assert number_of_listed_events(html) == 2

    def test_the_student_page_links_to_the_events_of_that_student(
        self, staff_client: Client, enrollment: Enrollment, source: Course
    ) -> None:
        html = get_linked_events(staff_client, student_url(enrollment.student))
        assert f"Transferred in: {source}" in html
        assert "other actor" not in html
        assert number_of_listed_events(html) == 3

    def test_the_event_list_shows_all_events(
        self, staff_client: Client, enrollment: Enrollment
    ) -> None:
        assert number_of_listed_events(get_html(staff_client, EVENT_LIST)) == 4


def test_events_of_a_deleted_student_and_course_name_their_keys(
    staff_client: Client, student: User, course: Course
) -> None:
    enroll(student=student, course=course)
    erase_student(student=student)
    student.delete()
    course.delete()
    event = EnrollmentEvent.objects.get()
    event_url = reverse("admin:enrollments_enrollmentevent_change", args=[event.pk])
    for url in (EVENT_LIST, event_url):
        html = get_html(staff_client, url)
        assert event.student_name in html
        assert event.course_name in html


def test_events_need_the_view_permission(client: Client, student: User, course: Course) -> None:
    enroll(student=student, course=course, origin=Origin(Source.ADMIN, "secret actor"))
    enrollment = Enrollment.objects.get()
    sign_in_staff(client, "view_enrollment", "view_user")
    for url in (enrollment_url(enrollment), student_url(student)):
        assert EVENT_LIST not in get_html(client, url)
    assert client.get(EVENT_LIST).status_code == 403


def test_the_number_of_queries_does_not_grow_with_the_number_of_events(
    staff_client: Client, student: User, make_course: MakeCourse
) -> None:
    courses = [make_course() for _ in range(8)]
    enroll(student=student, course=courses[0])

    def number_of_queries() -> int:
        with CaptureQueriesContext(connection) as queries:
            get_html(staff_client, EVENT_LIST)
        return len(queries)

    number_for_one_event = number_of_queries()
    for other_course in courses[1:]:
        transfer(student=student, source=courses[0], target=other_course)
        unenroll(student=student, course=other_course)
        enroll(student=student, course=courses[0])
    assert number_of_queries() <= number_for_one_event
