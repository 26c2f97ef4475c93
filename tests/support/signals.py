"""Clean up after Ctrl-C, SIGTERM and SIGHUP, so that no server outlives the tests."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM and SIGHUP."""


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt or Terminated for the first signal and ignore later ones."""
    with _handle_signals(_raise_once):
        yield


@contextmanager
def defer_signals() -> Iterator[None]:
    """Handle signals at the end of the block, which must not be interrupted halfway."""
    pending: list[int] = []
    try:
        with _handle_signals(lambda number, frame: pending.append(number)):
            yield
    finally:
        for number in pending[:1]:
            signal.raise_signal(number)


@contextmanager
def _handle_signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        # Python runs and installs signal handlers in the main thread only.
        yield
        return
    previous = {
        number: signal.signal(number, handler)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)


def _raise_once(number: int, frame: object) -> None:
    # make and timeout send a second signal, which must not interrupt the clean-up. SIG_IGN would
    # be inherited by child processes.
    for each in SIGNALS:
        signal.signal(each, lambda *_: None)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated
