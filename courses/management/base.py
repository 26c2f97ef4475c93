"""Commands whose errors are one line, on standard error, with exit status 2."""

import os
import pwd
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, InterfaceError, OperationalError, ProgrammingError, connection
from tqdm import tqdm


class AppCommand(BaseCommand):
    """A command that says what is wrong, and what to do, in one line."""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)

        def error(message: str) -> NoReturn:
            raise self.usage_error(f"{message} (see {prog_name} {subcommand} --help)")

        parser.error = error  # type: ignore[method-assign]
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        try:
            super().run_from_argv(argv)
        except CommandError as error:  # from the parser, which runs before Django's own handler
            self.stderr.write(f"{error.__class__.__name__}: {error}")
            raise SystemExit(error.returncode) from None

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            # Not there at all: say so now, and not after a series of logged attempts.
            connection.ensure_connection()
            return super().execute(*args, **options)
        except (OperationalError, InterfaceError, ProgrammingError) as error:
            raise self.usage_error(_explained(error)) from error
        except BrokenPipeError:
            # Whoever read our output has enough of it, as `head` has.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None

    @staticmethod
    def usage_error(message: str) -> CommandError:
        return CommandError(message, returncode=2)

    @staticmethod
    def account() -> str:
        """Whom the operating system takes the caller for; with sudo, also who that is."""
        key = os.geteuid()
        try:
            name = pwd.getpwuid(key).pw_name
        except KeyError:  # in a container
            name = f"user {key}"
        person = os.environ.get("SUDO_USER")
        return f"{person} as {name}" if person else name

    @staticmethod
    def add_output_argument(parser: CommandParser) -> None:
        parser.add_argument(
            "--output",
            metavar="FILE",
            type=Path,
            help="write there, whole or not at all (default: standard output)",
        )

    @contextmanager
    def output(self, path: Path | None) -> Iterator[TextIO]:
        """The file to write to: standard output, or one that is whole or not there."""
        try:
            with nullcontext(self.stdout) if path is None else _whole_file(path) as file:
                yield cast(TextIO, file)
        except BrokenPipeError:
            raise
        except OSError as error:
            name = path or "Standard output"
            raise self.usage_error(f"{name} can't be written: {error.strerror}.") from error

    @staticmethod
    def progress(*, total: int | None, unit: str) -> tqdm:
        """A bar on standard error: only on a terminal, and gone when it is done."""
        return tqdm(total=total, unit=unit, disable=None, leave=False, dynamic_ncols=True)


@contextmanager
def _whole_file(path: Path) -> Iterator[TextIO]:
    path = path.resolve()
    if path.exists() and not path.is_file():  # a device, a pipe
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    mode = path.stat().st_mode & 0o777 if path.exists() else _usual_mode()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
            # It was made for its owner only.
            os.fchmod(descriptor, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _usual_mode() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _explained(error: Error) -> str:
    said = " ".join(str(part) for part in error.args[-1:])
    if "no such table" in said or "doesn't exist" in said:
        return f"The database has no tables yet ({said}): run manage.py migrate."
    return (
        f"The database does not answer as it should ({said}): see that it runs, "
        "that DATABASE_URL is right, and call again: each transaction is whole or not there."
    )
