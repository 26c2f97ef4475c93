"""Migrations keep the data of the previous version."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

LATEST = "0004_self_registration"
PREVIOUS = "0002_enrollment_history"


def migrate_to(name: str) -> Any:
    """Migrate the app to a migration, and return the models of that state."""
    executor = MigrationExecutor(connection)
    executor.migrate([("enrollments", name)])
    return MigrationExecutor(connection).loader.project_state([("enrollments", name)]).apps


@pytest.fixture
def previous_apps(transactional_db: None) -> Iterator[Any]:
    yield migrate_to(PREVIOUS)
    migrate_to(LATEST)


@pytest.mark.parametrize(
    ("previous", "latest"),
    [
        (("enrolled", "page"), ("enrolled", "website")),
        (("taken_up", "code"), ("reenrolled", "system")),
        (("moved_away", "admin"), ("transferred_out", "admin")),
        (("moved_here", "api"), ("transferred_in", "api")),
        (("redated", "import"), ("dates_changed", "import")),
    ],
)
def test_events_keep_their_time_and_get_the_new_names(
    previous_apps: Any, previous: tuple[str, str], latest: tuple[str, str]
) -> None:
    at = timezone.now()
    event = previous_apps.get_model("enrollments", "EnrollmentEvent")._base_manager.create(
        what=previous[0], source=previous[1], at=at
    )
    events = migrate_to(LATEST).get_model("enrollments", "EnrollmentEvent")._base_manager
    assert events.values_list("action", "source", "created_at").get(pk=event.pk) == (*latest, at)

    events = migrate_to(PREVIOUS).get_model("enrollments", "EnrollmentEvent")._base_manager
    assert events.values_list("what", "source", "at").get(pk=event.pk) == (*previous, at)
