"""The admin site, and every list and form of the admin with invalid input."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group
from django.test import Client
from django.urls import reverse
from django.utils.html import escape

from courses.models import Course, Subject
from enrollments.services import enroll
from tests.support.audits import CHECK, add_drift, run_recorded
from tests.support.pages import column_values, message_texts, visible_text

Make = Callable[..., Any]
MODELS = [model for model in apps.get_models() if admin.site.is_registered(model)]
INVALID = ["x", "", "9" * 30, "1,2", "\x00"]

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model._meta.label_lower)


@pytest.fixture
def objects(course: Course, student: Any) -> None:
    """Create an object of every model."""
    Subject.objects.create(name="Art", slug="art")
    Group.objects.create(name="tutors")
    AccessAttempt.objects.create(username="anna", failures_since_start=1)
    enroll(student=student, course=course)
    add_drift(course)
    run_recorded(CHECK)


def test_failed_sign_ins_have_no_action_of_a_disabled_log(
    admin_client: Client, objects: None
) -> None:
    page = admin_client.get(admin_url(AccessAttempt, "changelist"))
    assert "anna" in visible_text(page)
    assert "Clean up" not in visible_text(page)


def admin_url(model: Any, page: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def invalid_gets(model: Any) -> Iterator[tuple[str, dict[str, str]]]:
    relations = [field.name for field in model._meta.get_fields() if field.is_relation]
    lookups = [f"{name}{suffix}" for name in relations for suffix in ("", "__id__exact")]
    filters = ["drifted", "kind__exact", "is_full__exact", "locked_out", "attempt_time__year"]
    flags = ["_popup", "_to_field", "_changelist_filters"]
    pk = model._default_manager.values_list("pk", flat=True)[0]
    forms = [admin_url(model, page, pk) for page in ("change", "delete", "history")]
    for value in INVALID:
        for name in (
            "p",
            "o",
            "e",
            "all",
            "q",
            *flags,
            *filters,
            *lookups,
            "pk__in",
            "no_such_field",
        ):
            yield admin_url(model, "changelist"), {name: value}
        for path in (admin_url(model, "add"), *forms):
            for name in (*flags, *relations):
                yield path, {name: value}
        if value:
            for page in ("change", "delete", "history"):
                yield admin_url(model, page, value), {}


@every_model
def test_invalid_addresses_are_no_server_errors(
    staff_client: Client, objects: None, model: Any
) -> None:
    staff_client.raise_request_exception = False
    requests = list(invalid_gets(model))
    statuses = [staff_client.get(path, query).status_code for path, query in requests]
    assert [item for item in zip(statuses, requests, strict=True) if item[0] >= 500] == []


@every_model
def test_invalid_forms_are_no_server_errors(
    staff_client: Client, objects: None, model: Any
) -> None:
    staff_client.raise_request_exception = False
    pks = list(model._default_manager.values_list("pk", flat=True))
    names = [field.name for field in model._meta.get_fields()]
    actions = [*(admin.site.get_model_admin(model).actions or ()), "delete_selected", "x"]
    requests: list[tuple[str, dict[str, Any]]] = []
    for value in INVALID:
        for form in ("add", "change"):
            path = admin_url(model, form, *(pks[:1] if form == "change" else ()))
            # On SQLite, Django's field for many objects fails for integers of 65 bits.
            requests.append((path, dict.fromkeys(names, value[:18])))
        for action in actions:
            data = {"action": action, "_selected_action": value}
            lists = [data, data | {"post": "yes"}, data | {"select_across": value, "index": value}]
            requests += [(admin_url(model, "changelist"), item) for item in lists]
    statuses = [staff_client.post(path, data).status_code for path, data in requests]
    assert [item for item in zip(statuses, requests, strict=True) if item[0] >= 500] == []
    assert set(pks) <= set(model._default_manager.values_list("pk", flat=True))


def test_an_action_on_invalid_keys_reports_it(staff_client: Client, course: Course) -> None:
    data = {"action": "delete_selected", "_selected_action": [course.pk, "x"], "post": "yes"}
    page = staff_client.post(admin_url(Course, "changelist"), data, follow=True)
    assert message_texts(page) == ["Nothing was changed, because the selection is invalid."]
    assert Course.objects.exists()


def test_an_invalid_key_in_the_address_selects_nothing(
    staff_client: Client, course: Course
) -> None:
    path = "/admin/enrollments/enrollment/add/"
    selected = f'<option value="{course.pk}" selected>'
    assert selected in staff_client.get(f"{path}?course={course.pk}&student=x").content.decode()


def test_a_list_names_the_object_that_it_is_filtered_by(
    staff_client: Client, make_course: Make, student: Any
) -> None:
    course = make_course(title="<b>Law</b>")
    enroll(student=student, course=course)
    path = f"/admin/enrollments/enrollmentevent/?course__id__exact={course.pk}"
    for query, title in [
        ("", "Enrollment events: <b>Law</b>"),
        (f"&student__id__exact={student.pk}", "Enrollment events: <b>Law</b>, student1"),
    ]:
        page = staff_client.get(path + query)
        html = page.content.decode()
        assert f"<h1>{escape(title)}</h1>" in html
        assert f"<title>{escape(title)} | Course catalog administration</title>" in html
        assert len(column_values(page, "description")) == 1
    # An object that does not exist has no name.
    page = staff_client.get("/admin/enrollments/enrollment/?course__id__exact=0")
    assert page.context["title"] == "Select enrollment to change"


def test_no_page_carries_the_name_of_django(staff_client: Client, objects: None) -> None:
    paths = [
        *("/admin/", "/admin/password_change/", "/admin/password_change/done/"),
        *(admin_url(model, "changelist") for model in MODELS),
    ]
    pages = [staff_client.get(path) for path in paths]
    pages.append(Client().get("/admin/login/"))
    for page in pages:
        assert page.status_code == 200
        assert "Course catalog administration" in visible_text(page)
        assert "Django" not in visible_text(page)


def test_lists_that_are_always_empty_are_hidden(staff_client: Client) -> None:
    html = staff_client.get("/admin/").content.decode()
    assert "/admin/axes/accessattempt/" in html
    assert "/admin/axes/accesslog/" not in html
    assert "/admin/axes/accessfailurelog/" not in html


def test_dates_have_one_format(staff_client: Client, objects: None) -> None:
    for model, name in [("enrollmentevent", "created_at"), ("enrollment", "enrollment_date")]:
        path = f"/admin/enrollments/{model}/"
        (row,) = apps.get_model("enrollments", model)._default_manager.all()
        date = getattr(row, name)
        expected = f"{date:%b %-d, %Y, %H:%M}"
        assert column_values(staff_client.get(path), name) == [expected]
        text = visible_text(staff_client.get(f"{path}{row.pk}/change/"))
        assert (expected in text, f"{date:%Y-%m-%d}" in text) == (True, False)
