from collections.abc import Callable
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

from courses.models import Course
from enrollments.admin import MOST_SELECTED
from enrollments.models import Enrollment
from enrollments.services import enroll, enroll_many, set_status, unenroll
from tests.conftest import drifts
from tests.support.pages import column, held_by_another, meanwhile, sign_in, texts

Make = Callable[..., Any]
LIST = "/admin/enrollments/enrollment/"
ADD = f"{LIST}add/"


@pytest.fixture(autouse=True)
def no_drift_afterwards(db: None) -> Any:
    yield
    assert drifts() == {}


@pytest.fixture
def row(student: Any, course: Course) -> Enrollment:
    return enroll(student=student, course=course)[0]


@pytest.fixture
def full(make_course: Make, make_students: Make) -> Course:
    course = make_course(capacity=1)
    enroll(student=make_students(1)[0], course=course)
    return course


def change(row: Enrollment) -> str:
    return reverse("admin:enrollments_enrollment_change", args=[row.pk])


def withdraw(row: Enrollment) -> str:
    return reverse("admin:enrollments_enrollment_delete", args=[row.pk])


def add(client: Client, student: Any, course: Course, **more: Any) -> HttpResponse:
    return client.post(ADD, {"student": student.pk, "course": course.pk, **more}, follow=True)


def choose(client: Client, rows: list[Enrollment], **more: Any) -> HttpResponse:
    data = {"action": "delete_selected", "_selected_action": [row.pk for row in rows]}
    return client.post(LIST, data | more, follow=True)


def stored(course: Course) -> int:
    return Course.objects.values_list("total_enrollments", flat=True).get(pk=course.pk)


def log() -> list[tuple[str, str]]:
    entries = LogEntry.objects.order_by("pk")
    return [(entry.object_repr, entry.get_change_message()) for entry in entries]


def assert_usage_error(page: HttpResponse, message: str) -> None:
    """The form again, with the message, and nothing done."""
    assert page.status_code == 200
    assert [str(e) for errors in page.context["errors"] for e in errors] == [message]
    assert texts(page) == []
    assert log() == []


# Adding ----------------------------------------------------------------------------


def test_adding_enrols(staff_client: Client, student: Any, course: Course) -> None:
    page = add(staff_client, student, course)
    row = Enrollment.objects.get()
    assert (row.student, row.course, row.status) == (student, course, "active")
    assert stored(course) == 1
    assert "was added successfully" in texts(page)[0]
    assert log() == [("student1 in Course 1 (active)", "Added.")]


def test_adding_takes_up_a_withdrawn_row(
    staff_client: Client, student: Any, course: Course, row: Enrollment
) -> None:
    unenroll(student=student, course=course)
    page = add(staff_client, student, course)
    assert "was added successfully" in texts(page)[0]
    assert Enrollment.objects.get() == row
    assert Enrollment.objects.get().is_counted
    assert stored(course) == 1


def test_adding_says_who_is_enrolled_already(
    staff_client: Client, student: Any, course: Course, row: Enrollment
) -> None:
    page = add(staff_client, student, course)
    assert_usage_error(page, "student1 is enrolled in “Course 1” already.")
    assert stored(course) == 1


def test_adding_to_a_full_course_is_refused_and_the_form_keeps_its_values(
    staff_client: Client, student: Any, full: Course
) -> None:
    page = add(staff_client, student, full, _popup="1")
    assert_usage_error(page, "“Course 1” is full: all 1 seats are taken.")
    form = page.context["adminform"].form
    assert form["student"].value() == str(student.pk)
    assert form["course"].value() == str(full.pk)
    assert f'<option value="{student.pk}" selected' in page.content.decode()
    assert f'<option value="{full.pk}" selected' in page.content.decode()
    assert page.context["is_popup"]
    assert not Enrollment.objects.filter(student=student).exists()
    assert stored(full) == 1


