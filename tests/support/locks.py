"""Row locks on another connection, to force lock timeouts and deadlocks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connection, transaction
from django.db.models import Model

from courses.models import Course
from tests.support.threads import ConcurrentThread, deadlocks, wait_for_lock_waits


@contextmanager
def locked_past_the_timeout(obj: Model) -> Iterator[None]:
    """Lock a row for longer than a connection with `short_lock_timeout` waits for it."""
    seconds = {"mysql": 2.0, "sqlite": 0.5}[connection.vendor]
    is_locked = threading.Event()

    def lock() -> None:
        with transaction.atomic():
            _lock(obj)
            is_locked.set()
            time.sleep(seconds)

    with _run_in_thread(lock, is_locked):
        yield


@contextmanager
def metadata_locked_past_the_timeout(statement: str) -> Iterator[None]:
    """Lock tables with `statement` for longer than `short_lock_timeout`. MariaDB only."""
    is_locked = threading.Event()

    def lock() -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            is_locked.set()
            time.sleep(2.0)  # The lock ends with the connection.

    with _run_in_thread(lock, is_locked):
        yield


@contextmanager
def forced_deadlock(lower: Course, higher: Course) -> Iterator[None]:
    """Make the body the victim of a deadlock, if it locks the courses in the order of their keys.

    Another connection locks the course with the higher key. When the body waits for that course,
    the connection locks the one with the lower key. MariaDB only.
    """
    deadlocks_at_start = deadlocks()
    is_locked = threading.Event()

    def lock_in_the_wrong_order() -> None:
        with transaction.atomic():
            _lock(higher)
            # InnoDB rolls back the transaction that has written less.
            Course.objects.bulk_create(
                [Course(title=f"Filler {number}", slug=f"filler-{number}") for number in range(50)]
            )
            is_locked.set()
            wait_for_lock_waits(1)
            _lock(lower)

    with _run_in_thread(lock_in_the_wrong_order, is_locked):
        yield
    assert deadlocks() == deadlocks_at_start + 1


@contextmanager
def _run_in_thread(work: Callable[[], None], is_locked: threading.Event) -> Iterator[None]:
    thread = ConcurrentThread(work)
    thread.start()
    assert is_locked.wait(10), "the concurrent thread did not get the lock"
    try:
        yield
    finally:
        thread.finish()


def _lock(obj: Model) -> None:
    type(obj)._default_manager.select_for_update().get(pk=obj.pk)
