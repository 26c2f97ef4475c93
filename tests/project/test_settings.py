"""Settings are read when a process starts, so each test starts a process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from django.db import connection

from tests.support.commands import PROJECT, UNREACHABLE_ADDRESS, command_environment
from tests.support.site import running_site

SECRET_KEY = "k" * 50 + "0123456789"


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python module or script with no other settings than `environment`."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, *command],
        cwd=PROJECT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def manage(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("manage.py", *arguments, **{"SECRET_KEY": SECRET_KEY} | environment)


def setting(expression: str, **environment: str) -> str:
    """Return how a new process prints an expression of `settings`."""
    code = f"from django.conf import settings; print({expression})"
    result = manage("shell", "--no-imports", "-c", code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_defaults_are_safe_in_production() -> None:
    assert setting("(settings.DEBUG, settings.HTTPS, settings.SESSION_COOKIE_SECURE)") == (
        "(False, True, True)"
    )
    result = manage("check", "--deploy", "--fail-level", "WARNING")
    assert result.returncode == 0, result.stderr


def test_secret_key_is_required_without_debug() -> None:
    result = manage("rebuild_counts", SECRET_KEY="")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "SECRET_KEY is not set. Set it to a long random string, or set DEBUG=1 for development.\n"
    )


def test_debug_uses_a_fixed_insecure_secret_key() -> None:
    keys = {setting("settings.SECRET_KEY", SECRET_KEY="", DEBUG="1") for _ in range(2)}
    assert keys == {"django-insecure-development-key"}
    assert setting("settings.SECRET_KEY", DEBUG="1") == SECRET_KEY


@pytest.mark.parametrize("missing", ["DATABASE_URL", "SECRET_KEY"])
def test_gunicorn_requires_database_and_secret_key(missing: str) -> None:
    environment = {"DATABASE_URL": "sqlite://:memory:", "SECRET_KEY": SECRET_KEY, missing: ""}
    result = run("-m", "gunicorn", **environment)
    (line,) = result.stderr.splitlines()
    assert f"Set {missing} to " in line
    assert (result.returncode, result.stdout) == (2, "")


@pytest.mark.parametrize("port", ["x", "99999", "-1"])
def test_gunicorn_rejects_invalid_port(port: str) -> None:
    environment = {"DATABASE_URL": "sqlite://:memory:", "SECRET_KEY": SECRET_KEY, "PORT": port}
    result = run("-m", "gunicorn", **environment)
    assert result.stderr == f"PORT must be a number from 1 to 65535, not {port!r}.\n"
    assert result.returncode == 2


def test_gunicorn_reports_wrong_settings_in_one_line() -> None:
    environment = {"DATABASE_URL": "sqlite://:memory:", "SECRET_KEY": SECRET_KEY, "HTTPS": "x"}
    result = run("-m", "gunicorn", **environment)
    start, line = result.stderr.splitlines()
    assert "Starting gunicorn" in start
    assert line == "HTTPS must be 1 or 0, not 'x'."
    assert result.returncode == 2


def test_without_redis_url_nothing_is_cached() -> None:
    assert setting("'cachalot' in str(settings.INSTALLED_APPS)") == "False"
    assert "dummy" in setting("settings.CACHES['default']['BACKEND']")


def test_redis_url_enables_cachalot() -> None:
    environment = {"REDIS_URL": "redis://127.0.0.1:1/0"}
    assert setting("'cachalot' in str(settings.INSTALLED_APPS)", **environment) == "True"
    assert "FailOpen" in setting("settings.CACHES['default']['BACKEND']", **environment)
    assert manage("check", **environment).returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DATABASE_URL", "nonsense", "DATABASE_URL must be mysql://"),
        ("DATABASE_URL", "postgres://h/name", "DATABASE_URL must be mysql://"),
        ("DATABASE_URL", "sqlite://nonsense/path", "DATABASE_URL must be mysql://"),
        ("REDIS_URL", "localhost", "REDIS_URL must be redis://"),
        ("DATABASE_URL", "mysql://user:secret@host:x/name", "DATABASE_URL must be mysql://"),
        (
            "DATABASE_URL",
            "sqlite:////tmp/none.sqlite3?nonsense=1",
            "DATABASE_URL has a wrong option",
        ),
        ("DATABASE_TIMEOUT", "x", "DATABASE_TIMEOUT must be a whole number from 0 to 99999"),
        ("REDIS_URL", "redis://:secret@host:x/0", "REDIS_URL must be redis://"),
        ("REDIS_URL", "redis://host/0?nonsense=1", "REDIS_URL must be redis://"),
        ("PROXIES", "x", "PROXIES must be a whole number from 0 to 99999, not 'x'."),
        ("PROXIES", "-1", "PROXIES must be a whole number"),
        ("PROXIES", "1" * 20, "PROXIES must be a whole number"),
        ("DEBUG", "maybe", "DEBUG must be 1 or 0, not 'maybe'."),
        ("HTTPS", "x", "HTTPS must be 1 or 0"),
        ("HSTS_SUBDOMAINS", "x", "HSTS_SUBDOMAINS must be 1 or 0"),
        ("HSTS_PRELOAD", "x", "HSTS_PRELOAD must be 1 or 0"),
        ("ALLOWED_HOSTS", "https://a.example", "ALLOWED_HOSTS must be host names"),
        ("CSRF_TRUSTED_ORIGINS", "a.example", "CSRF_TRUSTED_ORIGINS must be addresses"),
        ("SIGN_UP", "yes", "SIGN_UP must be open or closed, not 'yes'."),
        ("SIGN_UPS_PER_HOUR", "0", "SIGN_UPS_PER_HOUR must be 1 or more."),
        ("LOG_FORMAT", "xml", "LOG_FORMAT must be json or text."),
        ("LOG_LEVEL", "x", "LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("PROMETHEUS_MULTIPROC_DIR", "/etc/passwd", "PROMETHEUS_MULTIPROC_DIR must be a folder"),
    ],
)
def test_invalid_setting_is_one_line_and_status_2(name: str, value: str, message: str) -> None:
    result = manage("rebuild_counts", **{name: value})
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr


def test_empty_variables_count_as_unset() -> None:
    names = [
        *("DATABASE_URL", "DATABASE_TIMEOUT", "REDIS_URL", "ALLOWED_HOSTS", "PROXIES"),
        *("DEBUG", "HSTS_PRELOAD", "LOG_LEVEL", "LOG_FORMAT"),
    ]
    empty = dict.fromkeys(names, "")
    assert setting("settings.ALLOWED_HOSTS", **empty) == "['localhost', '127.0.0.1', '[::1]']"
    assert setting("settings.HTTPS", HTTPS="") == "True"


@pytest.mark.parametrize(
    ("word", "value"), [("1", True), ("true", True), ("Yes", True), ("0", False), ("OFF", False)]
)
def test_words_for_on_and_off(word: str, value: bool) -> None:
    assert setting("settings.HTTPS", HTTPS=word) == str(value)


def test_secret_key_may_begin_with_a_dollar_sign() -> None:
    key = f"${SECRET_KEY}"
    assert setting("settings.SECRET_KEY", SECRET_KEY=key) == key


@pytest.mark.parametrize(
    ("environment", "header"),
    [
        ({}, "max-age=31536000"),
        ({"HSTS_SUBDOMAINS": "1"}, "max-age=31536000; includeSubDomains"),
        ({"HSTS_PRELOAD": "1"}, "max-age=31536000; includeSubDomains; preload"),
        ({"HSTS_PRELOAD": "1", "HTTPS": "0"}, "None"),
    ],
)
def test_hsts_covers_subdomains_only_on_request(environment: dict[str, str], header: str) -> None:
    response = "__import__('django.test').test.Client().get('/static/site.css', secure=True)"
    expression = f"{response}.headers.get('Strict-Transport-Security')"
    assert setting(expression, ALLOWED_HOSTS="testserver", **environment) == header


def test_lists_may_contain_spaces() -> None:
    hosts = setting("settings.ALLOWED_HOSTS", ALLOWED_HOSTS=" a.example , b.example ")
    assert hosts == "['a.example', 'b.example']"


def test_log_level_is_case_insensitive() -> None:
    assert setting("settings.LOGGING['root']['level']", LOG_LEVEL="debug") == "DEBUG"


def test_log_level_applies_to_gunicorn(tmp_path: Path) -> None:
    log, env = tmp_path / "log", {"DATABASE_URL": "sqlite://:memory:", "SECRET_KEY": SECRET_KEY}
    with running_site(log=log, env=env | {"LOG_LEVEL": "error"}):
        pass
    assert log.read_text() == ""


LOG_EVENTS = """
import logging
for name in ("django", "django.server", "django.request", "axes", "courses", "root"):
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger(name).log(level, "happened")
"""


@pytest.mark.parametrize("debug", ["0", "1"])
@pytest.mark.parametrize(("log_level", "lines"), [("WARNING", 12), ("ERROR", 6), ("CRITICAL", 0)])
def test_log_level_applies_to_all_loggers_and_no_line_is_repeated(
    log_level: str, lines: int, debug: str
) -> None:
    environment = {"LOG_LEVEL": log_level, "DEBUG": debug}
    log = manage("shell", "--no-imports", "-c", LOG_EVENTS, **environment).stderr
    assert len(log.splitlines()) == lines


def test_json_log_has_one_object_per_line() -> None:
    log = "import logging\ntry: 1 / 0\nexcept ZeroDivisionError: logging.exception('“No”\\nway')"
    result = manage("shell", "--no-imports", "-c", log, LOG_FORMAT="json")
    (line,) = result.stderr.splitlines()
    event = json.loads(line)
    assert (event["levelname"], event["message"]) == ("ERROR", "“No”\nway")
    assert event["exc_info"].startswith("Traceback")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_requests_cannot_forge_events(tmp_path: Path, log_format: str) -> None:
    log, forged = tmp_path / "log", "2027-01-31 00:00:00,000 ERROR forged"
    database_url = f"mysql://nobody:none@{UNREACHABLE_ADDRESS}/none"
    env = {"SECRET_KEY": SECRET_KEY, "DATABASE_URL": database_url, "HTTPS": "0"}
    with running_site(log=log, env=env | {"LOG_FORMAT": log_format}) as url:
        for path in ("/none", "/api/none", "/api/courses/none"):
            for newline in ("%0A", "%0D", "%C2%85", "%E2%80%A8"):
                with pytest.raises(HTTPError) as error:
                    urlopen(f"{url}{path}{newline}{quote(forged)}")
                error.value.close()
    lines = [line for line in log.read_text().split("\n") if "forged" in line]
    assert len(lines) == 3 * 4 + 4
    if log_format == "json":
        lines = [json.loads(line)["asctime"] for line in lines]
    else:
        assert "\n".join(lines).splitlines() == lines
    assert not [line for line in lines if line.startswith("2027")]


def test_text_log_indents_tracebacks() -> None:
    raising = r"raise ValueError('1\nforged\x1b[1G')"
    log = f"import logging\ntry: {raising}\nexcept ValueError: logging.exception('No')"
    result = manage("shell", "--no-imports", "-c", log)
    event, *traceback = result.stderr.splitlines()
    assert event.endswith("ERROR root: No")
    assert traceback[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in traceback)
    assert "\x1b" not in result.stderr


@pytest.mark.django_db(transaction=True)
def test_json_log_includes_gunicorns_own_events(tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = command_environment() | {"LOG_FORMAT": "json", "WEB_CONCURRENCY": "1", "HTTPS": "0"}
    with running_site(log=log, env=env) as url:
        with pytest.raises(HTTPError) as not_found:
            urlopen(f"{url}/api/nowhere")
        not_found.value.close()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"gunicorn.error", "django.request"} <= {event["name"] for event in events}
    assert len({event["asctime"] + event["message"] for event in events}) == len(events)


def test_options_of_the_database_url_override_the_defaults() -> None:
    url = "sqlite:////tmp/never-created.sqlite3?timeout=5"
    assert setting("settings.DATABASES['default']['OPTIONS']['timeout']", DATABASE_URL=url) == "5"


def test_unreachable_database_is_one_line_and_status_2_in_djangos_commands() -> None:
    url = f"mysql://nobody:none@{UNREACHABLE_ADDRESS}/none"
    result = manage("migrate", DATABASE_URL=url)
    (line,) = result.stderr.splitlines()
    assert "Check that it is running and that DATABASE_URL is correct" in line
    assert result.returncode == 2
    assert "Traceback" in manage("migrate", "--traceback", DATABASE_URL=url).stderr


def test_missing_mariadb_driver_names_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['MySQLdb'] = None; import manage; manage.main()"
    url = f"mysql://nobody:none@{UNREACHABLE_ADDRESS}/none"
    result = run("-c", code, "check", DATABASE_URL=url, SECRET_KEY=SECRET_KEY)
    (line,) = result.stderr.splitlines()
    assert "pip install -r requirements.txt" in line
    assert result.returncode == 2


@pytest.mark.mariadb
@pytest.mark.django_db
def test_mariadb_is_strict_and_read_committed() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@tx_isolation, @@sql_mode")
        isolation, mode = cursor.fetchone()
    assert isolation == "READ-COMMITTED"
    assert "STRICT_TRANS_TABLES" in mode


@pytest.mark.sqlite
@pytest.mark.django_db(transaction=True)
def test_sqlite_uses_wal_and_immediate_transactions() -> None:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        assert cursor.fetchone()[0] == "wal"
    assert connection.transaction_mode == "IMMEDIATE"


@pytest.mark.parametrize(
    ("variables", "is_open"),
    [
        ({}, False),
        ({"DEBUG": "1"}, True),
        ({"SIGN_UP": "open"}, True),
        ({"SIGN_UP": "closed", "DEBUG": "1"}, False),
    ],
)
def test_sign_up_is_closed_unless_opened_or_debug(variables: dict[str, str], is_open: bool) -> None:
    assert setting("settings.SIGN_UP_OPEN", **variables) == str(is_open)
