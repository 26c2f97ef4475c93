"""Point the test's own connection at another database."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from django.db import connection

from tests.support.commands import UNREACHABLE_ADDRESS


@contextmanager
def connected_to(url: str) -> Iterator[None]:
    """Connect the test to another MariaDB and migrate it."""
    server, settings = urlsplit(url), connection.settings_dict
    new = {"PORT": server.port, "PASSWORD": server.password, "NAME": server.path[1:]}
    old = {name: settings[name] for name in new}
    connection.close()
    settings |= new
    try:
        call_command("migrate", verbosity=0)
        yield
    finally:
        connection.close()
        settings |= old


@contextmanager
def connection_options(**options: Any) -> Iterator[None]:
    """Connect the test with other OPTIONS."""
    settings = connection.settings_dict
    configured_options = settings["OPTIONS"]
    connection.close()
    settings["OPTIONS"] = configured_options | options
    try:
        yield
    finally:
        connection.close()
        settings["OPTIONS"] = configured_options


@contextmanager
def unreachable_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make every attempt to connect fail."""
    connection.close()
    with monkeypatch.context() as patch:
        port = int(UNREACHABLE_ADDRESS.split(":")[1])
        patch.setitem(connection.settings_dict, "PORT", port)
        yield
        connection.close()
