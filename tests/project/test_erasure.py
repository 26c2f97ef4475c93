"""No table names a deleted user, whichever way the user was deleted."""

import json
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.test import Client

from courses.counts.audit import run_audit
from courses.models import CountRun
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.services import erase_student

NAME = "zoe.quentin"
FORMER_NAME = "zoe.former"
PASSWORD = "corr3ct-horse"
USERS = "/admin/auth/user/"
ENROLLMENTS = "/admin/enrollments/enrollment/"


@pytest.fixture
def zoe(staff_client: Client, settings: Any, make_course: Any, student: Any) -> Any:
    """Return a user whose name is in every table that can hold it."""
    form = {"username": FORMER_NAME, "password1": PASSWORD, "password2": PASSWORD}
    staff_client.post(f"{USERS}add/", form | {"usable_password": "true"})
    user = get_user_model().objects.get(username=FORMER_NAME)
    course = make_course()
    staff_client.post(f"{ENROLLMENTS}add/", {"student": user.pk, "course": course.pk})
    form = {"username": NAME, "is_active": "on", "is_staff": "on", "is_superuser": "on"}
    form |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    staff_client.post(f"{USERS}{user.pk}/change/", form)
    selected = {"action": "withdraw", "_selected_action": [Enrollment.objects.get().pk]}
    staff_client.post(ENROLLMENTS, selected | {"post": "yes"})
    client = Client()
    for path, form in {
        "/accounts/sign-in/": {"username": NAME, "password": PASSWORD},
        f"{course.get_absolute_url()}enroll/": {},
        f"{ENROLLMENTS}add/": {"student": student.pk, "course": course.pk},
    }.items():
        assert client.post(path, form).status_code == 302, path
    Client().post("/accounts/sign-in/", {"username": NAME.upper(), "password": "guess"})
    list(run_audit(kind=CountRun.Kind.CHECK, actor=f"admin: {NAME}"))
    user.refresh_from_db()
    return user


def rows_that_contain(*texts: str) -> list[str]:
    """Return the rows of all tables that contain a text in any case, sessions decoded."""
    rows = [
        f"{model._meta.label}: {json.dumps(values, default=str)}"
        for model in apps.get_models()
        for values in model._base_manager.values()
    ]
    rows += [f"session: {session.get_decoded()}" for session in Session.objects.all()]
    return [row for row in rows if any(text.lower() in row.lower() for text in texts)]


def delete_with_the_command(client: Client, user: Any) -> None:
    call_command("erase_student", NAME, "--no-input", "--delete-user")


def delete_in_the_admin(client: Client, user: Any) -> None:
    call_command("erase_student", NAME, "--no-input")
    client.post(f"{USERS}{user.pk}/delete/", {"post": "yes"})


def delete_selected_in_the_admin(client: Client, user: Any) -> None:
    call_command("erase_student", NAME, "--no-input")
    selected = {"action": "delete_selected", "_selected_action": [user.pk], "post": "yes"}
    client.post(USERS, selected)


def delete_in_code(client: Client, user: Any) -> None:
    # An earlier version has erased the enrollments, but not the log of the admin.
    erase_student(student=user)
    user.delete()


@pytest.mark.parametrize(
    "delete",
    [delete_with_the_command, delete_in_the_admin, delete_selected_in_the_admin, delete_in_code],
)
def test_no_table_names_a_deleted_user(staff_client: Client, zoe: Any, delete: Any) -> None:
    tables = {row.split(":")[0] for row in rows_that_contain(NAME, FORMER_NAME)}
    assert tables == {
        "admin.LogEntry",
        "auth.User",
        "axes.AccessAttempt",
        "courses.CountRun",
        "enrollments.EnrollmentEvent",
    }
    user_id = zoe.pk
    delete(staff_client, zoe)
    assert not get_user_model().objects.filter(pk=user_id).exists()
    former_name = [] if delete is delete_in_code else [FORMER_NAME]
    assert rows_that_contain(NAME, *former_name) == []
    actors = EnrollmentEvent.objects.values_list("actor", flat=True)
    assert f"deleted user {user_id}" in actors
    assert CountRun.objects.get().actor == f"admin: deleted user {user_id}"
    if delete is not delete_selected_in_the_admin:
        assert rows_that_contain(f"'_auth_user_id': '{user_id}'") == []


def test_names_of_other_users_are_kept(
    staff_client: Client, zoe: Any, make_course: Any, make_students: Any
) -> None:
    other = get_user_model().objects.create_user(f"{NAME}2")
    form = {"student": other.pk, "course": make_course().pk}
    staff_client.post(f"{ENROLLMENTS}add/", form)
    call_command("erase_student", NAME, "--no-input", "--delete-user")
    assert {row.split(":")[0] for row in rows_that_contain(NAME)} == {"admin.LogEntry", "auth.User"}


def test_runs_of_former_staff_are_anonymized(student: Any) -> None:
    list(run_audit(kind=CountRun.Kind.CHECK, actor=f"admin: {student.username}"))
    user_id = student.pk
    student.delete()
    assert CountRun.objects.get().actor == f"admin: deleted user {user_id}"
