"""The option --start, which the import and the export of Open University files share."""

from collections.abc import Iterable
from datetime import date

from django.core.management.base import CommandParser

from courses.management.base import AppCommand


def add_start_argument(parser: CommandParser) -> None:
    parser.add_argument(
        "--start",
        action="append",
        default=[],
        dest="starts",
        metavar="PRESENTATION=YYYY-MM-DD",
        help="first day of an Open University presentation (default: October 1 of the year "
        "for J, February 1 for B); may be repeated",
    )


def first_days(starts: Iterable[str]) -> dict[str, date]:
    return dict(map(_first_day, starts))


def _first_day(given: str) -> tuple[str, date]:
    presentation, _, day = given.partition("=")
    try:
        return presentation, date.fromisoformat(day)
    except ValueError:
        raise AppCommand.usage_error(
            f"--start takes PRESENTATION=YYYY-MM-DD, not {given!r}."
        ) from None
