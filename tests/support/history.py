"""Whether the history of enrollments tells the rows as they are."""

from typing import Any

COLUMNS = ("student_id", "course_id", "status", "enrollment_date", "withdrawal_date")


def history_mismatches() -> set[tuple[Any, ...]]:
    """Rows that are not as their last event says, and the other way round. Empty is right."""
    from enrollments.models import Enrollment, EnrollmentEvent

    events = EnrollmentEvent.objects.order_by("pk").values_list(*COLUMNS)
    last = {event[:2]: event for event in events.iterator()}
    told = {event for event in last.values() if event[2]}  # what was erased has no status
    return told ^ set(Enrollment.objects.values_list(*COLUMNS))
