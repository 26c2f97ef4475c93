"""Other database connections that act at a chosen moment, to force a race condition."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, connections

WAIT_SECONDS = 30.0


class ConcurrentThread(threading.Thread):
    """A thread that runs `work` on a database connection of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        finally:
            connections.close_all()

    def start_and_wait_until_blocked(self) -> None:
        """Return when the thread waits for a lock that the caller's transaction holds."""
        self.start()
        if connection.vendor == "sqlite":
            time.sleep(0.3)  # SQLite polls for the lock and does not report that it waits.
        else:
            wait_for_lock_waits(1, on_poll=self._assert_alive)
        self._assert_alive()

    def finish(self) -> Any:
        """Wait for the thread; return what `work` returned, or raise what it raised."""
        self.join(WAIT_SECONDS)
        assert not self.is_alive(), "the concurrent thread still waits"
        if self._error is not None:
            raise self._error
        return self._result

    def start_and_finish(self) -> Any:
        self.start()
        return self.finish()

    def _assert_alive(self) -> None:
        assert self.is_alive(), f"the concurrent thread did not wait for a lock: {self._error}"


def run_concurrently(work: Callable[[], Any]) -> None:
    """Run `work` as another visitor would, in the middle of the caller's transaction."""
    if connection.vendor == "sqlite":
        # The caller's transaction locks the whole database, so use its connection.
        work()
    else:
        ConcurrentThread(work).start_and_finish()


@contextmanager
def run_after_queries(*fragments: str, work: Callable[[], Any]) -> Iterator[None]:
    """Run `work` as another visitor would, after a query with each of these fragments.

    Quotes around names do not matter.
    """
    remaining = set(fragments)

    def execute_and_run(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        result = execute(sql, *arguments)
        plain_sql = re.sub(r"[`\"]", "", sql)
        if found := {fragment for fragment in remaining if fragment in plain_sql}:
            remaining.difference_update(found)
            if not remaining:
                ConcurrentThread(work).start_and_finish()
        return result

    with connection.execute_wrapper(execute_and_run):
        yield
    assert not remaining, f"no query with {remaining} was executed"


def wait_for_lock_waits(number: int, *, on_poll: Callable[[], None] = lambda: None) -> None:
    """Return when at least `number` transactions wait for a lock."""
    deadline = time.monotonic() + WAIT_SECONDS
    while _global_status("Innodb_row_lock_current_waits") < number:
        on_poll()
        assert time.monotonic() < deadline, f"no {number} transactions wait for a lock"
        time.sleep(0.01)


def deadlocks() -> int:
    """Return InnoDB's count of deadlocks since the server started."""
    if connection.mysql_is_mariadb:
        return _global_status("Innodb_deadlocks")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks'"
        )
        return int(cursor.fetchone()[0])


def _global_status(name: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE %s", [name])
        return int(cursor.fetchone()[1])
