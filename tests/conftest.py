"""Fixtures of all tests: databases that other processes can open, and small factories."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.db import connection
from django.test import Client, override_settings

from courses.models import Course
from tests.support.databases import connection_options
from tests.support.proxy import TCPProxy, tcp_proxy_to


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of the other database, and run the browser tests last."""
    other = {"mysql": "sqlite", "sqlite": "mariadb"}[connection.vendor]
    deselected = [item for item in items if item.get_closest_marker(other)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]
    # From its first test on, Playwright keeps an event loop running in this thread.
    items.sort(key=lambda item: "browser" in item.fixturenames)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    if connection.vendor == "sqlite":
        # Other processes and threads cannot open a database in memory.
        path = tmp_path_factory.mktemp("database") / "test.sqlite3"
        connection.settings_dict["TEST"]["NAME"] = str(path)


@pytest.fixture(scope="session", autouse=True)
def plain_http() -> Iterator[None]:
    """Serve HTTP, because Django's test client and server do not speak HTTPS."""
    with override_settings(
        SECURE_SSL_REDIRECT=False, SESSION_COOKIE_SECURE=False, CSRF_COOKIE_SECURE=False
    ):
        yield


@pytest.fixture
def make_course(db: None) -> Callable[..., Course]:
    numbers = count(1)

    def make(**values: Any) -> Course:
        number = next(numbers)
        return Course.objects.create(
            **({"title": f"Course {number}", "slug": f"course-{number}"} | values)
        )

    return make


@pytest.fixture
def make_students(db: None) -> Callable[[int], list[Any]]:
    numbers = count(1)

    def make(number: int) -> list[Any]:
        users = get_user_model()._default_manager
        names = [f"student{next(numbers)}" for _ in range(number)]
        users.bulk_create(
            [users.model(username=name, password=make_password(None)) for name in names]
        )
        return list(users.filter(username__in=names).order_by("pk"))

    return make


@pytest.fixture
def course(make_course: Callable[..., Course]) -> Course:
    return make_course()


@pytest.fixture
def student(make_students: Callable[[int], list[Any]]) -> Any:
    return make_students(1)[0]


@pytest.fixture
def student_client(client: Client, student: Any) -> Client:
    """Return the client with the student signed in."""
    client.force_login(student)
    return client


@pytest.fixture
def staff_client(client: Client, django_user_model: Any) -> Client:
    """Return the client with a superuser signed in."""
    client.force_login(django_user_model.objects.create_superuser("staff"))
    return client


@pytest.fixture(params=["DISABLED", "REQUIRED"], ids=["plain", "TLS"])
def database_proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TCPProxy]:
    """Route the test's own connection to the database through a proxy that can drop it."""
    settings = connection.settings_dict
    address = settings["HOST"], settings["PORT"]
    with (
        connection_options(ssl_mode=request.param),
        tcp_proxy_to(address[0], int(address[1]), tmp_path) as proxy,
    ):
        settings["HOST"], settings["PORT"] = "127.0.0.1", proxy.port
        yield proxy
        connection.close()
        settings["HOST"], settings["PORT"] = address
        assert proxy.tls_requests or request.param == "DISABLED"


@pytest.fixture
def short_lock_timeout() -> Iterator[None]:
    """Make the test's own connection wait for a lock for at most a second."""
    statement = {
        "mysql": "SET SESSION innodb_lock_wait_timeout = 1, lock_wait_timeout = 1",
        "sqlite": "PRAGMA busy_timeout = 100",
    }
    with connection.cursor() as cursor:
        cursor.execute(statement[connection.vendor])
    yield
    connection.close()
