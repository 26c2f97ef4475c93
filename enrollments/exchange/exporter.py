"""Courses and enrollments as CSV, row by row, in the formats that the import reads."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any, NamedTuple, TextIO

from django.contrib.auth import get_user_model
from django.db.models import QuerySet

from courses.models import Course
from enrollments.exchange.reader import Status, slug_of, start_of
from enrollments.models import Enrollment

# Rows read in one query. Nothing is held from one to the next, neither rows nor a transaction.
BATCH_SIZE = 2_000


class InexpressibleRow(ValueError):
    """The format has no words for a row; the message says for which. Use another format."""


def export_courses(*, file: TextIO) -> int:
    """Write all courses with their stored and true counts; return their number."""
    columns = ["pk", "slug", "title", "capacity", "total_enrollments", "true_count", "drift"]
    header = ["course_id", "slug", "title", "capacity", "stored", "true", "drift"]
    return _write(file, header, _batches(Course.objects.with_drift(), columns))


def export_enrollments(
    *, file: TextIO, format_name: str, starts: Mapping[str, date], school: str = ""
) -> int:
    """Write all enrollment rows in a format of FORMATS; return their number.

    Imported into an empty database they make the same courses, students, rows and counts.
    What only one side knows is lost: Canvas has no dates, OneRoster no completed enrollments,
    the Open University no hours. `starts` is as for the import; `school` is the sourcedId of
    OneRoster's school. Raises InexpressibleRow.
    """
    written = FORMATS[format_name](starts, school)
    batches = _batches(Enrollment.objects.all(), ["pk", "course_id", "student_id", *_STATE])
    fields = (map(written.fields, _enrolled(batch)) for batch in batches)
    return _write(file, written.header, fields)


def _write(file: TextIO, header: list[str], batches: Iterable[Iterable[Any]]) -> int:
    rows, number = csv.writer(file), 0
    rows.writerow(header)
    for batch in batches:
        for row in batch:
            rows.writerow(row)
            number += 1
    return number


def _batches(rows: QuerySet, columns: list[str]) -> Iterator[list[tuple[Any, ...]]]:
    """Yield values in key order. `columns` begins with the key."""
    ordered = rows.order_by("pk").values_list(*columns)
    batch = list(ordered[:BATCH_SIZE])
    while batch:
        yield batch
        batch = list(ordered.filter(pk__gt=batch[-1][0])[:BATCH_SIZE])


def _enrolled(batch: list[tuple[Any, ...]]) -> Iterator["_Enrolled"]:
    # Not by a join: MariaDB would begin it with all users, and sort all rows for each batch.
    courses = Course.objects.only("slug", "title").in_bulk({row[1] for row in batch})
    users = get_user_model()._default_manager.only("username")
    students = users.in_bulk({row[2] for row in batch})
    for key, course_key, student_key, *state in batch:
        course, student = courses.get(course_key), students.get(student_key)
        # One may have been erased, with the row, since the row was read.
        if course and student:
            yield _Enrolled(key, course.slug, course.title, student.username, *state)


_STATE = ["status", "enrollment_date", "withdrawal_date"]


class _Enrolled(NamedTuple):
    key: Any
    slug: str
    title: str
    username: str
    status: str
    enrollment_date: datetime
    withdrawal_date: datetime | None

    @property
    def course_id(self) -> str:
        """What the import makes this course of: its title, where that was its id."""
        try:
            return self.title if slug_of(self.title) == self.slug.lower() else self.slug
        except ValueError:
            return self.slug


class _Format(NamedTuple):
    header: list[str]
    fields: Callable[[_Enrolled], list[Any]]


def _canvas(starts: Mapping[str, date], school: str) -> _Format:
    said = {str(Status.WITHDRAWN): "deleted"}
    return _Format(
        ["course_id", "user_id", "role", "section_id", "status"],
        lambda row: [
            *(row.course_id, row.username, "student", ""),
            said.get(row.status, row.status),
        ],
    )


def _oneroster(starts: Mapping[str, date], school: str) -> _Format:
    def fields(row: _Enrolled) -> list[Any]:
        withdrawn = row.withdrawal_date
        modified = (withdrawn or row.enrollment_date).astimezone(UTC)
        return [
            f"enrollment-{row.key}",
            "tobedeleted" if withdrawn else "active",
            f"{modified:%Y-%m-%dT%H:%M:%S}.{modified.microsecond // 1000:03}Z",
            *(row.course_id, school, row.username, "student", "false"),
            row.enrollment_date.astimezone(UTC).date(),
            withdrawn and withdrawn.astimezone(UTC).date(),
        ]

    header = ["sourcedId", "status", "dateLastModified", "classSourcedId", "schoolSourcedId"]
    header += ["userSourcedId", "role", "primary", "beginDate", "endDate"]
    return _Format(header, fields)


def _open_university(starts: Mapping[str, date], school: str) -> _Format:
    def fields(row: _Enrolled) -> list[Any]:
        module, _, presentation = row.course_id.rpartition("-")
        if presentation not in starts:
            presentation = presentation.upper()  # as it was before it became a slug
        try:
            if not (module.isascii() and module.replace("_", "a").isalnum()):
                raise ValueError("its id is not MODULE-PRESENTATION")
            start = start_of(presentation, starts)
        except ValueError as error:
            raise InexpressibleRow(f"course {row.course_id}: {error}") from None
        if not (row.username.isascii() and row.username.isdigit() and len(row.username) <= 20):
            raise InexpressibleRow(f"student {row.username}: the name is not a whole number")
        days = [moment and (moment - start).days for moment in row[-2:]]
        return [module, presentation, row.username, *days]

    header = ["code_module", "code_presentation", "id_student"]
    return _Format([*header, "date_registration", "date_unregistration"], fields)


FORMATS: dict[str, Callable[[Mapping[str, date], str], _Format]] = {
    "canvas": _canvas,
    "oneroster": _oneroster,
    "open-university": _open_university,
}
