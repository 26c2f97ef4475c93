"""Open University: studentRegistration.csv of its Learning Analytics Dataset.

A course is the presentation of a module, "AAA-2013J". Dates are numbers of days since the
presentation began, which the file does not contain.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from enrollments.exchange.base import EnrollmentRecord, Format
from enrollments.models import Enrollment

Status = Enrollment.Status

_START_MONTHS = {"J": 10, "B": 2}  # October and February

_DAYS = (re.compile(r"([+-]?\d{1,5})?", re.ASCII), "number of days")
_PATTERNS = {
    "code_module": (re.compile(r"\w{1,50}", re.ASCII), "module code"),
    "code_presentation": (re.compile(r"[12]\d{3}[BJ]", re.ASCII), "presentation code like 2013J"),
    "id_student": (re.compile(r"\d{1,20}", re.ASCII), "whole number"),
    "date_registration": _DAYS,
    "date_unregistration": _DAYS,
}


class OpenUniversityFormat(Format):
    """One row per student and presentation. An export has no times and no completed enrollments."""

    name = "open-university"
    columns = required_columns = tuple(_PATTERNS)
    overwrite_dates = True
    has_completed_status = False

    def parse(self, row: Mapping[str, str]) -> EnrollmentRecord:
        module, presentation, student, registered, unregistered = (
            _validate(column, row[column]) for column in self.columns
        )
        first_day = _first_day(presentation)
        enrolled = first_day + timedelta(days=int(registered or 0))
        withdrawn = first_day + timedelta(days=int(unregistered)) if unregistered else None
        return EnrollmentRecord(
            course_id=f"{module}-{presentation}",
            username=student,
            status=Status.WITHDRAWN if withdrawn else Status.ACTIVE,
            enrollment_date=enrolled,
            withdrawal_date=withdrawn,
        )

    def serialize(self, record: EnrollmentRecord) -> dict[str, Any]:
        module, _, presentation = record.course_id.rpartition("-")
        module = _validate("code_module", module)
        # A slug has lost the case.
        presentation = _validate("code_presentation", presentation.upper())
        first_day = _first_day(presentation)
        enrolled, withdrawn = record.enrollment_date, record.withdrawal_date
        return {
            "code_module": module,
            "code_presentation": presentation,
            "id_student": _validate("id_student", record.username),
            "date_registration": enrolled and (enrolled - first_day).days,
            "date_unregistration": withdrawn and (withdrawn - first_day).days,
        }


def _first_day(presentation: str) -> datetime:
    return datetime(int(presentation[:4]), _START_MONTHS[presentation[4]], 1, tzinfo=UTC)


def _validate(column: str, value: str) -> str:
    """Return a value, with missing values as "". Raises ValueError."""
    value = "" if value == "?" else value
    pattern, description = _PATTERNS[column]
    if not pattern.fullmatch(value):
        raise ValueError(f"{column} {value!r:.80} is not a {description}")
    return value
