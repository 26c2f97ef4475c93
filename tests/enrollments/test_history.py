"""What was done to enrollments, when, by whom and from where: in one transaction with it."""

import json
import os
import pwd
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from courses.models import Course
from enrollments.history import Origin, Source
from enrollments.managers import DirectWriteError
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.rows import CHUNK_SIZE
from enrollments.services import (
    CourseFull,
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
from tests.conftest import drifts
from tests.support.commands import assert_usage_error, manage
from tests.support.history import history_mismatches

Make = Callable[..., Any]
pytestmark = pytest.mark.django_db

BY_ANNA = Origin(Source.ADMIN, "anna")


def done() -> list[str]:
    """What was done, in order."""
    return list(EnrollmentEvent.objects.order_by("pk").values_list("action", flat=True))


def origins() -> set[tuple[str, str]]:
    return set(EnrollmentEvent.objects.values_list("source", "actor"))


# What the services add ------------------------------------------------------------


def test_each_change_of_a_row_is_an_event(student: Any, make_course: Make) -> None:
    course, other = make_course(), make_course()
    of_row = {"student": student, "course": course, "origin": BY_ANNA}
    enroll(**of_row)
    unenroll(**of_row)
    enroll(**of_row)
    set_status(**of_row, status="completed")
    set_status(**of_row, status="active")
    transfer(student=student, source=course, target=other, origin=BY_ANNA)
    leave(student=student, course=other, origin=BY_ANNA)
    assert done() == [
        *("enrolled", "withdrawn", "reenrolled", "completed", "reopened"),
        *("transferred_out", "transferred_in", "withdrawn"),
    ]
    assert origins() == {("admin", "anna")}
    assert history_mismatches() == set()


def test_an_event_tells_the_row_as_it_was_then(student: Any, course: Course) -> None:
    before = timezone.now()
    row, _ = enroll(student=student, course=course, origin=Origin(Source.WEBSITE, "student1"))
    unenroll(student=student, course=course)
    first, second = EnrollmentEvent.objects.order_by("pk")
    assert (first.student, first.course, first.other_course) == (student, course, None)
    assert (first.status, first.enrollment_date) == ("active", row.enrollment_date)
    assert (first.source, first.actor, first.withdrawal_date) == ("website", "student1", None)
    assert (
        before
        <= first.created_at
        == row.enrollment_date
        <= second.created_at
        == second.withdrawal_date
    )
    assert (second.status, second.source, second.actor) == ("withdrawn", "system", "")


def test_a_move_names_the_other_course(student: Any, make_course: Make) -> None:
    source, target = make_course(), make_course()
    enroll(student=student, course=source)
    transfer(student=student, source=source, target=target)
    away, here = EnrollmentEvent.objects.filter(other_course__isnull=False).order_by("pk")
    assert (away.course, away.action, away.other_course) == (source, "transferred_out", target)
    assert (here.course, here.action, here.other_course) == (target, "transferred_in", source)
    assert away.description == f"Transferred out: {target}"


def test_what_changes_nothing_adds_nothing(student: Any, make_course: Make) -> None:
    course, full = make_course(), make_course(capacity=0)
    enroll(student=student, course=course)
    enroll(student=student, course=course)
    set_status(student=student, course=course, status="active")
    enroll_many(course=course, students=[student])
    for refused in (
        lambda: enroll(student=student, course=full),
        lambda: transfer(student=student, source=course, target=full),
    ):
        with pytest.raises(CourseFull):
            refused()
    unenroll(student=student, course=full)
    assert done() == ["enrolled"]


def test_who_is_erased_leaves_only_that_somebody_was(make_students: Make, course: Course) -> None:
    student, other = make_students(2)
    for each in (student, other):
        enroll(student=each, course=course, origin=Origin(Source.WEBSITE, each.username))
    unenroll(student=student, course=course)
    erase_student(student=student, origin=BY_ANNA)
    erase_student(student=student, origin=BY_ANNA)  # nothing is left to erase, nor to tell
    key = student.pk
    student.delete()
    event = EnrollmentEvent.objects.get(student=key)
    assert (event.action, event.status, event.actor) == ("erased", "", "anna")
    assert (event.enrollment_date, event.withdrawal_date) == (None, None)
    event = EnrollmentEvent.objects.select_related("student").get(pk=event.pk)
    assert event.student_name == f"student number {key}, deleted"
    assert list(EnrollmentEvent.objects.exclude(student=key).values_list("action")) == [
        ("enrolled",)
    ]
    assert history_mismatches() == set()


@pytest.mark.parametrize("number", [1, 3, CHUNK_SIZE + 1])
def test_bulk_calls_add_an_event_for_each_change(
    course: Course, make_students: Make, number: int
) -> None:
    students = make_students(number)
    enroll_many(course=course, students=students, origin=BY_ANNA)
    unenroll_many(course=course, students=students, chunk_size=CHUNK_SIZE, origin=BY_ANNA)
    enroll_many(course=course, students=students, origin=BY_ANNA)
    assert done() == [what for what in ("enrolled", "withdrawn", "reenrolled") for _ in students]
    assert origins() == {("admin", "anna")}
    assert history_mismatches() == set()


def test_registrations_add_what_they_make_of_rows(course: Course, make_students: Make) -> None:
    students = make_students(3)
    day = datetime(2026, 1, 1, tzinfo=UTC)

    def register(*registrations: Registration) -> None:
        register_many(course=course, registrations=registrations, origin=BY_ANNA)

    register(
        Registration(students[0], day),
        Registration(students[1], day, day + timedelta(1), "withdrawn"),
        Registration(students[2], day, status="completed"),
    )
    assert done() == ["enrolled", "withdrawn", "completed"]
    register(
        Registration(students[0], day + timedelta(1)),
        Registration(students[1], day, status="completed"),
    )
    assert done()[3:] == ["dates_changed", "reenrolled"]
    assert history_mismatches() == set()


def test_an_actor_may_have_any_letters(course: Course, make_students: Make) -> None:
    names = ["o'brien %s \\ “x”", "%(a)s", "n" * 300]
    for name in names:
        student, *two = make_students(3)
        enroll(student=student, course=course, origin=Origin(Source.SYSTEM, name))
        enroll_many(course=course, students=two, origin=Origin(Source.SYSTEM, name))
    assert origins() == {("system", name[:150]) for name in names}


def test_who_did_it_is_told_after_they_were_erased(make_students: Make, course: Course) -> None:
    student, clerk = make_students(2)
    by_clerk = Origin(Source.ADMIN, clerk.username)
    enroll(student=clerk, course=course, origin=by_clerk)
    enroll(student=student, course=course, origin=by_clerk)
    erase_student(student=clerk)
    assert done() == ["enrolled", "erased"]
    assert EnrollmentEvent.objects.get(student=student).actor == clerk.username


# With the row, or not at all ------------------------------------------------------


def test_an_event_goes_back_with_its_row(student: Any, course: Course) -> None:
    with transaction.atomic():
        enroll(student=student, course=course)
        unenroll(student=student, course=course)
        transaction.set_rollback(True)
    assert (done(), Enrollment.objects.count(), drifts()) == ([], 0, {})


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "change",
    [
        lambda course, students: enroll(student=students[1], course=course),
        lambda course, students: unenroll(student=students[0], course=course),
        lambda course, students: enroll_many(course=course, students=students),
        lambda course, students: erase_student(student=students[0]),
    ],
    ids=["enroll", "unenroll", "enroll_many", "erase_student"],
)
def test_a_change_that_cannot_be_told_is_not_made(
    course: Course, make_students: Make, change: Callable[[Course, list[Any]], object]
) -> None:
    students = make_students(3)
    enroll(student=students[0], course=course)
    rows, events = list(Enrollment.objects.values()), list(EnrollmentEvent.objects.values())

    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("INSERT") and "enrollments_enrollmentevent" in sql:
            sql = sql.replace("enrollmentevent", "gone")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(refuse), pytest.raises(DatabaseError, match="enrollments_gone"):
        change(course, students)
    assert list(Enrollment.objects.values()) == rows
    assert list(EnrollmentEvent.objects.values()) == events
    course.refresh_from_db()
    assert (course.total_enrollments, drifts()) == (1, {})


