from typing import Any

import pytest
from django.db import InterfaceError, OperationalError
from django.test import Client

from courses.models import Course
from tests.support.databases import unreachable_database
from tests.support.pages import sign_in_staff, visible_text


def fail_catalog(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make the catalog's page and its API endpoint raise `error`."""

    def fail(**arguments: Any) -> None:
        raise error

    monkeypatch.setattr("courses.views.catalog_page", fail)
    monkeypatch.setattr("courses.api.catalog_page", fail)


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/", "/my-courses/", "/api/courses"])
def test_unreachable_database_is_a_503_with_retry_after(
    client: Client, student: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    client.force_login(student)
    with unreachable_database(monkeypatch):
        response = client.get(path)
    assert (response.status_code, response["Retry-After"]) == (503, "5")
    assert "The database is busy or unavailable." in visible_text(response)
    assert ("json" in response["Content-Type"]) == path.startswith("/api/")
    assert client.get(path).status_code == 200


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("action", ["enroll", "leave"])
def test_503_after_a_change_links_to_the_course(
    student_client: Client, course: Course, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    with unreachable_database(monkeypatch):
        response = student_client.post(f"{course.get_absolute_url()}{action}/")
    assert response.status_code == 503
    link = f'<a href="{course.get_absolute_url()}">Back to the course</a>'
    assert link in response.content.decode()


@pytest.mark.parametrize("path", ["/", "/api/courses"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OperationalError(1040, "Too many connections"), 503),
        (OperationalError(1205, "Lock wait timeout exceeded"), 503),
        (InterfaceError(0, ""), 503),
        (OperationalError(2026, "TLS/SSL error: unexpected eof while reading"), 503),
        (OperationalError(2026, "TLS/SSL error: certificate verify failed"), 500),
        (OperationalError(2026, "TLS/SSL error: SSL is required, but the server …"), 500),
        (OperationalError(1054, "Unknown column"), 500),
        (ConnectionError("not the database"), 500),
    ],
)
def test_only_transient_database_errors_are_503(
    client: Client,
    db: None,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: Exception,
    status: int,
) -> None:
    fail_catalog(monkeypatch, error)
    client.raise_request_exception = False
    assert client.get(path).status_code == status


@pytest.mark.parametrize("path", ["/", "/api/courses"])
def test_500_does_not_reveal_the_error(
    client: Client, db: None, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    fail_catalog(monkeypatch, RuntimeError("a secret"))
    client.raise_request_exception = False
    response = client.get(path)
    text = visible_text(response)
    assert (response.status_code, "a secret" in text) == (500, False)
    assert "Something went wrong" in text or "Internal Server Error." in text
    assert ("json" in response["Content-Type"]) == path.startswith("/api/")


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/nowhere", "text/html"), ("/courses/none/", "text/html"), ("/api/x", "application/json")],
)
def test_404_is_json_below_api_only(client: Client, db: None, path: str, content_type: str) -> None:
    response = client.get(path)
    assert (response.status_code, content_type in response["Content-Type"]) == (404, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("get", "/nowhere", 404),
        ("get", "/admin/courses/course/", 403),
        ("post", "/accounts/sign-out/", 403),  # without a CSRF token
    ],
)
def test_error_pages_show_who_is_signed_in(db: None, method: str, path: str, status: int) -> None:
    client = Client(enforce_csrf_checks=True)
    assert "Course catalog Sign in" in visible_text(client.get("/nowhere"))
    sign_in_staff(client)
    response = getattr(client, method)(path)
    assert response.status_code == status
    assert "My courses Administration clerk Sign out" in visible_text(response)


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_404_needs_no_database(student_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with unreachable_database(monkeypatch):
        response = student_client.get("/nowhere")
    assert (response.status_code, "Page not found" in visible_text(response)) == (404, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("post", "/api/courses", 405),
        ("get", "/api/courses/x/enrollment", 405),
        ("post", "/api/openapi.json", 403),
        ("get", "/api/a/b/c", 404),
    ],
)
def test_api_errors_are_json(db: None, method: str, path: str, status: int) -> None:
    client = Client(enforce_csrf_checks=True)
    response = getattr(client, method)(path)
    assert (response.status_code, list(response.json())) == (status, ["detail"])


def test_content_security_policy_forbids_inline_code_and_other_sites(
    client: Client, course: Course
) -> None:
    pages = ("/", course.get_absolute_url(), "/accounts/sign-in/", "/admin/login/", "/nowhere")
    for path in (*pages, "/api/courses", "/static/site/site.css"):
        response = client.get(path)
        if response.streaming:
            list(response)  # reading the file to its end closes it
        policy = response["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
