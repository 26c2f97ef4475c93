"""A second connection that does something at a chosen moment, to force a race."""

import threading
import time
from collections.abc import Callable
from typing import Any

from django.db import connection, connections

PATIENCE = 30.0  # seconds


class ConcurrentThread(threading.Thread):
    """Runs `work` on a connection of its own."""

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
        """Return when the rival waits for a lock that this thread's transaction holds."""
        self.start()
        if connection.vendor == "sqlite":
            time.sleep(0.3)  # SQLite polls, and shows nobody that it does
        else:
            wait_for_lock_waits(1, meanwhile=self._assert_alive)
        self._assert_alive()

    def _assert_alive(self) -> None:
        assert self.is_alive(), f"the rival ended without waiting: {self._error}"

    def finish(self) -> Any:
        """Wait for the end; return what `work` returned, or raise what it raised."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the rival is still waiting"
        if self._error is not None:
            raise self._error
        return self._result

    def start_and_finish(self) -> Any:
        self.start()
        return self.finish()


def wait_for_lock_waits(number: int, *, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Return when so many transactions wait for a lock."""
    deadline = time.monotonic() + PATIENCE
    while _status("Innodb_row_lock_current_waits") < number:
        meanwhile()
        assert time.monotonic() < deadline, "they never waited"
        time.sleep(0.01)


def deadlocks() -> int:
    """InnoDB's own count of deadlocks since the server started."""
    return _status("Innodb_deadlocks")


def _status(name: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE %s", [name])
        return int(cursor.fetchone()[1])
