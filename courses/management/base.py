"""The base class and the argument types of all management commands."""

import os
import pwd
import secrets
import shutil
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO, cast

from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    SystemCheckError,
)
from django.db import DataError, Error, IntegrityError, connection
from tqdm import tqdm

MAX_INT = 2**63 - 1  # the largest primary key
MAX_SECONDS = 86_400


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1. For the `type` of an argument."""
    if not text.isdecimal() or not 0 < int(text) <= MAX_INT:
        raise ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Parse a duration between 0 seconds and a day. For the `type` of an argument."""
    number = float(text)
    if not 0 <= number <= MAX_SECONDS:
        raise ArgumentTypeError(f"must be between 0 and {MAX_SECONDS} seconds, not {text!r}")
    return number


def printable(text: str) -> str:
    """Replace line breaks, other control characters and bytes that are not UTF-8 by spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


class AppCommand(BaseCommand):
    """A command that reports an error in one line and exits with status 2."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            _connect()
            return super().execute(*args, **options)
        except Error as error:
            raise self.usage_error(describe_database_error(error)) from error
        except UnicodeEncodeError as error:
            raise self.usage_error(f"{error.object!r} is not valid text.") from error
        except SystemCheckError as error:
            error.returncode = 2
            raise

    @staticmethod
    def usage_error(message: str) -> CommandError:
        """Return an error to raise. The message says what happened and what to do."""
        return CommandError(printable(message), returncode=2)

    @staticmethod
    def actor_name() -> str:
        """Return the name of the operating system's user, and of the user who called sudo."""
        user_id = os.geteuid()
        try:
            name = pwd.getpwuid(user_id).pw_name
        except KeyError:  # in a container
            name = f"user {user_id}"
        sudo_user = printable(os.environ.get("SUDO_USER", ""))
        return f"{sudo_user} as {name}" if sudo_user else name

    @staticmethod
    def add_output_argument(parser: CommandParser) -> None:
        parser.add_argument(
            "--output",
            metavar="FILE",
            type=lambda text: None if text == "-" else Path(text),
            help="write to this file, atomically (default, or -: standard output)",
        )

    @contextmanager
    def output(self, path: Path | None) -> Iterator[TextIO]:
        """Open a file that appears when it is complete, or standard output if path is None."""
        # manage.py replaces a standard output that the caller has closed.
        if path is None and getattr(sys.stdout, "name", "") == os.devnull:
            raise self.usage_error("Standard output is closed. Use --output FILE.")
        try:
            with nullcontext(self.stdout) if path is None else _atomic_file(path) as file:
                yield cast(TextIO, file)
        except BrokenPipeError:
            raise
        except OSError as error:
            name = path or "Standard output"
            raise self.usage_error(f"{name} cannot be written: {error.strerror}.") from error

    @staticmethod
    def progress(*, total: int | None, unit: str, disable: bool = False) -> tqdm:
        """Return a progress bar on standard error, which is shown only on a terminal."""
        options: Any = {"leave": False, "dynamic_ncols": True}
        return tqdm(total=total, unit=unit, disable=disable or None, **options)


def describe_database_error(error: Error) -> str:
    """Return the cause of a database error and what to do, in one line."""
    message = " ".join(str(part) for part in error.args[-1:])
    if "no such table" in message or "doesn't exist" in message:
        return f"A table is missing ({message}). To create all tables, run manage.py migrate."
    if "no such column" in message or "Unknown column" in message:
        return f"A column is missing ({message}). To update all tables, run manage.py migrate."
    if isinstance(error, (DataError, IntegrityError)):
        return f"The database rejected a value ({message}). To see where, add --traceback."
    return (
        f"The database failed ({message}). Check that it is running and that DATABASE_URL is "
        "correct, then run the command again. All committed changes are kept."
    )


def _connect() -> None:
    """Connect to the database, to fail at once instead of after the retries of a transaction."""
    try:
        connection.ensure_connection()
    except TypeError as error:
        raise AppCommand.usage_error(f"DATABASE_URL has a wrong option: {error}.") from error


@contextmanager
def _atomic_file(path: Path) -> Iterator[TextIO]:
    if path.exists() and not path.is_file():  # a device or a named pipe
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    path = path.resolve()
    temporary_path = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary_path.open("x", encoding="utf-8", newline="") as file:
            if path.exists():
                shutil.copymode(path, temporary_path)
            yield file
        temporary_path.replace(path)
    except BaseException:
        temporary_path.unlink(missing_ok=True)
        raise
