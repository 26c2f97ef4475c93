"""OneRoster: enrollments.csv of its "CSV Binding" 1.1 and 1.2, bulk and delta."""

from collections.abc import Mapping
from datetime import UTC
from typing import Any

from enrollments.exchange.base import EnrollmentRecord, Format, parse_datetime, parse_status
from enrollments.models import Enrollment

Status = Enrollment.Status

_STATUSES = {
    "active": Status.ACTIVE,
    "completed": Status.COMPLETED,
    "tobedeleted": Status.WITHDRAWN,
    "inactive": Status.WITHDRAWN,
}


class OneRosterFormat(Format):
    """One row per sourcedId. An export has no schools and no completed enrollments."""

    name = "oneroster"
    columns = (
        "sourcedId", "status", "dateLastModified", "classSourcedId", "schoolSourcedId",
        "userSourcedId", "role", "primary", "beginDate", "endDate",
    )  # fmt: skip
    required_columns = ("sourcedId", "classSourcedId", "userSourcedId", "role")
    has_completed_status = False

    def parse(self, row: Mapping[str, str]) -> EnrollmentRecord | None:
        if not row["role"]:
            raise ValueError("role is empty")
        if row["role"].lower() != "student":
            return None
        if not row["sourcedId"]:
            raise ValueError("sourcedId is empty")
        # The status is empty in bulk files, which contain only active enrollments.
        status = parse_status(row["status"] or "active", _STATUSES)
        end_date = parse_datetime("endDate", row["endDate"]) or parse_datetime(
            "dateLastModified", row["dateLastModified"]
        )
        return EnrollmentRecord(
            course_id=row["classSourcedId"],
            username=row["userSourcedId"],
            record_key=row["sourcedId"],
            status=status,
            enrollment_date=parse_datetime("beginDate", row["beginDate"]),
            withdrawal_date=end_date if status == Status.WITHDRAWN else None,
        )

    def serialize(self, record: EnrollmentRecord) -> dict[str, Any]:
        assert record.enrollment_date is not None  # rows in the database have one
        begin_date = record.enrollment_date.astimezone(UTC)
        end_date = record.withdrawal_date and record.withdrawal_date.astimezone(UTC)
        modified = (end_date or begin_date).replace(tzinfo=None)
        return {
            "sourcedId": record.record_key,
            "status": "tobedeleted" if end_date else "active",
            "dateLastModified": f"{modified.isoformat(timespec='milliseconds')}Z",
            "classSourcedId": record.course_id,
            "userSourcedId": record.username,
            "role": "student",
            "primary": "false",
            "beginDate": begin_date.date(),
            "endDate": end_date and end_date.date(),
        }