def test_a_row_that_is_there_already_leaves_no_event(student: Any, course: Course) -> None:
    enroll(student=student, course=course)
    unenroll(student=student, course=course)
    with CaptureQueriesContext(connection) as queries:
        enroll(student=student, course=course)
    added = [query for query in queries if "INSERT INTO" in query["sql"]]
    assert len([query for query in added if "enrollmentevent" in query["sql"]]) == 1
    assert done() == ["enrolled", "withdrawn", "reenrolled"]


@pytest.mark.parametrize(
    "write",
    [
        lambda event: event.save(),
        lambda event: event.delete(),
        lambda event: EnrollmentEvent.objects.create(action="erased"),
        lambda event: EnrollmentEvent.objects.update(actor="somebody else"),
        lambda event: EnrollmentEvent.objects.all().delete(),
        lambda event: event.student.enrollment_events.all().delete(),
    ],
)
def test_events_are_not_written_past_the_services(
    student: Any, course: Course, write: Callable[[EnrollmentEvent], object]
) -> None:
    enroll(student=student, course=course)
    with pytest.raises(DirectWriteError, match="history of enrollments"):
        write(EnrollmentEvent.objects.get())
    assert done() == ["enrolled"]


# Who does it, and from where ------------------------------------------------------


def test_the_pages_and_the_api_say_who_it_was(
    signed_in: Client, student: Any, make_course: Make
) -> None:
    course = make_course(slug="databases")
    signed_in.post(f"/courses/{course.slug}/enroll/")
    signed_in.post(f"/courses/{course.slug}/leave/")
    assert (done(), origins()) == (["enrolled", "withdrawn"], {("website", student.username)})
    signed_in.put(f"/api/courses/{course.slug}/enrollment")
    signed_in.delete(f"/api/courses/{course.slug}/enrollment")
    assert done()[2:] == ["reenrolled", "withdrawn"]
    assert origins() == {("website", student.username), ("api", student.username)}


