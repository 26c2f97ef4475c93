"""Write, read and import enrollment files."""

from datetime import datetime
from pathlib import Path
from typing import Any

from courses.models import Course
from enrollments.exchange.importer import ImportSummary, import_file
from enrollments.exchange.reader import (
    ParsedRow,
    RejectedRow,
    SkippedRow,
    open_enrollment_file,
)
from enrollments.models import Enrollment

CANVAS_HEADER = "course_id,user_id,role,section_id,status"
ONEROSTER_HEADER = (
    "sourcedId,status,dateLastModified,classSourcedId,schoolSourcedId,userSourcedId,"
    "role,primary,beginDate,endDate"
)
OPEN_UNIVERSITY_HEADER = (
    "code_module,code_presentation,id_student,date_registration,date_unregistration"
)


def read_rows(path: Path, **options: Any) -> list[ParsedRow | SkippedRow | RejectedRow]:
    """Return all rows of a file."""
    with open_enrollment_file(path=path, **options) as file:
        return list(file)


def import_path(path: Path, **options: Any) -> tuple[ImportSummary, list[str]]:
    """Import a file, check that its totals add up, and return them with the rejected rows."""
    rejected: list[RejectedRow] = []
    totals: list[int] = []
    progress: list[int] = []
    with open_enrollment_file(path=path) as file:
        summary = import_file(
            file=file,
            on_reject=rejected.append,
            on_total=totals.append,
            on_progress=progress.append,
            **options,
        )
    assert [sum(progress)] == totals
    outcomes = ["created", "reenrolled", "withdrawn", "updated", "unchanged", "skipped"]
    assert summary.rows == sum(getattr(summary, name) for name in [*outcomes, "rejected"])
    assert summary.rejected == len(rejected)
    return summary, [str(row) for row in rejected]


def counts_by_title() -> dict[str, int]:
    """Return the stored count of each course."""
    return dict(Course.objects.values_list("title", "total_enrollments"))


def statuses() -> dict[tuple[str, str], str]:
    """Return the status of each enrollment by course slug and username."""
    rows = Enrollment.objects.values_list("course__slug", "student__username", "status")
    return {(slug, username): status for slug, username, status in rows}


def enrollment_rows() -> list[tuple[str, str, str, datetime, datetime | None]]:
    """Return course title, username, status, enrollment and withdrawal date of all enrollments."""
    keys = ["course__title", "student__username"]
    columns = [*keys, "status", "enrollment_date", "withdrawal_date"]
    return list(Enrollment.objects.order_by(*keys).values_list(*columns))
