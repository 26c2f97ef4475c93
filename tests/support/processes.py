"""Run work in several processes at once, each with a database connection of its own."""

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
    """Call `work(*arguments)` in one process per tuple, started together; return the results.

    `meanwhile` runs in this process while the others work. Raises the first exception of a process.
    """
    arguments = list(arguments)
    # Parent and children must not share a connection: closing it in one breaks it for the others.
    connections.close_all()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(arguments))
    with context.Pool(len(arguments), initializer=_set_barrier, initargs=(barrier,)) as pool:
        jobs = [pool.apply_async(_run_after_barrier, (work, each)) for each in arguments]
        if meanwhile is not None:
            meanwhile()
        return [job.get() for job in jobs]


_barrier: Any = None


def _set_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier
    # The pool ends its processes with SIGTERM; the inherited handler stops the parent's servers.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run_after_barrier(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        connections["default"].ensure_connection()
        _barrier.wait(60)
        return work(*arguments)
    finally:
        connections.close_all()
