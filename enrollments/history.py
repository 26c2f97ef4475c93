"""The history of enrollments: an event for each change, in the transaction that makes it.

Added by `enrollments.services` after the row, under the lock of its course. Rows that are
older than this table, and what is written past the services, have no events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from django.db.models import QuerySet
from django.utils import timezone

from courses.transactions import with_latest_rows
from enrollments import bulk
from enrollments.models import Enrollment, EnrollmentEvent

Action = EnrollmentEvent.Action
Source = EnrollmentEvent.Source
Status = Enrollment.Status
_MOST_LETTERS = EnrollmentEvent._meta.get_field("actor").max_length


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks a service for a change, and which way it comes."""

    source: str = Source.SYSTEM
    # The username, or the account of the operating system. Empty: not known.
    actor: str = ""


class EventContext(NamedTuple):
    """What all events of one call have in common."""

    created_at: datetime
    source: str
    actor: str


class Event(NamedTuple):
    """What became of one student's row, and how the row is now."""

    student_key: Any
    action: str
    status: str = ""
    enrollment_date: datetime | None = None
    withdrawal_date: datetime | None = None


def make_context(origin: Origin) -> EventContext:
    return EventContext(timezone.now(), origin.source, origin.actor[:_MOST_LETTERS])


def action_for(before: str | None, after: str, *, is_move: bool = False) -> Action:
    """Say what it is that makes one status of another; None: there was no row."""
    if is_move:
        return Action.TRANSFERRED_OUT if after == Status.WITHDRAWN else Action.TRANSFERRED_IN
    if before == after:
        return Action.DATES_CHANGED
    if before == Status.WITHDRAWN:
        return Action.REENROLLED
    if after == Status.ACTIVE:
        return Action.ENROLLED if before is None else Action.REOPENED
    return Action(after)


def add(
    course_key: Any, events: Sequence[Event], stamp: EventContext, other_course_key: Any = None
) -> None:
    """Add the events of rows of one course."""
    rows = [
        (student_key, (*done, course_key, *stamp, other_course_key))
        for student_key, *done in events
    ]
    bulk.insert(EnrollmentEvent, _COLUMNS, rows)


_COLUMNS = ["student", *Event._fields[1:], "course", *EventContext._fields, "other_course"]
# By hand, for the same reason as the row that it comes with.
_INSERT = (
    "INSERT INTO enrollments_enrollmentevent "
    "(student_id, course_id, status, enrollment_date, withdrawal_date, action, created_at, source, actor) "
    "VALUES (%s, %s, %s, %s, %s, 'enrolled', %s, %s, %s)"
)


def add_enrolled(cursor: Any, row: Sequence[Any], stamp: EventContext) -> None:
    """Add the event of a new row, given as the database has it."""
    at = cursor.db.ops.adapt_datetimefield_value(stamp.created_at)
    cursor.execute(_INSERT, [*row, at, stamp.source, stamp.actor])


def keys_of(student_key: Any) -> list[Any]:
    """The keys of all events of a student, but that somebody was erased."""
    events: QuerySet = QuerySet(EnrollmentEvent).filter(student=student_key)
    return list(with_latest_rows(events.exclude(action=Action.ERASED)).values_list("pk", flat=True))


def delete_events(keys: Sequence[Any]) -> None:
    # Of many keys of a small table MariaDB makes a scan, which waits for all others' events.
    for key in keys:
        QuerySet(EnrollmentEvent).filter(pk=key).delete()
