"""Point the test's own connection at another database."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection
from django.db.models import Model
from django.db.models.signals import post_save, pre_save

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


@contextmanager
def failing_first_insert(model: type[Model], **values: Any) -> Iterator[None]:
    """Roll back the first row that is saved, and insert a row with its key before the next one."""
    keys: list[Any] = []

    def fail_once(instance: Model, **kwargs: Any) -> None:
        if not keys:
            keys.append(instance.pk)
            raise OperationalError("database is locked")

    def take_key(**kwargs: Any) -> None:
        if keys:
            pre_save.disconnect(take_key, model)
            model._default_manager.bulk_create([model(pk=keys[0], **values)])

    post_save.connect(fail_once, model)
    pre_save.connect(take_key, model)
    try:
        yield
    finally:
        post_save.disconnect(fail_once, model)
