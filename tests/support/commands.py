"""Run manage.py and MariaDB's client as processes, on the test database."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import connection

PROJECT = Path(__file__).resolve().parent.parent.parent
# Ordinary users cannot listen on port 1, so connections are always refused.
UNREACHABLE_ADDRESS = "127.0.0.1:1"


def manage(
    *arguments: str, env: Mapping[str, str] = MappingProxyType({}), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run manage.py and wait for it; `options` go to subprocess.run()."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60} | options),
        cwd=PROJECT,
        text=True,
        env=command_environment() | env,
    )


def mariadb_client(
    script: str, *options: str, user: tuple[str, str] | None = None, database: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run an SQL script with the client, as `mariadb DATABASE < script` does.

    `user` is a name and a password. The defaults are the test's user and database.
    """
    settings = connection.settings_dict
    name, password = user or (settings["USER"], settings["PASSWORD"])
    return subprocess.run(
        [
            *("mariadb", "--no-defaults", f"--host={settings['HOST']}", f"--user={name}"),
            *(f"--port={settings['PORT']}", "--batch", *options, database or settings["NAME"]),
        ],
        input=script,
        capture_output=True,
        timeout=30,
        text=True,
        env=os.environ | {"MYSQL_PWD": password},
    )


def command_environment() -> dict[str, str]:
    """Return the environment in which a command uses the test database."""
    return os.environ | {"DATABASE_URL": database_url(), "SECRET_KEY": "tests only"}


def database_url(name: str | None = None) -> str:
    """Return the URL of the test database, or of database `name` on the same server."""
    settings = connection.settings_dict
    name = name or settings["NAME"]
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    credentials = f"{quote(settings['USER'], safe='')}:{quote(settings['PASSWORD'], safe='')}"
    return f"mysql://{credentials}@{settings['HOST']}:{settings['PORT']}/{name}"


@contextmanager
def unmigrated_database(folder: Path) -> Iterator[str]:
    """Yield the URL of an empty database, in which `migrate` has not run."""
    if connection.vendor == "sqlite":
        yield database_url(str(folder / "unmigrated_database.sqlite3"))
        return
    name = f"{connection.settings_dict['NAME']}_no_tables"
    quoted_name = connection.ops.quote_name(name)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {quoted_name}")
        try:
            yield database_url(name)
        finally:
            cursor.execute(f"DROP DATABASE {quoted_name}")


def assert_usage_error(result: subprocess.CompletedProcess[str], reason: str) -> None:
    """Assert exit status 2 and a last line on standard error that gives the reason.

    The last line is the only one, except for argparse's usage lines.
    """
    *usage, error = result.stderr.splitlines()
    assert reason in error, result.stderr
    if usage:
        assert usage[0].startswith("usage: "), result.stderr
        assert ": error: " in error, error
    else:
        assert error.startswith("CommandError: "), error
    assert (result.returncode, result.stdout) == (2, "")


def all_rows() -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of the tables that commands write to, by model."""
    user = get_user_model()._meta.label
    names = (user, "courses.Subject", "courses.Course", "enrollments.Enrollment")
    return {
        name: list(apps.get_model(name)._default_manager.order_by("pk").values_list())
        for name in names
    }
