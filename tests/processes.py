"""Work done by several processes at once, each with a database connection of its own."""

import multiprocessing
from collections.abc import Callable, Iterable
from typing import Any

from django.db import connections


def run_in_processes(work: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call `work(*arguments)` once in a process each, all starting together; return the results.

    What one raises is raised here.
    """
    arguments = list(arguments)
    # A connection that parent and child share would be closed under the other's feet.
    connections.close_all()
    context = multiprocessing.get_context("fork")
    start = context.Barrier(len(arguments))
    with context.Pool(len(arguments), initializer=_wait_for, initargs=(start,)) as pool:
        return [job.get() for job in [pool.apply_async(_started, (work, a)) for a in arguments]]


_barrier: Any = None


def _wait_for(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _started(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        connections["default"].ensure_connection()
        _barrier.wait(60)
        return work(*arguments)
    finally:
        connections.close_all()
