"""What staff may do with accounts in the admin: forms are sent as they are forged, not as shown."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.test import Client
from django.utils import timezone

from enrollments.models import SelfRegistration
from tests.support.pages import column_values, message_texts, sign_in_staff

USERS = "/admin/auth/user/"
GROUPS = "/admin/auth/group/"
PASSWORD = "corr3ct-horse"
RIGHTS = ("is_staff", "is_superuser", "groups", "user_permissions")


@pytest.fixture
def clerk(client: Client, db: None) -> Any:
    """Return a member of staff with all permissions for users and groups, signed in."""
    names = [
        f"{action}_{model}"
        for action in ("add", "change", "delete", "view")
        for model in ("user", "group")
    ]
    sign_in_staff(client, *names)
    return get_user_model().objects.get(username="clerk")


@pytest.fixture
def group(db: None) -> Group:
    return Group.objects.create(name="office")


def forged_rights(group: Group) -> dict[str, Any]:
    permission = Permission.objects.get(codename="change_course")
    return {
        "is_staff": "on",
        "is_superuser": "on",
        "groups": [group.pk],
        "user_permissions": [permission.pk],
    }


def rights(user: Any) -> list[Any]:
    user = get_user_model().objects.get(pk=user.pk)
    values = [user.is_staff, user.is_superuser]
    return values + [[*getattr(user, name).all()] for name in ("groups", "user_permissions")]


def change_form(user: Any, **changes: Any) -> dict[str, Any]:
    form = {"username": user.username, "first_name": "New", "is_active": "on"}
    return form | {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"} | changes


def test_staff_cannot_grant_rights_with_the_change_form(
    client: Client, clerk: Any, group: Group, student: Any
) -> None:
    form = change_form(student, **forged_rights(group))
    assert client.post(f"{USERS}{student.pk}/change/", form).status_code == 302
    assert get_user_model().objects.get(pk=student.pk).first_name == "New"
    assert rights(student) == [False, False, [], []]


def test_staff_cannot_grant_rights_with_the_add_form(
    client: Client, clerk: Any, group: Group
) -> None:
    form = {"username": "new", "password1": PASSWORD, "password2": PASSWORD}
    form |= {"usable_password": "true"} | forged_rights(group)
    assert client.post(f"{USERS}add/", form).status_code == 302
    assert rights(get_user_model().objects.get(username="new")) == [False, False, [], []]


@pytest.mark.parametrize("target", ["own", "staff", "superuser"])
def test_staff_cannot_change_accounts_with_rights(
    client: Client, clerk: Any, group: Group, target: str
) -> None:
    users = get_user_model().objects
    user = clerk if target == "own" else users.create_user("boss", is_staff=target == "staff")
    if target == "superuser":
        users.filter(pk=user.pk).update(is_superuser=True)
    before = users.filter(pk=user.pk).values().get(), rights(user)
    password = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    selected = {"action": "delete_selected", "_selected_action": [user.pk], "post": "yes"}
    for path, form in {
        f"{USERS}{user.pk}/change/": change_form(user, **forged_rights(group)),
        f"{USERS}{user.pk}/password/": password,
        f"{USERS}{user.pk}/delete/": {"post": "yes"},
        USERS: selected,
    }.items():
        assert client.post(path, form).status_code == 403, path
    assert (users.filter(pk=user.pk).values().get(), rights(user)) == before
    assert client.get(f"{USERS}{user.pk}/change/").status_code == 200


def test_staff_can_change_their_own_password(client: Client, clerk: Any) -> None:
    clerk.set_password("former-passw0rd")
    clerk.save()
    client.force_login(clerk)
    form = {"old_password": "former-passw0rd", "new_password1": PASSWORD, "new_password2": PASSWORD}
    assert client.post("/admin/password_change/", form).status_code == 302
    assert get_user_model().objects.get(pk=clerk.pk).check_password(PASSWORD)


def test_staff_can_manage_students(client: Client, clerk: Any, student: Any) -> None:
    password = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    assert client.post(f"{USERS}{student.pk}/password/", password).status_code == 302
    assert get_user_model().objects.get(pk=student.pk).check_password(PASSWORD)
    assert client.post(f"{USERS}{student.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not get_user_model().objects.filter(pk=student.pk).exists()


def test_only_superusers_change_groups(client: Client, clerk: Any, group: Group) -> None:
    group.user_set.add(clerk)
    permission = Permission.objects.get(codename="change_course")
    form = {"name": "renamed", "permissions": [permission.pk]}
    selected = {"action": "delete_selected", "_selected_action": [group.pk], "post": "yes"}
    for path in (f"{GROUPS}add/", f"{GROUPS}{group.pk}/change/", f"{GROUPS}{group.pk}/delete/"):
        assert client.post(path, form | {"post": "yes"}).status_code == 403, path
    client.post(GROUPS, selected)
    assert list(Group.objects.values_list("name", "permissions")) == [("office", None)]
    assert client.get(GROUPS).status_code == 200
    client.force_login(get_user_model().objects.create_superuser("root"))
    assert client.post(f"{GROUPS}{group.pk}/change/", form).status_code == 302
    assert list(Group.objects.values_list("name", "permissions")) == [("renamed", permission.pk)]


def test_superusers_grant_rights(staff_client: Client, group: Group, student: Any) -> None:
    form = change_form(student, **forged_rights(group))
    assert staff_client.post(f"{USERS}{student.pk}/change/", form).status_code == 302
    permission = Permission.objects.get(codename="change_course")
    assert rights(student) == [True, True, [group], [permission]]


def test_staff_confirm_self_registered_accounts(
    client: Client, clerk: Any, make_students: Any
) -> None:
    students = make_students(3)
    for user in students[:2]:
        SelfRegistration.objects.create(user=user, created_at=timezone.now())
    page = client.get(f"{USERS}?self_registered=yes")
    assert column_values(page, "username") == ["student1", "student2"]
    form = {"action": "confirm", "_selected_action": [students[0].pk, students[2].pk]}
    page = client.post(USERS, form, follow=True)
    assert message_texts(page) == ["Confirmed 1 user."]
    assert SelfRegistration.objects.get().user == students[1]
    (entry,) = LogEntry.objects.all()
    assert (entry.object_repr, entry.change_message) == ("student1", "Confirmed.")


def test_confirming_needs_the_permission_to_change_users(client: Client, student: Any) -> None:
    SelfRegistration.objects.create(user=student, created_at=timezone.now())
    sign_in_staff(client, "view_user")
    client.post(USERS, {"action": "confirm", "_selected_action": [student.pk]})
    assert SelfRegistration.objects.exists()
