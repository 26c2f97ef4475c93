import signal
from typing import Any

import pytest
from django.test import Client, override_settings

from tests.conftest import unreachable_database
from tests.support import servers
from tests.support.commands import manage


def test_alive_needs_nothing(client: Client) -> None:
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert "no-store" in answer["Cache-Control"]


@override_settings(SECURE_SSL_REDIRECT=True, ALLOWED_HOSTS=["testserver"])
def test_load_balancers_ask_without_tls_and_by_address(db: None) -> None:
    client = Client()  # knows the setting from its first request on
    assert client.get("/").status_code == 301
    for address in ("/healthz", "/readyz"):
        assert client.get(address, headers={"Host": "10.0.0.5"}).status_code == 200
    assert client.get("/", headers={"Host": "10.0.0.5"}).status_code == 400


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_without_its_database_it_is_not_ready_and_then_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/readyz").json()["database"] == "ok"
    with unreachable_database(monkeypatch):
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["database"]) == (503, "unavailable")
        assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200


@pytest.mark.mariadb
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_without_redis_it_is_degraded_and_ready(
    client: Client, db: None, settings: Any, how: str
) -> None:
    with servers.redis() as redis:
        settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": redis.url}}
        assert client.get("/readyz").json() == {"status": "ok", "database": "ok", "redis": "ok"}
        if how == "killed":
            redis.kill()
        else:
            redis.signal(signal.SIGSTOP)
        answer = client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json() == {"status": "degraded", "database": "ok", "redis": "unavailable"}


@pytest.mark.sqlite
@pytest.mark.django_db
def test_without_a_setting_redis_is_not_missed(client: Client) -> None:
    assert client.get("/readyz").json() == {"status": "ok", "database": "ok", "redis": "unused"}


@pytest.mark.mariadb
def test_a_database_that_hangs_keeps_nobody_for_longer_than_said() -> None:
    with servers.mariadb() as database:
        code = (
            "import os, time; from django.db import connection, Error\n"
            "with connection.cursor() as cursor:\n"
            f"    os.kill({database.process.pid}, {int(signal.SIGSTOP)})\n"
            "    time.sleep(0.5)  # it takes a moment\n"
            "    began = time.monotonic()\n"
            "    try: cursor.execute('SELECT 1')\n"
            "    except Error as error: print(error.args[0], round(time.monotonic() - began))\n"
        )
        try:
            said = manage(
                *("shell", "--no-imports", "-c", code),
                env={"DATABASE_URL": database.url, "DATABASE_TIMEOUT": "1"},
            )
        finally:
            database.signal(signal.SIGCONT)
    assert said.stdout.split() == ["2013", "1"], said.stderr
