"""The interface between file formats and the rest of the package."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.utils.text import slugify

from courses.models import Course

_MAX_SLUG_LENGTH: Any = Course._meta.get_field("slug").max_length


class EnrollmentRecord(NamedTuple):
    """One student in one course, as a file describes them."""

    course_id: str
    username: str
    status: str
    record_key: str = ""  # distinguishes records of the same student in the same course
    enrollment_date: datetime | None = None
    withdrawal_date: datetime | None = None

    @property
    def course_key(self) -> str:
        """The course's ID without case: IDs that differ only in case are the same course."""
        return self.course_id.lower()


class Format(ABC):
    """A kind of enrollment file.

    To add a format, write a module with a subclass and add it to `enrollments.exchange.FORMATS`.
    """

    # The value of `--format`.
    name: str
    # The columns that an export writes, in this order. An import finds them in any order and case.
    columns: tuple[str, ...]
    # The columns by which an import recognizes the format. The others are optional.
    required_columns: tuple[str, ...]
    # Whether an import also changes the dates of rows whose status is already right.
    overwrite_dates = False
    # Whether the format has a status for completed enrollments. Without one, an export writes them
    # as active, and an import of an active row leaves a completed enrollment completed.
    has_completed_status = True

    @abstractmethod
    def parse(self, row: Mapping[str, str]) -> EnrollmentRecord | None:
        """Return the record that a row describes, or None if it is not about a student.

        `row` has a value for each of `columns`: stripped, and empty if the file lacks the column.
        Raises ValueError if the row must be rejected. The message is the reason in the report.
        """

    @abstractmethod
    def serialize(self, record: EnrollmentRecord) -> dict[str, Any]:
        """Return the values of a record by column; columns that are missing stay empty.

        Raises ValueError with the reason if the format cannot represent the record.
        """


def parse_status(value: str, statuses: Mapping[str, str]) -> str:
    """Return the `Enrollment.Status` of a format's own status. Raises ValueError."""
    try:
        return statuses[value.lower()]
    except KeyError:
        raise ValueError(f"status {value!r:.80} is not one of {', '.join(statuses)}") from None


def parse_datetime(column: str, value: str) -> datetime | None:
    """Return an ISO 8601 date or time, by default in UTC; None if empty. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(value) if value else None
        return moment and (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{column} {value!r:.80} is not a date: use YYYY-MM-DD") from None


def make_slug(course_id: str, *, digits: int = 32) -> str:
    """Return the slug of the course that has this ID in other systems.

    IDs that differ only in case have the same slug. If the ID is not a slug itself, a digest with
    this number of hexadecimal digits is appended.
    """
    if re.fullmatch(r"[-\w]+", course_id, re.ASCII):
        return course_id.lower()
    # IDs that differ only in characters which a slug cannot contain are different courses.
    digest = hashlib.sha256(course_id.lower().encode()).hexdigest()[:digits]
    return f"{slugify(course_id)[: _MAX_SLUG_LENGTH - digits - 1] or 'course'}-{digest}"
