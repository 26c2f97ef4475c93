"""What all tests share: databases that other processes can open, and small factories."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management import call_command
from django.db import connection
from django.test import Client, override_settings

from courses.models import Course
from tests.support.commands import NOBODY
from tests.support.proxy import TCPProxy, tcp_proxy_to


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    other = {"mysql": "sqlite", "sqlite": "mariadb"}[connection.vendor]
    left_out = [item for item in items if item.get_closest_marker(other)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    # Playwright keeps an event loop running in this thread from its first test on.
    items.sort(key=lambda item: "browser" in item.fixturenames)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    if connection.vendor == "sqlite":
        # In memory, other processes and threads could not open it.
        path = tmp_path_factory.mktemp("database") / "test.sqlite3"
        connection.settings_dict["TEST"]["NAME"] = str(path)


@pytest.fixture(scope="session", autouse=True)
def plain_http() -> Iterator[None]:
    """Django's test client and server don't speak https, and would only ever redirect to it."""
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
def signed_in(client: Client, student: Any) -> Client:
    """A browser in which the student is signed in."""
    client.force_login(student)
    return client


@pytest.fixture
def staff_client(client: Client, django_user_model: Any) -> Client:
    """A browser in which a superuser is signed in."""
    client.force_login(django_user_model.objects.create_superuser("staff"))
    return client


@pytest.fixture
def wire() -> Iterator[TCPProxy]:
    """The test's own connection to the database, through something that can cut it."""
    settings = connection.settings_dict
    before = settings["HOST"], settings["PORT"]
    connection.close()
    with tcp_proxy_to(before[0], int(before[1])) as wire:
        settings["HOST"], settings["PORT"] = "127.0.0.1", wire.port
        yield wire
        connection.close()
        settings["HOST"], settings["PORT"] = before


@contextmanager
def connected_to(url: str) -> Iterator[None]:
    """The test's own connection is to another MariaDB, with tables of its own."""
    server, settings = urlsplit(url), connection.settings_dict
    there = {"PORT": server.port, "PASSWORD": server.password, "NAME": server.path[1:]}
    before = {name: settings[name] for name in there}
    connection.close()
    settings |= there
    try:
        call_command("migrate", verbosity=0)
        yield
    finally:
        connection.close()
        settings |= before


@contextmanager
def unreachable_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody answers where the database was."""
    connection.close()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "PORT", int(NOBODY.split(":")[1]))
        yield
        connection.close()


def drifts() -> dict[str, int]:
    """All courses that drifted, by title. Empty is right."""
    return dict(Course.objects.drifted().values_list("title", "drift"))