@pytest.mark.django_db(transaction=True)
def test_adding_who_is_gone_meanwhile_is_refused(
    staff_client: Client, student: Any, course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_admin = admin.site.get_model_admin(Enrollment)
    save_form = model_admin.save_form

    def delete_then_save(*args: Any, **kwargs: Any) -> Any:
        meanwhile(lambda: student._meta.model.objects.filter(pk=student.pk).delete())
        return save_form(*args, **kwargs)

    monkeypatch.setattr(model_admin, "save_form", delete_then_save)
    page = add(staff_client, student, course)
    assert page.status_code == 200
    assert f"There is no user with the key {student.pk}." in str(page.context["errors"])
    assert stored(course) == 0
    assert log() == []


# Changing --------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["active", "completed", "withdrawn"])
@pytest.mark.parametrize("before", ["active", "completed", "withdrawn"])
def test_changing_the_status_moves_the_counter(
    staff_client: Client, row: Enrollment, before: str, after: str
) -> None:
    set_status(student=row.student_id, course=row.course_id, status=before)
    page = staff_client.post(change(row), {"status": after}, follow=True)
    assert "was changed successfully" in texts(page)[0]
    changed = Enrollment.objects.get()
    assert changed.status == after
    assert (changed.withdrawal_date is None) == (after != "withdrawn")
    assert stored(row.course) == int(after != "withdrawn")


def test_changing_the_status_in_a_full_course_is_refused(
    staff_client: Client, row: Enrollment, make_students: Make
) -> None:
    full = row.course
    unenroll(student=row.student, course=full)
    enroll_many(course=full, students=make_students(1))
    Course.objects.update(capacity=1)
    page = staff_client.post(change(row), {"status": "completed"})
    assert_usage_error(page, "“Course 1” is full: all 1 seats are taken.")
    assert page.context["adminform"].form["status"].value() == "completed"
    # The heading says what is, not what was asked for.
    assert page.context["subtitle"] == "student1 in Course 1 (withdrawn)"
    assert Enrollment.objects.get(pk=row.pk).status == "withdrawn"
    assert stored(full) == 1


def test_student_and_course_of_a_row_stay(
    staff_client: Client, row: Enrollment, make_students: Make, make_course: Make
) -> None:
    (other,), another = make_students(1), make_course()
    data = {"status": "completed", "student": other.pk, "course": another.pk}
    staff_client.post(change(row), data)
    changed = Enrollment.objects.get()
    assert (changed.student, changed.course) == (row.student, row.course)
    assert changed.status == "completed"


# Deleting means withdrawing ------------------------------------------------------------


def test_the_page_of_a_row_offers_to_withdraw_and_not_to_delete(
    staff_client: Client, row: Enrollment
) -> None:
    text = staff_client.get(change(row)).content.decode()
    assert f'<a href="{withdraw(row)}">Withdraw</a>' in text
    assert "Delete" not in text
    unenroll(student=row.student, course=row.course)
    assert withdraw(row) not in staff_client.get(change(row)).content.decode()


def test_withdrawing_one(staff_client: Client, row: Enrollment) -> None:
    page = staff_client.get(withdraw(row))
    text = page.content.decode()
    assert page.context["title"] == "Withdraw"
    assert "Withdraw student1 from “Course 1”? The row is kept" in text
    assert "Delete" not in text

    page = staff_client.post(withdraw(row), {"post": "yes"}, follow=True)
    assert page.redirect_chain[0][0] == LIST
    assert texts(page) == ["1 enrollment withdrawn. No row was deleted."]
    kept = Enrollment.objects.get()
    assert (kept.pk, kept.status) == (row.pk, "withdrawn")
    assert stored(row.course) == 0
    assert log() == [("student1 in Course 1 (withdrawn)", "Withdrawn.")]


def test_withdrawing_again_changes_nothing_and_says_so(
    staff_client: Client, row: Enrollment
) -> None:
    unenroll(student=row.student, course=row.course)
    before = Enrollment.objects.values().get()
    page = staff_client.post(withdraw(row), {"post": "yes"}, follow=True)
    assert texts(page) == ["Nobody was withdrawn: they were already."]
    assert texts(choose(staff_client, [row])) == ["Nobody was withdrawn: they were already."]
    assert Enrollment.objects.values().get() == before
    assert log() == []


def test_withdrawing_the_selected(
    staff_client: Client, make_course: Make, make_students: Make
) -> None:
    students = make_students(3)
    courses = [make_course(), make_course()]
    for course in courses:
        enroll_many(course=course, students=students)
    unenroll(student=students[0], course=courses[0])
    gone, *rows = list(Enrollment.objects.order_by("pk"))[:-1]
    date = gone.withdrawal_date

    page = choose(staff_client, [gone, *rows])
    text = page.content.decode()
    assert page.context["title"] == "Withdraw selected enrollments"
    assert "The rows are kept" in text
    assert [str(row) in text for row in [gone, *rows]] == [False, True, True, True, True]
    assert "Delete" not in text
    assert stored(courses[0]) == 2

    # Who withdraws meanwhile is not counted.
    unenroll(student=rows[0].student_id, course=rows[0].course_id)
    page = choose(staff_client, [gone, *rows], post="yes")
    assert texts(page) == ["3 enrollments withdrawn. No row was deleted."]
    assert [stored(course) for course in courses] == [0, 1]
    assert Enrollment.objects.count() == 6
    assert Enrollment.objects.counted().count() == 1
    assert Enrollment.objects.get(pk=gone.pk).withdrawal_date == date
    assert [message for _, message in log()] == ["Withdrawn."] * 3
    assert all("(withdrawn)" in name for name, _ in log())


def test_as_many_are_withdrawn_at_a_time_as_a_form_can_hold(
    staff_client: Client, course: Course, make_students: Make
) -> None:
    enroll_many(course=course, students=make_students(MOST_SELECTED + 1))
    some = list(Enrollment.objects.all()[:1])
    page = choose(staff_client, some, index=0, select_across=1)
    assert texts(page) == [f"Nobody was withdrawn: select at most {MOST_SELECTED} at a time."]
    assert stored(course) == MOST_SELECTED + 1

    unenroll(student=some[0].student_id, course=course)
    page = choose(staff_client, some, index=0, select_across=1)
    assert len(page.context["rows"]) == MOST_SELECTED
    page = choose(staff_client, page.context["rows"], post="yes")
    assert texts(page) == [f"{MOST_SELECTED} enrollments withdrawn. No row was deleted."]
    assert stored(course) == 0


def test_the_list_offers_to_withdraw_and_not_to_delete(
    staff_client: Client, row: Enrollment
) -> None:
    text = staff_client.get(LIST).content.decode()
    assert '<option value="delete_selected">Withdraw selected enrollments</option>' in text
    assert "Delete" not in text


# Others at the same time ---------------------------------------------------------------


def requests(row: Enrollment, other: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """All ways to change something: the path, and what is sent there."""
    return {
        "add": (ADD, {"student": other.pk, "course": row.course_id}),
        "change": (change(row), {"status": "withdrawn"}),
        "withdraw": (withdraw(row), {"post": "yes"}),
        "withdraw selected": (
            LIST,
            {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"},
        ),
    }


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("way", ["add", "change", "withdraw", "withdraw selected"])
def test_a_conflict_is_tried_again(
    staff_client: Client, row: Enrollment, make_students: Make, way: str
) -> None:
    path, data = requests(row, make_students(1)[0])[way]
    with held_by_another(row.course):
        page = staff_client.post(path, data, follow=True)
    assert len(texts(page)) == 1
    assert len(log()) == 1
    assert stored(row.course) == (2 if way == "add" else 0)


@pytest.mark.parametrize("way", ["add", "change", "withdraw", "withdraw selected"])
def test_nothing_is_changed_without_its_log_entry(
    staff_client: Client, row: Enrollment, make_students: Make, way: str
) -> None:
    def fail(**kwargs: Any) -> None:
        raise RuntimeError("no log entry")

    path, data = requests(row, make_students(1)[0])[way]
    before = list(Enrollment.objects.values())
    pre_save.connect(fail, sender=LogEntry)
    try:
        with pytest.raises(RuntimeError, match="no log entry"):
            staff_client.post(path, data)
    finally:
        pre_save.disconnect(fail, sender=LogEntry)
    assert list(Enrollment.objects.values()) == before


# The list ------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "status__exact=active", "q=student", "o=1"])
def test_more_rows_need_no_more_queries(
    staff_client: Client, make_course: Make, make_students: Make, query: str
) -> None:
    def add_rows(number: int) -> None:
        for student in make_students(number):
            enroll(student=student, course=make_course())

    def queries() -> int:
        staff_client.get(f"{LIST}?{query}")  # the first time, more may be read and kept
        with CaptureQueriesContext(connection) as captured:
            page = staff_client.get(f"{LIST}?{query}")
        assert len(column(page, "student")) == Enrollment.objects.count()
        return len(captured)

    add_rows(2)
    before = queries()
    add_rows(20)
    assert queries() == before


# Permissions ---------------------------------------------------------------------------


def test_who_may_only_view_changes_nothing(client: Client, row: Enrollment, full: Course) -> None:
    sign_in(client, "view_enrollment")
    before = list(Enrollment.objects.values())
    assert b"delete_selected" not in client.get(LIST).content
    text = client.get(change(row)).content.decode()
    assert withdraw(row) not in text
    assert "Save" not in text
    choose(client, [row], post="yes", index=0)
    assert client.post(change(row), {"status": "withdrawn"}).status_code == 403
    assert client.get(withdraw(row)).status_code == 403
    assert client.post(withdraw(row), {"post": "yes"}).status_code == 403
    assert add(client, row.student, full).status_code == 403
    assert list(Enrollment.objects.values()) == before


def test_staff_without_permissions_see_nothing(client: Client, row: Enrollment) -> None:
    sign_in(client)
    assert client.get(LIST).status_code == 403
    assert client.get(change(row)).status_code == 403
    assert choose(client, [row], post="yes").status_code == 403
    assert Enrollment.objects.get().is_counted