def test_the_admin_says_who_it_was(
    staff_client: Client, make_students: Make, course: Course
) -> None:
    student, other = make_students(2)
    add = reverse("admin:enrollments_enrollment_add")
    for each in (student, other):
        staff_client.post(add, {"student": each.pk, "course": course.pk})
    row, second = Enrollment.objects.order_by("pk")
    changed = {"status": "completed"}
    staff_client.post(reverse("admin:enrollments_enrollment_change", args=[row.pk]), changed)
    delete = reverse("admin:enrollments_enrollment_delete", args=[row.pk])
    staff_client.post(delete, {"post": "yes"})
    selected = {"action": "delete_selected", "_selected_action": [second.pk], "post": "yes"}
    staff_client.post(reverse("admin:enrollments_enrollment_changelist"), selected)
    assert done() == ["enrolled", "enrolled", "completed", "withdrawn", "withdrawn"]
    assert origins() == {("admin", "staff")}


@pytest.mark.django_db(transaction=True)
def test_an_import_says_which_account_ran_it(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "enrollments.csv"
    path.write_text("course_id,user_id,role,status\nC,u1,student,active\nC,u2,student,active\n")
    account = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert manage("import_enrollments", path, "--dry-run").returncode == 0
    assert done() == []
    assert manage("import_enrollments", path).returncode == 0
    assert (done(), origins()) == (["enrolled", "enrolled"], {("import", account)})
    assert manage("import_enrollments", path).returncode == 0
    assert len(done()) == 2
    path.write_text(path.read_text().replace("active", "deleted"))
    monkeypatch.setenv("SUDO_USER", "anna")
    assert manage("import_enrollments", path).returncode == 0
    assert origins() == {("import", account), ("import", f"anna as {account}")}


@pytest.mark.django_db(transaction=True)
def test_the_command_erases_whom_it_names_and_nobody_else(
    make_students: Make, course: Course, monkeypatch: Any
) -> None:
    student, other = make_students(2)
    for each in (student, other):
        enroll(student=each, course=course)
    for unknown in ("nobody", student.username.upper()):
        refused = manage("erase_student", unknown)
        assert_usage_error(refused, f"There is no user {unknown!r}")
    monkeypatch.setenv("SUDO_USER", "anna")
    erased = manage("erase_student", student.username)
    assert erased.stdout.startswith(f"Erased 1 enrollment of {student.username}.")
    assert list(Enrollment.objects.values_list("student", flat=True)) == [other.pk]
    assert drifts() == {}
    event = EnrollmentEvent.objects.get(student=student)
    assert (event.action, event.source) == ("erased", "system")
    assert event.actor.startswith("anna as ")


# Where it is shown ----------------------------------------------------------------


def test_it_is_shown_with_the_enrollment_and_the_student(
    staff_client: Client, make_students: Make, make_course: Make
) -> None:
    (student, other), (course, second) = make_students(2), (make_course(), make_course())
    enroll(student=student, course=course, origin=Origin(Source.WEBSITE, "<b>"))
    transfer(student=student, source=course, target=second, origin=BY_ANNA)
    enroll(student=other, course=course, origin=Origin(Source.API, "somebody else"))
    row = Enrollment.objects.get(student=student, course=course)
    page = staff_client.get(reverse("admin:enrollments_enrollment_change", args=[row.pk]))
    html = page.content.decode()
    assert f"Transferred out: {second}" in html
    assert "&lt;b&gt;" in html
    assert "Moved from" not in html
    page = staff_client.get(reverse("admin:auth_user_change", args=[student.pk]))
    html = page.content.decode()
    assert f"Transferred in: {course}" in html
    assert "somebody else" not in html
    page = staff_client.get(reverse("admin:enrollments_enrollment_history", args=[row.pk]))
    html = staff_client.get(page["Location"]).content.decode()
    assert (
        html.count("Enrolled"),
        html.count("Transferred out"),
        html.count("Transferred in"),
    ) == (1, 1, 0)
    html = staff_client.get(reverse("admin:enrollments_enrollmentevent_changelist")).content
    assert html.count(b'class="field-created_at') == 4


def test_a_long_history_shows_its_newest_events_and_a_link(
    staff_client: Client, student: Any, course: Course
) -> None:
    for _ in range(12):
        enroll(student=student, course=course)
        unenroll(student=student, course=course)
    url = reverse("admin:auth_user_change", args=[student.pk])
    html = staff_client.get(url).content.decode()
    assert "Only the newest 20 events are listed." in html
    assert "Enrolled" not in html
    assert f"?student__id__exact={student.pk}" in html
    everything = staff_client.get(
        reverse("admin:enrollments_enrollmentevent_changelist"), {"student__id__exact": student.pk}
    ).content.decode()
    assert "24 " in everything


def test_events_of_what_was_deleted_are_still_shown(
    staff_client: Client, student: Any, course: Course
) -> None:
    enroll(student=student, course=course)
    erase_student(student=student)
    keys = student.pk, course.pk
    student.delete()
    course.delete()
    event = EnrollmentEvent.objects.get()
    for url in (
        reverse("admin:enrollments_enrollmentevent_changelist"),
        reverse("admin:enrollments_enrollmentevent_change", args=[event.pk]),
    ):
        html = staff_client.get(url).content.decode()
        assert f"student number {keys[0]}, deleted" in html
        assert f"course number {keys[1]}, deleted" in html


def test_events_of_what_was_deleted_are_dumped(
    student: Any, course: Course, tmp_path: Path
) -> None:
    enroll(student=student, course=course)
    erase_student(student=student)
    key = student.pk
    student.delete()
    assert EnrollmentEvent.objects.get().student_name == f"student number {key}, deleted"
    path = tmp_path / "history.json"
    call_command("dumpdata", "enrollments", natural_foreign=True, output=str(path))
    assert [event["fields"]["action"] for event in json.loads(path.read_text())] == ["erased"]


def test_who_may_not_see_the_history_does_not(client: Client, student: Any, course: Course) -> None:
    enroll(student=student, course=course, origin=Origin(Source.ADMIN, "somebody"))
    row = Enrollment.objects.get()
    clerk = get_user_model().objects.create_user("clerk", is_staff=True)
    named = ["view_enrollment", "view_user"]
    clerk.user_permissions.add(*Permission.objects.filter(codename__in=named))
    client.force_login(clerk)
    for url in (
        reverse("admin:enrollments_enrollment_change", args=[row.pk]),
        reverse("admin:auth_user_change", args=[student.pk]),
        reverse("admin:enrollments_enrollment_history", args=[row.pk]),
    ):
        page = client.get(url)
        assert page.status_code == 200
        assert "somebody" not in page.content.decode()
    listed = client.get(reverse("admin:enrollments_enrollmentevent_changelist"))
    assert listed.status_code == 403


def test_the_pages_take_as_many_queries_for_many_events_as_for_one(
    staff_client: Client, student: Any, make_course: Make, django_assert_max_num_queries: Make
) -> None:
    courses = [make_course() for _ in range(8)]
    for course in courses:
        enroll(student=student, course=course)
    for source, target in pairwise(courses):
        unenroll(student=student, course=target)
        transfer(student=student, source=source, target=target)
    row = Enrollment.objects.first()
    for url, most in (
        (reverse("admin:enrollments_enrollment_change", args=[row.pk]), 6),
        (reverse("admin:enrollments_enrollmentevent_changelist"), 5),
    ):
        with django_assert_max_num_queries(most):
            staff_client.get(url)
