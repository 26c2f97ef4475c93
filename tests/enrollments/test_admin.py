"""Enrolling, changing and withdrawing in the admin, and the lists of enrollments and users."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.db.models.signals import pre_save
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from courses.admin.base import MAX_SELECTED
from courses.models import Course
from enrollments import admin as enrollment_admin
from enrollments.models import Enrollment
from enrollments.services import (
    CourseFull,
    enroll,
    enroll_many,
    erase_student,
    set_status,
    unenroll,
)
from tests.support.counts import drift_by_title
from tests.support.locks import locked_past_the_timeout
from tests.support.pages import column_values, message_texts, sign_in_staff
from tests.support.threads import run_after_queries

Make = Callable[..., Any]
LIST = "/admin/enrollments/enrollment/"
ADD = f"{LIST}add/"
USERS = "/admin/auth/user/"


@pytest.fixture(autouse=True)
def assert_no_drift_remains(db: None) -> Iterator[None]:
    yield
    assert drift_by_title() == {}


@pytest.fixture
def enrollment(student: Any, course: Course) -> Enrollment:
    return enroll(student=student, course=course)[0]


@pytest.fixture
def full_course(make_course: Make, make_students: Make) -> Course:
    course = make_course(capacity=1)
    enroll(student=make_students(1)[0], course=course)
    return course


def change_url(enrollment: Enrollment) -> str:
    return reverse("admin:enrollments_enrollment_change", args=[enrollment.pk])


def post_add_form(client: Client, student: Any, course: Course, **data: Any) -> HttpResponse:
    return client.post(ADD, {"student": student.pk, "course": course.pk, **data}, follow=True)


def withdraw_selected(client: Client, rows: list[Enrollment], **data: Any) -> HttpResponse:
    form = {"action": "withdraw", "_selected_action": [row.pk for row in rows]}
    return client.post(LIST, form | data, follow=True)


def stored_count(course: Course) -> int:
    return Course.objects.values_list("total_enrollments", flat=True).get(pk=course.pk)


def log_entries() -> list[tuple[str, str]]:
    entries = LogEntry.objects.order_by("pk")
    return [(entry.object_repr, entry.get_change_message()) for entry in entries]


# Adding ------------------------------------------------------------------------------------


def test_adding_enrolls_the_student(staff_client: Client, student: Any, course: Course) -> None:
    page = post_add_form(staff_client, student, course)
    enrollment = Enrollment.objects.get()
    assert (enrollment.student, enrollment.course) == (student, course)
    assert enrollment.status == "active"
    assert stored_count(course) == 1
    assert "was added successfully" in message_texts(page)[0]
    assert log_entries() == [("student1 in Course 1 (active)", "Added.")]


@pytest.mark.parametrize("status", ["active", "withdrawn"])
def test_adding_a_second_row_for_a_student_and_a_course_is_a_form_error(
    staff_client: Client, enrollment: Enrollment, status: str
) -> None:
    student, course = enrollment.student, enrollment.course
    set_status(student=student, course=course, status=status)
    page = post_add_form(staff_client, student, course)
    (error,) = page.context["errors"][0]
    assert error == "Enrollment with this Student and Course already exists."
    assert Enrollment.objects.get().status == status
    assert log_entries() == []


def test_adding_to_a_full_course_is_an_error(
    staff_client: Client, student: Any, full_course: Course
) -> None:
    page = post_add_form(staff_client, student, full_course)
    assert page.redirect_chain == [(ADD, 302)]
    assert message_texts(page) == [str(CourseFull(full_course))]
    assert not Enrollment.objects.filter(student=student).exists()
    assert stored_count(full_course) == 1
    assert log_entries() == []


# Changing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("new_status", ["active", "completed", "withdrawn"])
@pytest.mark.parametrize("old_status", ["active", "completed", "withdrawn"])
def test_changing_the_status_updates_the_counter(
    staff_client: Client, enrollment: Enrollment, old_status: str, new_status: str
) -> None:
    set_status(student=enrollment.student_id, course=enrollment.course_id, status=old_status)
    page = staff_client.post(change_url(enrollment), {"status": new_status}, follow=True)
    assert "was changed successfully" in message_texts(page)[0]
    changed = Enrollment.objects.get()
    assert changed.status == new_status
    assert (changed.withdrawal_date is None) == (new_status != "withdrawn")
    assert stored_count(enrollment.course) == int(new_status != "withdrawn")


def test_changing_the_status_in_a_full_course_is_an_error(
    staff_client: Client, enrollment: Enrollment, make_students: Make
) -> None:
    course = enrollment.course
    unenroll(student=enrollment.student, course=course)
    enroll_many(course=course, students=make_students(1))
    Course.objects.update(capacity=1)
    page = staff_client.post(change_url(enrollment), {"status": "completed"}, follow=True)
    assert message_texts(page) == [str(CourseFull(Course.objects.get()))]
    assert Enrollment.objects.get(pk=enrollment.pk).status == "withdrawn"
    assert stored_count(course) == 1
    assert log_entries() == []


def test_student_and_course_cannot_be_changed(
    staff_client: Client, enrollment: Enrollment, make_students: Make, make_course: Make
) -> None:
    data = {"student": make_students(1)[0].pk, "course": make_course().pk, "status": "completed"}
    staff_client.post(change_url(enrollment), data)
    changed = Enrollment.objects.get()
    assert (changed.student, changed.course) == (enrollment.student, enrollment.course)
    assert changed.status == "completed"


# Withdrawing -------------------------------------------------------------------------------


def test_selected_enrollments_are_withdrawn(
    staff_client: Client, make_course: Make, make_students: Make
) -> None:
    students = make_students(3)
    courses = [make_course(), make_course()]
    for course in courses:
        enroll_many(course=course, students=students)
    unenroll(student=students[0], course=courses[0])
    withdrawn, *others = list(Enrollment.objects.order_by("pk"))[:-1]

    page = withdraw_selected(staff_client, [withdrawn, *others])
    html = page.content.decode()
    assert page.context["title"] == "Withdraw selected enrollments"
    assert "The records are kept" in html
    assert [str(row) in html for row in [withdrawn, *others]] == [False, True, True, True, True]
    assert stored_count(courses[0]) == 2

    # A student who withdraws before the confirmation is not withdrawn again.
    unenroll(student=others[0].student_id, course=others[0].course_id)
    page = withdraw_selected(staff_client, [withdrawn, *others], post="yes")
    assert message_texts(page) == ["Withdrew 3 enrollments."]
    assert [stored_count(course) for course in courses] == [0, 1]
    assert Enrollment.objects.count() == 6
    assert Enrollment.objects.counted().count() == 1
    date = Enrollment.objects.get(pk=withdrawn.pk).withdrawal_date
    assert date == withdrawn.withdrawal_date
    assert [message for _, message in log_entries()] == ["Withdrawn."] * 3


def test_withdrawing_a_withdrawn_enrollment_changes_nothing(
    staff_client: Client, enrollment: Enrollment
) -> None:
    unenroll(student=enrollment.student, course=enrollment.course)
    values = Enrollment.objects.values().get()
    page = withdraw_selected(staff_client, [enrollment])
    assert message_texts(page) == ["Withdrew 0 enrollments."]
    assert Enrollment.objects.values().get() == values
    assert log_entries() == []


def test_the_withdraw_action_accepts_a_maximum_of_enrollments(
    staff_client: Client, course: Course, make_students: Make
) -> None:
    enroll_many(course=course, students=make_students(MAX_SELECTED + 1))
    first = Enrollment.objects.first()
    page = withdraw_selected(staff_client, [first], index=0, select_across=1)
    assert message_texts(page) == [f"Select at most {MAX_SELECTED} enrollments."]
    assert stored_count(course) == MAX_SELECTED + 1

    erase_student(student=first.student_id)
    page = withdraw_selected(staff_client, [first], index=0, select_across=1)
    assert len(page.context["enrollments"]) == MAX_SELECTED
    page = withdraw_selected(staff_client, page.context["enrollments"], post="yes")
    assert message_texts(page) == [f"Withdrew {MAX_SELECTED} enrollments."]
    assert stored_count(course) == 0


def test_nobody_can_delete_enrollments(staff_client: Client, enrollment: Enrollment) -> None:
    for url in (LIST, change_url(enrollment)):
        assert "Delete" not in staff_client.get(url).content.decode()
    delete_url = reverse("admin:enrollments_enrollment_delete", args=[enrollment.pk])
    assert staff_client.post(delete_url, {"post": "yes"}).status_code == 403
    assert Enrollment.objects.get().is_counted


# Transactions ------------------------------------------------------------------------------

each_change = pytest.mark.parametrize("change", ["add", "change", "withdraw"])


def request_for(change: str, enrollment: Enrollment, student: Any) -> tuple[str, dict[str, Any]]:
    """Return the path and the data of a POST request that makes the change."""
    return {
        "add": (ADD, {"student": student.pk, "course": enrollment.course_id}),
        "change": (change_url(enrollment), {"status": "withdrawn"}),
        "withdraw": (
            LIST,
            {"action": "withdraw", "_selected_action": enrollment.pk, "post": "yes"},
        ),
    }[change]


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@each_change
def test_a_change_is_retried_after_a_conflict(
    staff_client: Client,
    enrollment: Enrollment,
    make_students: Make,
    short_lock_timeout: None,
    change: str,
) -> None:
    path, data = request_for(change, enrollment, make_students(1)[0])
    with locked_past_the_timeout(enrollment.course):
        page = staff_client.post(path, data, follow=True)
    assert len(message_texts(page)) == 1
    assert len(log_entries()) == 1
    assert stored_count(enrollment.course) == (2 if change == "add" else 0)


@each_change
def test_a_change_is_rolled_back_if_its_log_entry_fails(
    staff_client: Client, enrollment: Enrollment, make_students: Make, change: str
) -> None:
    def fail(**kwargs: Any) -> None:
        raise RuntimeError("no log entry")

    path, data = request_for(change, enrollment, make_students(1)[0])
    rows = list(Enrollment.objects.values())
    pre_save.connect(fail, sender=LogEntry)
    try:
        with pytest.raises(RuntimeError, match="no log entry"):
            staff_client.post(path, data)
    finally:
        pre_save.disconnect(fail, sender=LogEntry)
    assert list(Enrollment.objects.values()) == rows


# The lists ---------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "q=student", "q=student&status__exact=active", "o=1"])
def test_the_number_of_queries_does_not_grow_with_the_list(
    staff_client: Client, make_course: Make, make_students: Make, query: str
) -> None:
    def add_enrollments(number: int) -> None:
        for student in make_students(number):
            enroll(student=student, course=make_course())

    def count_queries() -> int:
        staff_client.get(f"{LIST}?{query}")  # The first request also fills caches.
        with CaptureQueriesContext(connection) as queries:
            page = staff_client.get(f"{LIST}?{query}")
        assert len(column_values(page, "student")) == Enrollment.objects.count()
        return len(queries)

    add_enrollments(2)
    queries = count_queries()
    add_enrollments(20)
    assert count_queries() == queries


def test_enrollments_are_searched_by_the_beginning_of_the_username(
    staff_client: Client, make_course: Make, make_students: Make
) -> None:
    students = make_students(12)
    for course in [make_course(title="student1"), make_course()]:
        enroll_many(course=course, students=students)

    def search(term: str) -> set[str]:
        page = staff_client.get(LIST, {"q": term})
        return {row.student.username for row in page.context["cl"].result_list}

    assert search("STUDENT1") == {"student1", "student10", "student11", "student12"}
    assert search("tudent1") == search("%") == set()


def test_a_search_finds_the_enrollments_of_the_first_matching_students(
    staff_client: Client, course: Course, make_students: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrollment_admin, "MAX_STUDENTS", 2)
    enroll_many(course=course, students=make_students(3))
    page = staff_client.get(LIST, {"q": "student"})
    assert {row.student.username for row in page.context["cl"].result_list} == {
        "student1",
        "student2",
    }


def test_the_status_filter_is_offered_for_one_course_or_a_search(
    staff_client: Client, enrollment: Enrollment
) -> None:
    assert b"status__exact=active" not in staff_client.get(LIST).content
    for query in (f"course__id__exact={enrollment.course_id}", "q=student"):
        page = staff_client.get(f"{LIST}?{query}")
        assert b"status__exact=active" in page.content
        page = staff_client.get(f"{LIST}?{query}&status__exact=withdrawn")
        assert column_values(page, "student") == []


def test_the_course_page_links_to_its_enrollments_sorted_by_status(
    staff_client: Client, course: Course, make_students: Make
) -> None:
    students = make_students(4)
    enroll_many(course=course, students=students)
    unenroll(student=students[0], course=course)
    link = f"{LIST}?course__id__exact={course.pk}"
    html = staff_client.get(reverse("admin:courses_course_change", args=[course.pk])).content
    assert link in html.decode()
    rows = staff_client.get(link).context["cl"].result_list
    assert [row.student for row in rows] == [*students[1:], students[0]]


def test_users_are_searched_by_the_beginning_of_the_username(
    staff_client: Client, make_students: Make
) -> None:
    make_students(11)
    page = staff_client.get(f"{USERS}?q=student1")
    assert column_values(page, "username") == ["student1", "student10", "student11"]
    assert column_values(staff_client.get(f"{USERS}?q=tudent"), "username") == []


# Permissions -------------------------------------------------------------------------------


def test_view_permission_alone_allows_no_change(
    client: Client, enrollment: Enrollment, full_course: Course
) -> None:
    sign_in_staff(client, "view_enrollment")
    rows = list(Enrollment.objects.values())
    assert "Withdraw selected" not in client.get(LIST).content.decode()
    assert "Save" not in client.get(change_url(enrollment)).content.decode()
    withdraw_selected(client, [enrollment], post="yes", index=0)
    assert client.post(change_url(enrollment), {"status": "withdrawn"}).status_code == 403
    assert post_add_form(client, enrollment.student, full_course).status_code == 403
    assert list(Enrollment.objects.values()) == rows


def test_staff_without_permissions_see_no_enrollments(
    client: Client, enrollment: Enrollment
) -> None:
    sign_in_staff(client)
    assert client.get(LIST).status_code == 403
    assert client.get(change_url(enrollment)).status_code == 403
    assert withdraw_selected(client, [enrollment], post="yes").status_code == 403
    assert Enrollment.objects.get().is_counted


# Concurrent deletion --------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("read", "change"),
    [
        pytest.param(
            f"LIMIT {MAX_SELECTED + 1}",
            lambda client, rows: withdraw_selected(client, rows, post="yes"),
            id="action",
        ),
        pytest.param(
            "FROM enrollments_enrollment",
            lambda client, rows: client.post(
                change_url(rows[0]), {"status": "completed"}, follow=True
            ),
            id="form",
            marks=pytest.mark.mariadb,  # SQLite's transaction locks the whole database.
        ),
    ],
)
def test_a_student_erased_and_deleted_during_the_request_is_reported(
    staff_client: Client, enrollment: Enrollment, make_students: Make, read: str, change: Make
) -> None:
    other, _ = enroll(student=make_students(1)[0], course=enrollment.course)

    def erase() -> None:
        erase_student(student=enrollment.student)
        enrollment.student.delete()

    with run_after_queries(read, work=erase):
        page = change(staff_client, [enrollment, other])
    assert (
        "Nothing was changed, because related rows changed just now. Try again."
        in message_texts(page)
    )
    assert Enrollment.objects.get().status == "active"
