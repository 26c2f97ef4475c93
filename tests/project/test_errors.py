from typing import Any

import pytest
from django.db import InterfaceError, OperationalError
from django.test import Client

from courses.models import Course
from tests.conftest import unreachable_database
from tests.support.pages import text


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("address", ["/", "/my-courses/", "/api/courses"])
def test_a_database_that_is_away_is_said_with_when_to_come_back(
    client: Client, student: Any, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    client.force_login(student)
    with unreachable_database(monkeypatch):
        answer = client.get(address)
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert "The database is too busy, or away." in text(answer)
    assert ("json" in answer["Content-Type"]) == address.startswith("/api/")
    assert client.get(address).status_code == 200


@pytest.mark.parametrize("address", ["/", "/api/courses"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OperationalError(1040, "Too many connections"), 503),
        (OperationalError(1205, "Lock wait timeout exceeded"), 503),
        (InterfaceError(0, ""), 503),
        (OperationalError(1054, "Unknown column"), 500),
        (ConnectionError("not the database"), 500),
    ],
)
def test_only_what_passes_is_a_503(
    client: Client,
    db: None,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    error: Exception,
    status: int,
) -> None:
    def fail(**asked: Any) -> None:
        raise error

    monkeypatch.setattr("courses.views.catalog_page", fail)
    monkeypatch.setattr("courses.api.catalog_page", fail)
    client.raise_request_exception = False
    assert client.get(address).status_code == status


@pytest.mark.parametrize("address", ["/", "/api/courses"])
def test_an_error_of_ours_is_a_500_that_tells_nothing(
    client: Client, db: None, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    def fail(**asked: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("courses.views.catalog_page", fail)
    monkeypatch.setattr("courses.api.catalog_page", fail)
    client.raise_request_exception = False
    answer = client.get(address)
    assert (answer.status_code, "a secret" in text(answer)) == (500, False)
    assert "Something went wrong" in text(answer) or "Internal Server Error." in text(answer)
    assert ("json" in answer["Content-Type"]) == address.startswith("/api/")


@pytest.mark.parametrize(
    ("address", "kind"), [("/nowhere", "html"), ("/courses/none/", "html"), ("/api/x", "json")]
)
def test_what_is_not_there(client: Client, db: None, address: str, kind: str) -> None:
    answer = client.get(address)
    assert (answer.status_code, kind in answer["Content-Type"]) == (404, True)


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("post", "/api/courses", 405),
        ("get", "/api/courses/x/enrollment", 405),
        ("post", "/api/openapi.json", 403),
        ("get", "/api/a/b/c", 404),
    ],
)
def test_programs_are_refused_in_json(db: None, method: str, address: str, status: int) -> None:
    client = Client(enforce_csrf_checks=True)
    answer = getattr(client, method)(address)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])


def test_each_answer_forbids_what_is_inline_or_from_elsewhere(
    client: Client, course: Course
) -> None:
    addresses = ("/", course.get_absolute_url(), "/accounts/sign-in/", "/admin/login/", "/nowhere")
    for address in (*addresses, "/api/courses", "/static/site/site.css"):
        answer = client.get(address)
        if answer.streaming:
            list(answer)  # the file is closed at its end
        policy = answer["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
