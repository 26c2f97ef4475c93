"""Compare enrollments with their history."""

from typing import Any

COLUMNS = ("student_id", "course_id", "status", "enrollment_date", "withdrawal_date")


def history_mismatches() -> set[tuple[Any, ...]]:
    """Return the rows that differ from their last event, and the events without a row.

    Empty means that the history is complete.
    """
    from enrollments.models import Enrollment, EnrollmentEvent

    events = EnrollmentEvent.objects.order_by("pk").values_list(*COLUMNS)
    last_events = {event[:2]: event for event in events.iterator()}
    # Erasure events have no status, and no row is expected for them.
    expected = {event for event in last_events.values() if event[2]}
    return expected ^ set(Enrollment.objects.values_list(*COLUMNS))
