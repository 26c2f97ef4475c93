#!/usr/bin/env python
"""Django's command-line utility for this project.

Exits with status 2 after an unexpected error or a wrong setting, because `rebuild_counts --check`
uses status 1 for drifted courses. A signal or a closed pipe ends it like any other program: with
128 plus the number of the signal, after temporary files were removed and transactions rolled back.
"""

import os
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType
from typing import NoReturn


class Terminated(SystemExit):
    """Raised when a signal asks the process to end. The code is the signal's number."""


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    _prepare_streams()
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _raise_terminated)
    try:
        _run_command()
    except BrokenPipeError:
        _end_by_signal(signal.SIGPIPE)
    except KeyboardInterrupt:
        _end_by_signal(signal.SIGINT)
    except Terminated as termination:
        _end_by_signal(signal.Signals(termination.code))


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller: manage.py check >&-
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, open until the end
    # Files and pipes are always UTF-8. A terminal shows escapes for letters it does not have.
    encoding = None if sys.stdout.isatty() else "utf-8"
    sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")  # type: ignore[union-attr]


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)  # so that a second signal need not wait for cleaning up
    raise Terminated(number)


def _end_by_signal(number: signal.Signals) -> NoReturn:
    """End as if the signal had not been handled, so that a shell also ends its loop."""
    if number != signal.SIGPIPE:
        start = "\n" if sys.stderr.isatty() else ""  # the terminal shows ^C
        with suppress(OSError):
            print(f"{start}Ended by {number.name}. Committed changes are kept.", file=sys.stderr)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container ignores its own signals


def _run_command() -> None:
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
        from django.db import DatabaseError, InterfaceError
    except ImportError:
        _fail(
            "Django is not installed for this Python. Run `make run` once, "
            "then use .venv/bin/python manage.py."
        )
    try:
        try:
            execute_from_command_line(sys.argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except ImproperlyConfigured as error:
        if "MySQLdb" in str(error):
            _fail(
                "The driver for MariaDB is not installed. Install it with: "
                ".venv/bin/python -m pip install -r requirements.txt"
            )
        _fail(str(error))
    except Exception as error:
        expected = isinstance(error, (DatabaseError, InterfaceError, OSError))
        if "--traceback" in sys.argv or not expected:
            _exit_with(traceback.format_exc())
        if isinstance(error, OSError):
            _fail(f"The command failed: {error}")
        from courses.management.base import describe_database_error

        _fail(describe_database_error(error))


def _fail(message: str) -> NoReturn:
    _exit_with(" ".join(message.split()))  # some of Django's errors have several lines


def _exit_with(message: str) -> NoReturn:
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    os._exit(2)  # sys.exit() would flush a full standard output again, and exit with 120


if __name__ == "__main__":
    main()
