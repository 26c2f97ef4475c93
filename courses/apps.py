from typing import Any

from django.apps import AppConfig
from django.db import connections
from django.db.models.signals import pre_migrate


class CoursesConfig(AppConfig):
    name = "courses"

    def ready(self) -> None:
        pre_migrate.connect(_wait_for_metadata_locks, sender=self)


def _wait_for_metadata_locks(using: str, **kwargs: Any) -> None:
    """Give `migrate` the lock timeout of the server instead of that of the site.

    A migration that gives up leaves earlier operations applied: MariaDB cannot roll back DDL.
    """
    connection = connections[using]
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION lock_wait_timeout = DEFAULT")
