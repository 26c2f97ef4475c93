"""django-cachalot caches the allowed tables only, and recovers from lost invalidations."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cachalot.settings import cachalot_settings
from django.apps import apps
from django.conf import settings
from django.core.cache import cache
from django.db import OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from courses.models import Course, Subject
from enrollments.models import Enrollment
from enrollments.services import enroll, unenroll
from tests.support.replicas import REPLICA, stale_replica
from tests.support.threads import ConcurrentThread

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


def execute_outside_django(sql: str) -> None:
    """Write like an SQL client, so that cachalot does not see it."""

    def write() -> None:
        connection.ensure_connection()
        cursor = connection.connection.cursor()
        cursor.execute(sql)
        connection.connection.commit()

    ConcurrentThread(write).start_and_finish()


def count_queries(read: Callable[[], Any]) -> int:
    with CaptureQueriesContext(connection) as queries:
        read()
    return len(queries)


def test_only_listed_tables_are_cached_and_with_a_timeout() -> None:
    allowed = settings.CACHALOT_ONLY_CACHABLE_TABLES
    assert "courses_subject" in allowed
    forbidden = {"courses_course", "enrollments_enrollment", "auth_user", "django_session"}
    assert not allowed & forbidden
    assert allowed <= {model._meta.db_table for model in apps.get_models(include_auto_created=True)}
    assert 0 < settings.CACHALOT_TIMEOUT <= 300
    assert settings.CACHALOT_FINAL_SQL_CHECK


def test_rows_of_a_replica_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    with stale_replica():
        with monkeypatch.context() as patch:
            patch.setitem(settings.DATABASES, REPLICA, settings.DATABASES["default"])
            cachalot_settings.load()
        with CaptureQueriesContext(connections[REPLICA]) as queries:
            for _ in range(2):
                assert not Subject.objects.exists()
    cachalot_settings.load()
    assert len(queries) == 2


def test_subjects_are_cached_until_one_is_saved() -> None:
    subject = Subject.objects.create(name="Art", slug="art")
    read = lambda: [subject.name for subject in Subject.objects.all()]  # noqa: E731
    read()
    assert count_queries(read) == 0
    subject.name = "Arts"
    subject.save()
    assert read() == ["Arts"]
    assert count_queries(read) == 0


def test_counts_are_never_cached(course: Course, student: Any) -> None:
    enroll(student=student, course=course)
    reads: list[Callable[[], Any]] = [
        lambda: Course.objects.get().total_enrollments,
        lambda: Course.objects.with_drift().get().drift,
        lambda: Course.objects.drifted().count(),
        lambda: Course.objects.select_related("subject").get().total_enrollments,
        lambda: Enrollment.objects.counted().count(),
    ]
    assert [read() for read in reads] == [1, 0, 0, 1, 1]
    execute_outside_django("UPDATE courses_course SET total_enrollments = 7")
    assert [read() for read in reads] == [7, 6, 1, 7, 1]
    execute_outside_django("DELETE FROM enrollments_enrollment")
    assert [read() for read in reads] == [7, 7, 1, 7, 0]
    for read in reads:
        assert count_queries(read) == 1


def test_stale_entry_expires_with_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cachalot.settings import cachalot_settings

    monkeypatch.setattr(cachalot_settings, "CACHALOT_TIMEOUT", 1)
    Subject.objects.create(name="Art", slug="art")
    assert Subject.objects.get().name == "Art"
    execute_outside_django("UPDATE courses_subject SET name = 'Arts'")
    assert Subject.objects.get().name == "Art"
    time.sleep(1.1)
    assert Subject.objects.get().name == "Arts"


def test_transaction_that_fails_to_begin_leaves_no_private_cache() -> None:
    from cachalot.cache import cachalot_caches

    Subject.objects.create(name="Art", slug="art")
    database = connections["default"]
    port = database.settings_dict["PORT"]
    database.close()
    database.settings_dict["PORT"] = "1"
    try:
        with pytest.raises(OperationalError), transaction.atomic():
            pass
    finally:
        database.settings_dict["PORT"] = port
    assert not cachalot_caches.atomic_caches["default"]
    assert Subject.objects.get().name == "Art"

    def rename() -> None:
        Subject.objects.update(name="Arts")

    ConcurrentThread(rename).start_and_finish()
    assert Subject.objects.get().name == "Arts"


def test_rollback_leaves_nothing_in_the_cache(course: Course, student: Any) -> None:
    Subject.objects.create(name="Art", slug="art")
    with transaction.atomic():
        Subject.objects.update(name="Arts")
        assert Subject.objects.get().name == "Arts"
        enroll(student=student, course=course)
        transaction.set_rollback(True)
    assert Subject.objects.get().name == "Art"
    assert unenroll(student=student, course=course) is False
