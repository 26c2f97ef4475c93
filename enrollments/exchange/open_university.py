"""Open University: studentRegistration.csv of its Learning Analytics Dataset.

A course is the presentation of a module, "AAA-2013J". Dates are numbers of days since the
presentation began, which the file does not contain.
"""

import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any

from enrollments.exchange.base import EnrollmentRecord, Format
from enrollments.models import Enrollment

Status = Enrollment.Status

# Presentations begin in October (J) and in February (B).
_START_MONTHS = {"J": 10, "B": 2}

_DAYS = (re.compile(r"([+-]?\d{1,5})?", re.ASCII), "number of days")
_PATTERNS = {
    "code_module": (re.compile(r"\w{1,50}", re.ASCII), "module code"),
    "code_presentation": (re.compile(r"\w{1,50}", re.ASCII), "presentation code"),
    "id_student": (re.compile(r"\d{1,20}", re.ASCII), "whole number"),
    "date_registration": _DAYS,
    "date_unregistration": _DAYS,
}


class OpenUniversityFormat(Format):
    """One row per student and presentation. An export has no times and no completed enrollments."""

    name = "open-university"
    columns = required_columns = tuple(_PATTERNS)
    overwrite_dates = True
    duplicate_message = "student {username} is already in {course_id} on line {first_line}"

    def __init__(self, *, first_days: Mapping[str, date] = MappingProxyType({})) -> None:
        """`first_days` has the presentations that do not begin on October 1 or February 1."""
        self.first_days = first_days

    def parse(self, row: Mapping[str, str]) -> EnrollmentRecord:
        module, presentation, student, registered, unregistered = (
            _validate(column, row[column]) for column in self.columns
        )
        first_day = self._first_day(presentation)
        try:
            enrolled = first_day + timedelta(days=int(registered or 0))
            withdrawn = first_day + timedelta(days=int(unregistered)) if unregistered else None
        except OverflowError:
            raise ValueError("a date is not within the years 1 to 9999") from None
        course_id = f"{module}-{presentation}"
        return EnrollmentRecord(
            course_id=course_id,
            username=student,
            record_key=f"{course_id.lower()}\0{student}",
            status=Status.WITHDRAWN if withdrawn else Status.ACTIVE,
            enrollment_date=enrolled,
            withdrawal_date=withdrawn,
            subject=module,
        )

    def serialize(self, record: EnrollmentRecord) -> dict[str, Any]:
        module, _, presentation = record.course_id.rpartition("-")
        if presentation not in self.first_days:
            presentation = presentation.upper()  # a slug has lost the case
        return {
            "code_module": _validate("code_module", module),
            "code_presentation": presentation,
            "id_student": _validate("id_student", record.username),
            "date_registration": self._days(record.enrollment_date, presentation),
            "date_unregistration": self._days(record.withdrawal_date, presentation),
        }

    def _days(self, moment: datetime | None, presentation: str) -> int | None:
        return (moment - self._first_day(presentation)).days if moment else None

    def _first_day(self, presentation: str) -> datetime:
        if presentation in self.first_days:
            day = self.first_days[presentation]
        elif re.fullmatch(r"[12]\d{3}[BJ]", presentation, re.ASCII):
            day = date(int(presentation[:4]), _START_MONTHS[presentation[4]], 1)
        else:
            raise ValueError(
                f"the first day of presentation {presentation!r} is unknown: "
                "pass --start PRESENTATION=YYYY-MM-DD"
            )
        return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _validate(column: str, value: str) -> str:
    """Return a value, with missing values as "". Raises ValueError."""
    value = "" if value == "?" else value
    pattern, description = _PATTERNS[column]
    if not pattern.fullmatch(value):
        raise ValueError(f"{column} {value!r:.80} is not a {description}")
    return value


def add_start_argument(parser: ArgumentParser) -> None:
    """Add `--start`. The option's value is a list of items of `first_days`."""
    parser.add_argument(
        "--start",
        action="append",
        type=_parse_start,
        default=[],
        dest="first_days",
        metavar="PRESENTATION=YYYY-MM-DD",
        help="the first day of an Open University presentation (default: October 1 of the year "
        "for J, February 1 for B); may be repeated",
    )


def _parse_start(text: str) -> tuple[str, date]:
    presentation, _, day = text.partition("=")
    try:
        return presentation, date.fromisoformat(day)
    except ValueError:
        raise ArgumentTypeError(f"use PRESENTATION=YYYY-MM-DD, not {text!r}") from None
