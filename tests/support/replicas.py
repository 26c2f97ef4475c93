"""A read replica that lags behind: a copy of the database, and a router that reads from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.test import override_settings

REPLICA = "replica"
READ_ONLY = {"mysql": "SET SESSION TRANSACTION READ ONLY", "sqlite": "PRAGMA query_only = 1"}


class ReplicaRouter:
    """The primary/replica router of Django's documentation, with one replica."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return REPLICA

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return DEFAULT_DB_ALIAS

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool:
        return True

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return db == DEFAULT_DB_ALIAS


@contextmanager
def stale_replica(router: Any = None) -> Iterator[None]:
    """Copy the committed rows, and let all reads that the router sends to the replica see the copy.

    Without a `router`, these are all reads that do not name a database.
    """
    with _copied_database() as name:
        # Only this thread and its forks have the connection.
        connections[REPLICA] = replica = connection.copy(alias=REPLICA)
        replica.settings_dict["NAME"] = name
        replica.settings_dict["OPTIONS"]["init_command"] = READ_ONLY[connection.vendor]
        try:
            with override_settings(DATABASE_ROUTERS=[router or ReplicaRouter()]):
                yield
        finally:
            replica.close()
            del connections[REPLICA]


@contextmanager
def _copied_database() -> Iterator[str]:
    """Yield the name of a copy that is deleted afterwards."""
    if connection.vendor == "sqlite":
        with TemporaryDirectory() as folder, connection.cursor() as cursor:
            path = str(Path(folder) / "replica.sqlite3")
            cursor.execute("VACUUM INTO %s", [path])
            yield path
        return
    name = f"{connection.settings_dict['NAME']}_replica"
    copy = connection.ops.quote_name(name)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {copy}")
        try:
            for table in map(connection.ops.quote_name, connection.introspection.table_names()):
                # MyISAM creates tables faster than InnoDB.
                cursor.execute(f"CREATE TABLE {copy}.{table} ENGINE=MyISAM SELECT * FROM {table}")
            yield name
        finally:
            # The body may have closed the connection of the cursor.
            with connection.cursor() as new_cursor:
                new_cursor.execute(f"DROP DATABASE {copy}")
