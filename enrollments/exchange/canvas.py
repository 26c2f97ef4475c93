"""Canvas: enrollments.csv of its "SIS Import Format"."""

from collections.abc import Mapping
from typing import Any

from enrollments.exchange.base import EnrollmentRecord, Format, parse_status
from enrollments.models import Enrollment

Status = Enrollment.Status

_STATUSES = {
    "active": Status.ACTIVE,
    "completed": Status.COMPLETED,
    "concluded": Status.COMPLETED,
    # Canvas deletes the enrollment if the student has another one in the course, and otherwise
    # completes it.
    "deleted_last_completed": Status.COMPLETED,
    "inactive": Status.WITHDRAWN,
    "deleted": Status.WITHDRAWN,
}


class CanvasFormat(Format):
    """One row per student and section. An export has no dates."""

    name = "canvas"
    columns = ("course_id", "user_id", "role", "section_id", "status")
    required_columns = ("course_id", "user_id", "role", "status")

    def parse(self, row: Mapping[str, str]) -> EnrollmentRecord | None:
        if not row["role"]:
            raise ValueError("role is empty: a role_id without a role is not supported")
        if row["role"].lower() != "student":
            return None
        if not row["course_id"]:
            raise ValueError("course_id is empty: a section_id without one is not supported")
        return EnrollmentRecord(
            course_id=row["course_id"],
            username=row["user_id"],
            record_key=row["section_id"],
            status=parse_status(row["status"], _STATUSES),
        )

    def serialize(self, record: EnrollmentRecord) -> dict[str, Any]:
        return {
            "course_id": record.course_id,
            "user_id": record.username,
            "role": "student",
            "status": "deleted" if record.status == Status.WITHDRAWN else record.status,
        }
