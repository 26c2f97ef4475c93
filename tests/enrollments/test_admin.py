"""Enrolling, changing and withdrawing in the admin, and the lists of enrollments and users."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib import admin
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
from tests.support.pages import column_values, message_texts, sign_in_staff
from tests.support.threads import hold_row_lock, run_concurrently

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


def withdraw_url(enrollment: Enrollment) -> str:
    return reverse("admin:enrollments_enrollment_delete", args=[enrollment.pk])


def post_add_form(client: Client, student: Any, course: Course, **data: Any) -> HttpResponse:
    return client.post(ADD, {"student": student.pk, "course": course.pk, **data}, follow=True)


def withdraw_selected(client: Client, rows: list[Enrollment], **data: Any) -> HttpResponse:
    form = {"action": "delete_selected", "_selected_action": [row.pk for row in rows]}
    return client.post(LIST, form | data, follow=True)


def stored_count(course: Course) -> int:
    return Course.objects.values_list("total_enrollments", flat=True).get(pk=course.pk)


def log_entries() -> list[tuple[str, str]]:
    entries = LogEntry.objects.order_by("pk")
    return [(entry.object_repr, entry.get_change_message()) for entry in entries]


def assert_form_error(page: HttpResponse, message: str) -> None:
    """Assert that the page shows the form with the error, and that nothing was logged."""
    assert page.status_code == 200
    assert [str(e) for errors in page.context["errors"] for e in errors] == [message]
    assert message_texts(page) == []
    assert log_entries() == []


# Adding ------------------------------------------------------------------------------------


def test_adding_enrolls_the_student(staff_client: Client, student: Any, course: Course) -> None:
    page = post_add_form(staff_client, student, course)
    enrollment = Enrollment.objects.get()
    assert (enrollment.student, enrollment.course) == (student, course)
    assert enrollment.status == "active"
    assert stored_count(course) == 1
    assert "was added successfully" in message_texts(page)[0]
    assert log_entries() == [("student1 in Course 1 (active)", "Added.")]


def test_adding_reactivates_a_withdrawn_enrollment(
    staff_client: Client, student: Any, course: Course, enrollment: Enrollment
) -> None:
    unenroll(student=student, course=course)
    page = post_add_form(staff_client, student, course)
    assert "was added successfully" in message_texts(page)[0]
    assert Enrollment.objects.get() == enrollment
    assert Enrollment.objects.get().is_counted
    assert stored_count(course) == 1


def test_adding_an_enrolled_student_is_a_form_error(
    staff_client: Client, student: Any, course: Course, enrollment: Enrollment
) -> None:
    page = post_add_form(staff_client, student, course)
    assert_form_error(page, "student1 is already enrolled in “Course 1”.")
    assert stored_count(course) == 1


def test_adding_to_a_full_course_is_a_form_error_and_keeps_the_values(
    staff_client: Client, student: Any, full_course: Course
) -> None:
    page = post_add_form(staff_client, student, full_course, _popup="1")
    assert_form_error(page, str(CourseFull(full_course)))
    form = page.context["adminform"].form
    assert form["student"].value() == str(student.pk)
    assert form["course"].value() == str(full_course.pk)
    assert f'<option value="{student.pk}" selected' in page.content.decode()
    assert f'<option value="{full_course.pk}" selected' in page.content.decode()
    assert page.context["is_popup"]
    assert not Enrollment.objects.filter(student=student).exists()
    assert stored_count(full_course) == 1


@pytest.mark.django_db(transaction=True)
def test_adding_a_student_who_was_deleted_concurrently_is_a_form_error(
    staff_client: Client, student: Any, course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_admin = admin.site.get_model_admin(Enrollment)
    save_form = model_admin.save_form

    def delete_student_then_save(*args: Any, **kwargs: Any) -> Any:
        run_concurrently(lambda: student._meta.model.objects.filter(pk=student.pk).delete())
        return save_form(*args, **kwargs)

    monkeypatch.setattr(model_admin, "save_form", delete_student_then_save)
    page = post_add_form(staff_client, student, course)
    assert page.status_code == 200
    assert str(student.pk) in str(page.context["errors"])
    assert stored_count(course) == 0
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


def test_changing_the_status_in_a_full_course_is_a_form_error(
    staff_client: Client, enrollment: Enrollment, make_students: Make
) -> None:
    course = enrollment.course
    unenroll(student=enrollment.student, course=course)
    enroll_many(course=course, students=make_students(1))
    Course.objects.update(capacity=1)
    page = staff_client.post(change_url(enrollment), {"status": "completed"})
    assert_form_error(page, str(CourseFull(Course.objects.get())))
    assert page.context["adminform"].form["status"].value() == "completed"
    # The heading shows the status in the database.
    assert page.context["subtitle"] == "student1 in Course 1 (withdrawn)"
    assert Enrollment.objects.get(pk=enrollment.pk).status == "withdrawn"
    assert stored_count(course) == 1


def test_student_and_course_cannot_be_changed(
    staff_client: Client, enrollment: Enrollment, make_students: Make, make_course: Make
) -> None:
    data = {"student": make_students(1)[0].pk, "course": make_course().pk, "status": "completed"}
    staff_client.post(change_url(enrollment), data)
    changed = Enrollment.objects.get()
    assert (changed.student, changed.course) == (enrollment.student, enrollment.course)
    assert changed.status == "completed"


# Withdrawing -------------------------------------------------------------------------------


def test_the_change_page_links_to_withdraw_and_not_to_delete(
    staff_client: Client, enrollment: Enrollment
) -> None:
    html = staff_client.get(change_url(enrollment)).content.decode()
    assert f'<a href="{withdraw_url(enrollment)}">Withdraw</a>' in html
    assert "Delete" not in html
    unenroll(student=enrollment.student, course=enrollment.course)
    html = staff_client.get(change_url(enrollment)).content.decode()
    assert withdraw_url(enrollment) not in html


def test_one_enrollment_is_withdrawn(staff_client: Client, enrollment: Enrollment) -> None:
    page = staff_client.get(withdraw_url(enrollment))
    html = page.content.decode()
    assert page.context["title"] == "Withdraw"
    assert "Withdraw student1 from “Course 1”? The record is kept" in html
    assert "Delete" not in html

    page = staff_client.post(withdraw_url(enrollment), {"post": "yes"}, follow=True)
    assert page.redirect_chain[0][0] == LIST
    assert message_texts(page) == ["Withdrew 1 enrollment. The record is kept."]
    withdrawn = Enrollment.objects.get()
    assert (withdrawn.pk, withdrawn.status) == (enrollment.pk, "withdrawn")
    assert stored_count(enrollment.course) == 0
    assert log_entries() == [("student1 in Course 1 (withdrawn)", "Withdrawn.")]


def test_withdrawing_a_withdrawn_enrollment_changes_nothing(
    staff_client: Client, enrollment: Enrollment
) -> None:
    unenroll(student=enrollment.student, course=enrollment.course)
    values = Enrollment.objects.values().get()
    for page in (
        staff_client.post(withdraw_url(enrollment), {"post": "yes"}, follow=True),
        withdraw_selected(staff_client, [enrollment]),
    ):
        assert message_texts(page) == ["These enrollments were already withdrawn."]
    assert Enrollment.objects.values().get() == values
    assert log_entries() == []


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
    assert "Delete" not in html
    assert stored_count(courses[0]) == 2

    # A student who withdraws before the confirmation is not withdrawn again.
    unenroll(student=others[0].student_id, course=others[0].course_id)
    page = withdraw_selected(staff_client, [withdrawn, *others], post="yes")
    assert message_texts(page) == ["Withdrew 3 enrollments. The records are kept."]
    assert [stored_count(course) for course in courses] == [0, 1]
    assert Enrollment.objects.count() == 6
    assert Enrollment.objects.counted().count() == 1
    date = Enrollment.objects.get(pk=withdrawn.pk).withdrawal_date
    assert date == withdrawn.withdrawal_date
    assert [message for _, message in log_entries()] == ["Withdrawn."] * 3
    assert all("(withdrawn)" in name for name, _ in log_entries())


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
    assert message_texts(page) == [f"Withdrew {MAX_SELECTED} enrollments. The records are kept."]
    assert stored_count(course) == 0


def test_the_list_offers_to_withdraw_and_not_to_delete(
    staff_client: Client, enrollment: Enrollment
) -> None:
    html = staff_client.get(LIST).content.decode()
    assert '<option value="delete_selected">Withdraw selected enrollments</option>' in html
    assert "Delete" not in html


# Transactions ------------------------------------------------------------------------------

each_change = pytest.mark.parametrize("change", ["add", "change", "withdraw", "withdraw selected"])


def request_for(change: str, enrollment: Enrollment, student: Any) -> tuple[str, dict[str, Any]]:
    """Return the path and the data of a POST request that makes the change."""
    return {
        "add": (ADD, {"student": student.pk, "course": enrollment.course_id}),
        "change": (change_url(enrollment), {"status": "withdrawn"}),
        "withdraw": (withdraw_url(enrollment), {"post": "yes"}),
        "withdraw selected": (
            LIST,
            {"action": "delete_selected", "_selected_action": enrollment.pk, "post": "yes"},
        ),
    }[change]


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@each_change
def test_a_change_is_retried_after_a_conflict(
    staff_client: Client, enrollment: Enrollment, make_students: Make, change: str
) -> None:
    path, data = request_for(change, enrollment, make_students(1)[0])
    with hold_row_lock(enrollment.course):
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
    assert b"delete_selected" not in client.get(LIST).content
    html = client.get(change_url(enrollment)).content.decode()
    assert withdraw_url(enrollment) not in html
    assert "Save" not in html
    withdraw_selected(client, [enrollment], post="yes", index=0)
    assert client.post(change_url(enrollment), {"status": "withdrawn"}).status_code == 403
    assert client.get(withdraw_url(enrollment)).status_code == 403
    assert client.post(withdraw_url(enrollment), {"post": "yes"}).status_code == 403
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
