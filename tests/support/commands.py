"""manage.py and MariaDB's client as real processes, on the database of the tests."""

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
from django.db import connection

PROJECT = Path(__file__).resolve().parent.parent.parent
# No answer comes from here, and nobody else can begin to listen: port 1 is not for users.
NOBODY = "127.0.0.1:1"


def manage(
    *arguments: str, env: Mapping[str, str] = MappingProxyType({}), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run manage.py to its end."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60} | options),
        cwd=PROJECT,
        text=True,
        env=environment() | env,
    )


def mariadb(
    script: str, *options: str, user: tuple[str, str] | None = None, database: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run MariaDB's client on a script, as `mariadb DATABASE < script` does."""
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


def environment() -> dict[str, str]:
    return os.environ | {"DATABASE_URL": database_url(), "SECRET_KEY": "tests only"}


def database_url(name: str | None = None) -> str:
    settings = connection.settings_dict
    name = name or settings["NAME"]
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    who = f"{quote(settings['USER'], safe='')}:{quote(settings['PASSWORD'], safe='')}"
    return f"mysql://{who}@{settings['HOST']}:{settings['PORT']}/{name}"


@contextmanager
def unmigrated_database(folder: Path) -> Iterator[str]:
    """The URL of a database in which nobody has migrated yet."""
    if connection.vendor == "sqlite":
        yield database_url(str(folder / "unmigrated_database.sqlite3"))
        return
    name = connection.ops.quote_name(f"{connection.settings_dict['NAME']}_no_tables")
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        try:
            yield database_url(name.strip("`"))
        finally:
            cursor.execute(f"DROP DATABASE {name}")


def assert_usage_error(done: subprocess.CompletedProcess[str], reason: str) -> None:
    """One line on standard error that says why, and status 2."""
    (line,) = done.stderr.splitlines()
    assert (line.startswith("CommandError: "), reason in line) == (True, True), line
    assert (done.returncode, done.stdout) == (2, "")


def everything() -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the tables that commands write to."""
    names = ("auth.User", "courses.Subject", "courses.Course", "enrollments.Enrollment")
    return {
        name: list(apps.get_model(name)._default_manager.order_by("pk").values_list())
        for name in names
    }
