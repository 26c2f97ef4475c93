"""Settings are read once at the start, so each test starts a process of its own."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from project.secret_key import local_secret_key
from tests.support.commands import NOBODY, PROJECT, environment
from tests.support.site import running_site


def manage(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=PROJECT,
        env=kept | {"SECRET_KEY": "k" * 50 + "0123456789"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def setting(expression: str, **environment: str) -> str:
    code = f"from django.conf import settings; print({expression})"
    result = manage("shell", "--no-imports", "-c", code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_without_any_setting_it_is_safe_in_production() -> None:
    assert setting("(settings.DEBUG, settings.HTTPS, settings.SESSION_COOKIE_SECURE)") == (
        "(False, True, True)"
    )
    result = manage("check", "--deploy", "--fail-level", "WARNING")
    assert result.returncode == 0, result.stderr


def test_without_redis_nothing_is_cached() -> None:
    assert setting("'cachalot' in str(settings.INSTALLED_APPS)") == "False"
    assert "dummy" in setting("settings.CACHES['default']['BACKEND']")


def test_with_redis_cachalot_is_on() -> None:
    environment = {"REDIS_URL": "redis://127.0.0.1:1/0"}
    assert setting("'cachalot' in str(settings.INSTALLED_APPS)", **environment) == "True"
    assert "FailOpen" in setting("settings.CACHES['default']['BACKEND']", **environment)
    assert manage("check", **environment).returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATABASE_URL", "nonsense", "DATABASE_URL must be mysql://"),
        ("DATABASE_URL", "postgres://h/name", "DATABASE_URL must be mysql://"),
        ("REDIS_URL", "localhost", "REDIS_URL must be redis://"),
        ("PROXIES", "-1", "PROXIES must be 0 or more"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT must be json, or unset."),
    ],
)
def test_a_wrong_setting_is_one_line(name: str, value: str, said: str) -> None:
    result = manage("rebuild_counts", **{name: value})
    assert result.returncode == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_is_empty_is_not_set_and_spaces_do_no_harm() -> None:
    empty = dict.fromkeys(
        ["DATABASE_URL", "REDIS_URL", "ALLOWED_HOSTS", "LOG_LEVEL", "LOG_FORMAT"], ""
    )
    assert setting("settings.ALLOWED_HOSTS", **empty) == "['localhost', '127.0.0.1', '[::1]']"
    given = {"ALLOWED_HOSTS": " a.example , b.example ", "LOG_LEVEL": "debug"}
    assert setting("settings.HTTPS", HTTPS="") == "True"
    assert setting("settings.HTTPS", HTTPS="0") == "False"
    assert "['a.example', 'b.example']" in setting("settings.ALLOWED_HOSTS", **given)


def test_the_log_can_be_an_object_a_line() -> None:
    log = "import logging\ntry: 1 / 0\nexcept ZeroDivisionError: logging.exception('“No”\\nway')"
    result = manage("shell", "--no-imports", "-c", log, LOG_FORMAT="json")
    (line,) = result.stderr.splitlines()
    event = json.loads(line)
    assert (event["levelname"], event["message"]) == ("ERROR", "“No”\nway")
    assert event["exc_info"].startswith("Traceback")


@pytest.mark.django_db(transaction=True)
def test_gunicorns_own_events_are_objects_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = environment() | {"LOG_FORMAT": "json", "WEB_CONCURRENCY": "1", "HTTPS": "0"}
    with running_site(log=log, env=env) as url:
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{url}/api/nowhere")
        refused.value.close()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"gunicorn.error", "django.request"} <= {event["name"] for event in events}
    assert len({event["asctime"] + event["message"] for event in events}) == len(events)


def test_options_of_the_database_url_win() -> None:
    url = "sqlite:////tmp/never-made.sqlite3?timeout=5"
    assert setting("settings.DATABASES['default']['OPTIONS']['timeout']", DATABASE_URL=url) == "5"


def test_a_database_that_is_away_is_one_line_of_djangos_commands_too() -> None:
    url = f"mysql://nobody:none@{NOBODY}/none"
    result = manage("migrate", DATABASE_URL=url)
    (line,) = result.stderr.splitlines()
    assert "see that it runs, and that DATABASE_URL is right" in line
    assert result.returncode == 1
    assert "Traceback" in manage("migrate", "--traceback", DATABASE_URL=url).stderr


@pytest.mark.mariadb
@pytest.mark.django_db
def test_mariadb_is_strict_and_reads_what_is_committed() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@tx_isolation, @@sql_mode")
        isolation, mode = cursor.fetchone()
    assert isolation == "READ-COMMITTED"
    assert "STRICT_TRANS_TABLES" in mode


@pytest.mark.sqlite
@pytest.mark.django_db(transaction=True)
def test_sqlite_writes_ahead_and_locks_at_begin() -> None:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        assert cursor.fetchone()[0] == "wal"
    assert connection.transaction_mode == "IMMEDIATE"


def test_a_secret_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = local_secret_key(path)
    assert len(key) >= 50
    assert local_secret_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_key_that_can_not_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="set SECRET_KEY in the environment"):
        local_secret_key(tmp_path / "missing" / "key")
