import signal
from typing import Any

import pytest
from django.test import Client, override_settings

from tests.support import servers
from tests.support.commands import manage
from tests.support.databases import unreachable_database


def test_healthz_uses_no_database(client: Client) -> None:
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert "no-store" in response["Cache-Control"]


@override_settings(SECURE_SSL_REDIRECT=True, ALLOWED_HOSTS=["testserver"])
def test_health_checks_work_over_http_and_with_an_ip_address(db: None) -> None:
    client = Client()  # a new client, because middleware reads the settings once
    assert client.get("/").status_code == 301
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers={"Host": "10.0.0.5"}).status_code == 200
    assert client.get("/", headers={"Host": "10.0.0.5"}).status_code == 400


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_readyz_is_503_while_the_database_is_unreachable(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/readyz").json()["database"] == "ok"
    with unreachable_database(monkeypatch):
        response = client.get("/readyz")
        assert (response.status_code, response.json()["database"]) == (503, "unavailable")
        assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200


@pytest.mark.mariadb
@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_readyz_is_degraded_without_redis(
    client: Client, db: None, settings: Any, fault: str
) -> None:
    with servers.redis() as redis:
        settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": redis.url}}
        assert client.get("/readyz").json() == {"status": "ok", "database": "ok", "redis": "ok"}
        if fault == "killed":
            redis.kill()
        else:
            redis.signal(signal.SIGSTOP)
        response = client.get("/readyz")
        assert response.status_code == 200
        assert response.json() == {"status": "degraded", "database": "ok", "redis": "unavailable"}


@pytest.mark.sqlite
@pytest.mark.django_db
def test_readyz_is_ok_if_redis_is_not_configured(client: Client) -> None:
    assert client.get("/readyz").json() == {"status": "ok", "database": "ok", "redis": "unused"}


@pytest.mark.mariadb
def test_database_timeout_ends_queries_of_a_hung_database() -> None:
    with servers.mariadb() as database:
        code = (
            "import os, time; from django.db import connection, Error\n"
            "with connection.cursor() as cursor:\n"
            f"    os.kill({database.process.pid}, {int(signal.SIGSTOP)})\n"
            "    time.sleep(0.5)  # until it has stopped\n"
            "    start = time.monotonic()\n"
            "    try: cursor.execute('SELECT 1')\n"
            "    except Error as error: print(error.args[0], round(time.monotonic() - start))\n"
        )
        try:
            result = manage(
                *("shell", "--no-imports", "-c", code),
                env={"DATABASE_URL": database.url, "DATABASE_TIMEOUT": "1"},
            )
        finally:
            database.signal(signal.SIGCONT)
    assert result.stdout.split() == ["2013", "1"], result.stderr
