"""Work done by several processes at once, each with a database connection of its own."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable
from typing import Any

from django.db import connections


def run_in_processes(
    work: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    *,
    meanwhile: Callable[[], None] | None = None,
) -> list[Any]:
    """Call `work(*arguments)` once in a process each, all starting together; return the results.

    What one raises is raised here. `meanwhile` is called here, while they work.
    """
    arguments = list(arguments)
    # A connection that parent and child share would be closed under the other's feet.
    connections.close_all()
    context = multiprocessing.get_context("fork")
    start = context.Barrier(len(arguments))
    with context.Pool(len(arguments), initializer=_wait_for, initargs=(start,)) as pool:
        jobs = [pool.apply_async(_started, (work, each)) for each in arguments]
        if meanwhile is not None:
            meanwhile()
        return [job.get() for job in jobs]


_barrier: Any = None


def _wait_for(barrier: Any) -> None:
    global _barrier
    _barrier = barrier
    # What ends the pool would otherwise unwind the parent's servers here.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _started(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        connections["default"].ensure_connection()
        _barrier.wait(60)
        return work(*arguments)
    finally:
        connections.close_all()
