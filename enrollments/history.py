"""The history of enrollments: one event for each change, in the transaction of the change.

Only the services add events, under the lock of the course. Rows that are older than the history,
and rows that were written without the services, have no events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from courses.transactions import retry_transaction, with_latest_rows
from enrollments import statements
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.signals import enrollments_changed
from enrollments.transitions import RowValues

Action = EnrollmentEvent.Action
Source = EnrollmentEvent.Source
Status = Enrollment.Status
_MAX_ACTOR_LENGTH = EnrollmentEvent._meta.get_field("actor").max_length


@dataclass(frozen=True, slots=True)
class Origin:
    """Who requested a change, and through which part of the site."""

    source: str = Source.SYSTEM
    actor: str = ""  # user name, or operating system account; empty: unknown


class EventContext(NamedTuple):
    """What all events of one service call have in common."""

    created_at: datetime
    source: str
    actor: str


class Event(NamedTuple):
    """One change of one enrollment, in the order of the columns of EnrollmentEvent.

    `status` and the dates are those of the row after the change, and empty if it was erased.
    """

    student_id: Any
    course_id: Any
    action: str
    status: str
    enrollment_date: datetime | None
    withdrawal_date: datetime | None
    created_at: datetime
    source: str
    actor: str
    other_course_id: Any = None


def make_event(
    student_id: Any,
    course_id: Any,
    action: str,
    values: RowValues | None,
    context: EventContext,
    other_course_id: Any = None,
) -> Event:
    """Return an event. `values` are those of the row after the change; None: it was erased."""
    status, enrollment_date, withdrawal_date = values or ("", None, None)
    return Event(
        student_id,
        course_id,
        action,
        status,
        enrollment_date,
        withdrawal_date,
        *context,
        other_course_id,
    )


def make_context(origin: Origin) -> EventContext:
    return EventContext(timezone.now(), origin.source, origin.actor[:_MAX_ACTOR_LENGTH])


def action_for(
    old_status: str | None, new_status: str, *, is_transfer: bool = False
) -> EnrollmentEvent.Action:
    """Return the action that leads from one status to another. None: there was no row."""
    if is_transfer:
        is_source = new_status == Status.WITHDRAWN
        return Action.TRANSFERRED_OUT if is_source else Action.TRANSFERRED_IN
    if old_status == new_status:
        return Action.DATES_CHANGED
    if old_status == Status.WITHDRAWN:
        return Action.REENROLLED
    if new_status == Status.ACTIVE:
        return Action.ENROLLED if old_status is None else Action.REOPENED
    return Action(new_status)


def record_event(cursor: Any, event: Event) -> None:
    """Insert an event, and send `enrollments_changed` after COMMIT."""
    statements.INSERT_EVENT.execute(cursor, *event)
    _send_after_commit([event])


def record_events(events: Sequence[Event]) -> None:
    """Insert events, and send `enrollments_changed` once after COMMIT."""
    if events:
        with connection.cursor() as cursor:
            statements.INSERT_EVENT.execute_many(cursor, events)
        _send_after_commit(events)


def _send_after_commit(events: Sequence[Event]) -> None:
    if enrollments_changed.has_listeners(Enrollment):
        send = enrollments_changed.send_robust
        transaction.on_commit(partial(send, sender=Enrollment, events=list(events)))


@retry_transaction()
def is_recorded(events: Sequence[Event]) -> bool:
    """Return whether the transaction that recorded these events was committed.

    The time of the call tells its events from equal changes by others.
    """
    if not events:
        return False
    first = events[0]
    matching = _raw_queryset().filter(
        student=first.student_id,
        course=first.course_id,
        action=first.action,
        created_at=first.created_at,
    )
    return matching.exists()


def event_pks(student_id: Any) -> list[Any]:
    """Return the keys of the events of a student, without those of earlier erasures."""
    events = _raw_queryset().filter(student=student_id).exclude(action=Action.ERASED)
    return list(with_latest_rows(events).values_list("pk", flat=True))


def delete_events(pks: Sequence[Any]) -> None:
    # MariaDB answers an IN list over a small table with a full scan, which waits for the events
    # that other transactions have inserted. One key at a time locks that key only.
    for pk in pks:
        _raw_queryset().filter(pk=pk).delete()


def _raw_queryset() -> QuerySet:
    """Return a queryset of the primary, without the guard of `EnrollmentEvent.objects`."""
    return QuerySet(EnrollmentEvent, using=DEFAULT_DB_ALIAS)
