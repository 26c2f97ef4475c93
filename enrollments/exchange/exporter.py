"""Exporting courses and enrollments as CSV, in bounded memory."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from django.contrib.auth import get_user_model
from django.db import DEFAULT_DB_ALIAS
from django.db.models import QuerySet

from courses.models import Course
from enrollments.exchange.base import EnrollmentRecord, Format
from enrollments.models import Enrollment


class UnsupportedRecord(Exception):
    """The format cannot represent a record. The message says which one, and why."""


# Rows per query. No transaction stays open from one query to the next.
BATCH_SIZE = 2_000

# The columns of a course export, and where their values are from.
_COURSE_COLUMNS = {
    "course_id": "pk",
    "slug": "slug",
    "title": "title",
    "capacity": "capacity",
    "stored": "total_enrollments",
    "true": "true_count",
    "drift": "drift",
}

_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?", re.ASCII)


def export_courses(*, file: TextIO, on_progress: Callable[[int], object]) -> None:
    """Write all courses with their stored and true counts.

    `on_progress` gets the number of rows in each batch.
    """
    batches = _batches(Course.objects.with_drift(), [*_COURSE_COLUMNS.values()], on_progress)
    rows = (
        dict(zip(_COURSE_COLUMNS, map(escape_formula, row), strict=True))
        for batch in batches
        for row in batch
    )
    _write(file, _COURSE_COLUMNS, rows)


def export_enrollments(
    *, file: TextIO, format: Format, on_progress: Callable[[int], object]
) -> int:
    """Write all enrollments, and return how many completed ones were written as active.

    An import into an empty database then creates the same courses, students, enrollments and
    counts, except for details that the format cannot represent. `on_progress` gets the number
    of rows in each batch. Raises UnsupportedRecord.
    """
    written_as_active = 0

    def serialize(record: EnrollmentRecord) -> dict[str, Any]:
        nonlocal written_as_active
        if record.status == Enrollment.Status.COMPLETED and not format.has_completed_status:
            written_as_active += 1
        return _serialize(record, format)

    fields = ["pk", "course_id", "student_id", "status", "enrollment_date", "withdrawal_date"]
    batches = _batches(Enrollment.objects.all(), fields, on_progress)
    rows = (serialize(record) for batch in batches for record in _records(batch))
    _write(file, format.columns, rows)
    return written_as_active


def escape_formula(value: Any) -> Any:
    """Prefix a text with an apostrophe if a spreadsheet would execute it as a formula.

    For files that people open. Numbers with a sign are no formulas.
    """
    is_formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def _batches(
    queryset: QuerySet, fields: list[str], on_progress: Callable[[int], object]
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield values in the order of the primary key, which must be the first field."""
    ordered = queryset.using(DEFAULT_DB_ALIAS).order_by("pk").values_list(*fields)
    batch = list(ordered[:BATCH_SIZE])
    while batch:
        yield batch
        on_progress(len(batch))
        batch = list(ordered.filter(pk__gt=batch[-1][0])[:BATCH_SIZE])


def _records(batch: list[tuple[Any, ...]]) -> Iterator[EnrollmentRecord]:
    # A join would make MariaDB start from all users, and sort all rows for each batch.
    courses = Course.objects.using(DEFAULT_DB_ALIAS).only("slug", "code")
    users = get_user_model()._default_manager.using(DEFAULT_DB_ALIAS).only("username")
    courses_by_key = courses.in_bulk({row[1] for row in batch})
    students_by_key = users.in_bulk({row[2] for row in batch})
    for key, course_key, student_key, status, enrollment_date, withdrawal_date in batch:
        course, student = courses_by_key.get(course_key), students_by_key.get(student_key)
        # Either may have been deleted, with the enrollment, after the batch was read.
        if course and student:
            yield EnrollmentRecord(
                course_id=course.code or course.slug,
                username=student.username,
                record_key=f"enrollment-{key}",
                status=status,
                enrollment_date=enrollment_date,
                withdrawal_date=withdrawal_date,
            )


def _serialize(record: EnrollmentRecord, format: Format) -> dict[str, Any]:
    try:
        return format.serialize(record)
    except ValueError as error:
        name = f"student {record.username} in course {record.course_id}"
        raise UnsupportedRecord(f"{name}: {error}") from error


def _write(file: TextIO, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    writer = csv.DictWriter(file, [*columns])
    writer.writeheader()
    writer.writerows(rows)
