"""How rows, counter and history change together, under the lock of their course.

Every function that is decorated with `retry_transaction` is one transaction. It locks the course
row before it changes any enrollment of the course, and several courses in the order of their
keys: writers of one course queue up and do not deadlock. Under that lock, the rows of the course
need no locks of their own.

The fast path enrolls a student without a row: `UPDATE course` locks the course, checks for a free
seat and adds 1, then `INSERT enrollment` and `INSERT event` follow. All other changes lock the
course with `SELECT … FOR UPDATE`, read its rows, decide in Python, and then write rows, counter
and events.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from django.db import IntegrityError, connection
from django.db.models import F

from courses.counts.drift import recount_locked
from courses.counts.metrics import REJECTIONS
from courses.models import Course
from courses.transactions import retry_transaction
from enrollments import history, rows, statements
from enrollments.history import Action, Event, EventContext, make_event
from enrollments.models import Enrollment
from enrollments.results import CourseFull, NotEnrolled, Outcome, Outcomes
from enrollments.rows import Row
from enrollments.transitions import RowValues, Transition, activate, withdraw_active

logger = logging.getLogger(__name__)


class WriteResult(NamedTuple):
    """What happened to the row of one student."""

    enrollment: Enrollment | None  # None: there is no row
    outcome: Outcome
    events: Sequence[Event] = ()

    @property
    def is_changed(self) -> bool:
        return self.outcome is not Outcome.UNCHANGED


class BulkWriteResult(NamedTuple):
    outcomes: Outcomes
    events: Sequence[Event]


class EraseResult(NamedTuple):
    number: int  # of rows
    events: Sequence[Event]


def _is_own_result(earlier: Any, latest: Any) -> bool:
    # None: the attempt to erase a student has to be repeated.
    if earlier is None or latest is None or latest.events:
        return False
    return history.is_recorded(earlier.events)


@retry_transaction(is_own_result=_is_own_result)
def enroll_student(student_id: Any, course_id: Any, context: EventContext) -> WriteResult:
    """Enroll one student. A new row takes one UPDATE of the course and two INSERTs."""
    if not rows.insert_requires_student(student_id):
        rows.require_students([student_id])
    # TAKE_SEAT locks the course, so everything else is prepared before it.
    values = RowValues(Enrollment.Status.ACTIVE, context.created_at, None)
    event = make_event(student_id, course_id, Action.ENROLLED, values, context)
    enrollment = rows.make_enrollment(student_id, course_id, Row(None, values))
    with connection.cursor() as cursor:
        if statements.TAKE_SEAT.execute(cursor, course_id):
            try:
                enrollment.pk = rows.insert_row(cursor, student_id, course_id, values)
            except IntegrityError:
                # MariaDB, MySQL and SQLite roll back the failed statement only.
                _add_to_counter(course_id, -1)
            else:
                history.record_event(cursor, event)
                return WriteResult(enrollment, Outcome.CREATED, [event])
    # The student has a row already, or there is no free seat, or the keys do not exist.
    return _apply_under_lock(
        _lock_course(course_id), student_id, activate(context.created_at), context
    )


@retry_transaction(is_own_result=_is_own_result)
def apply_transition(
    student_id: Any, course_id: Any, transition: Transition, context: EventContext
) -> WriteResult:
    """Apply a transition to the row of one student. Raises CourseFull."""
    return _apply_under_lock(_lock_course(course_id), student_id, transition, context)


@retry_transaction(is_own_result=_is_own_result)
def apply_transitions(
    course_id: Any, transitions: Mapping[Any, Transition], context: EventContext
) -> BulkWriteResult:
    """Apply the transitions to the rows of many students, by student key, in one transaction."""
    change = _change_rows(_lock_course(course_id), transitions, context)
    history.record_events(change.events)
    return BulkWriteResult(change.outcomes, change.events)


def apply_in_chunks(
    course_id: Any,
    transitions: Mapping[Any, Transition],
    context: EventContext,
    chunk_size: int | None,
) -> Outcomes:
    """Apply transitions in one transaction for each chunk. None: one transaction for all."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}.")
    remaining = iter(transitions.items())
    outcomes = apply_transitions(course_id, dict(islice(remaining, chunk_size)), context).outcomes
    while chunk := dict(islice(remaining, chunk_size)):
        outcomes |= apply_transitions(course_id, chunk, context).outcomes
    return outcomes


@retry_transaction(is_own_result=_is_own_result)
def transfer_student(
    student_id: Any, source_id: Any, target_id: Any, context: EventContext
) -> WriteResult:
    """Move an active enrollment; return the row in the target and the outcome in the source."""
    courses = _lock_courses([source_id, target_id])
    source, target = courses[source_id], courses[target_id]
    withdraw, enroll = withdraw_active(context.created_at), activate(context.created_at)
    withdrawal = _change_rows(source, {student_id: withdraw}, context, target.pk)
    outcome = withdrawal.outcomes[student_id]
    if outcome is Outcome.UNCHANGED:
        row = rows.read_rows(target.pk, [student_id]).get(student_id)
        if row is None or not row.values.is_counted:
            raise NotEnrolled(f"The student has no active enrollment in “{source.title}”.")
        return WriteResult(rows.make_enrollment(student_id, target.pk, row), outcome)
    arrival = _change_rows(target, {student_id: enroll}, context, source.pk)
    if arrival.outcomes[student_id] is Outcome.REJECTED:
        raise CourseFull(target)
    events = [*withdrawal.events, *arrival.events]
    history.record_events(events)
    enrollment = rows.make_enrollment(student_id, target.pk, arrival.rows[student_id])
    return WriteResult(enrollment, outcome, events)


@retry_transaction(is_own_result=_is_own_result)
def try_to_erase(student_id: Any, context: EventContext) -> EraseResult | None:
    """Delete the rows and events of a student, and add an event for each row.

    The rows are read without a lock to learn which courses to lock. Returns None, and changes
    nothing, if the student was enrolled in one more course before these were locked.
    """
    rows.require_students([student_id])
    courses = _lock_courses({row.course_id for row in rows.read_rows_of_student(student_id)})
    # Read the events before the rows: every event that is deleted then belongs to a row whose
    # course is locked. If the student is enrolled in one more course now, its events stay.
    event_pks = history.event_pks(student_id)
    enrollments = rows.read_rows_of_student(student_id)
    if not {enrollment.course_id for enrollment in enrollments} <= courses.keys():
        return None
    history.delete_events(event_pks)
    for enrollment in enrollments:
        rows.delete_row(enrollment)
        _move_counter(courses[enrollment.course_id], -int(enrollment.is_counted))
    events = [
        make_event(student_id, enrollment.course_id, Action.ERASED, None, context)
        for enrollment in enrollments
    ]
    history.record_events(events)
    return EraseResult(len(enrollments), events)


# Under the lock of one course ---------------------------------------------------------------


def _apply_under_lock(
    course: Course, student_id: Any, transition: Transition, context: EventContext
) -> WriteResult:
    change = _change_rows(course, {student_id: transition}, context)
    outcome, row = change.outcomes[student_id], change.rows.get(student_id)
    if outcome is Outcome.REJECTED:
        raise CourseFull(course)
    history.record_events(change.events)
    enrollment = None if row is None else rows.make_enrollment(student_id, course.pk, row)
    return WriteResult(enrollment, outcome, change.events)


def _change_rows(
    course: Course,
    transitions: Mapping[Any, Transition],
    context: EventContext,
    other_course_id: Any = None,
) -> "_Change":
    """Apply transitions to the rows of a locked course, and move its counter.

    Free seats go to students in the given order. `other_course_id` is set if a student is
    transferred. The caller records the events.
    """
    current_rows = rows.read_rows(course.pk, list(transitions))
    change = _Change(course, context, other_course_id, current_rows)
    for student_id, transition in transitions.items():
        change.add(student_id, transition)
    _require_students_without_row(change)
    _insert(course, change)
    rows.update_rows(change.updates)
    _move_counter(course, change.delta)
    return change


@dataclass(slots=True)
class _Change:
    """How the rows of one course change. Mappings are by student key."""

    course: Course
    context: EventContext
    other_course_id: Any
    rows: dict[Any, Row]  # as changed so far, without rows that are inserted in bulk
    outcomes: Outcomes = field(default_factory=dict)
    inserts: dict[Any, RowValues] = field(default_factory=dict)
    updates: list[tuple[Row, RowValues]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    delta: int = 0  # of the counter

    def add(self, student_id: Any, transition: Transition) -> None:
        """Add the change of one student's row, if there is one."""
        row = self.rows.get(student_id)
        values = transition(row and row.values)
        if values is None:
            self.outcomes[student_id] = Outcome.UNCHANGED
            return
        delta = values.is_counted - (row is not None and row.values.is_counted)
        if delta > 0 and not self._has_free_seat():
            self.outcomes[student_id] = Outcome.REJECTED
            REJECTIONS.inc()
            return
        self.delta += delta
        if row is None:
            self.outcomes[student_id] = Outcome.CREATED
            self.inserts[student_id] = values
        else:
            self.outcomes[student_id] = _UPDATE_OUTCOMES[delta]
            self.updates.append((row, values))
            self.rows[student_id] = Row(row.pk, values)
        is_transfer = self.other_course_id is not None
        action = history.action_for(
            row and row.values.status, values.status, is_transfer=is_transfer
        )
        self.events.append(
            make_event(
                student_id, self.course.pk, action, values, self.context, self.other_course_id
            )
        )

    def _has_free_seat(self) -> bool:
        capacity = self.course.capacity
        return capacity is None or self.course.total_enrollments + self.delta < capacity


_UPDATE_OUTCOMES = {1: Outcome.REENROLLED, 0: Outcome.UPDATED, -1: Outcome.WITHDRAWN}


def _require_students_without_row(change: _Change) -> None:
    """Raise the user model's DoesNotExist for a student who has no row and does not exist."""
    rows.require_students(
        [
            key
            for key in change.outcomes
            if key not in change.rows
            and not (key in change.inserts and rows.insert_requires_student(key))
        ]
    )


def _insert(course: Course, change: _Change) -> None:
    try:
        if len(change.inserts) == 1:
            ((student_id, values),) = change.inserts.items()
            with connection.cursor() as cursor:
                pk = rows.insert_row(cursor, student_id, course.pk, values)
            change.rows[student_id] = Row(pk, values)
        elif change.inserts:
            rows.insert_rows(course.pk, change.inserts)
    except IntegrityError as error:
        rows.require_students(list(change.inserts))
        raise IntegrityError(
            f"Other code inserts enrollments of course {course.pk} without locking the course."
        ) from error


# The course ---------------------------------------------------------------------------------


def _lock_course(course_id: Any) -> Course:
    return _lock_courses([course_id])[course_id]


def _lock_courses(course_ids: Iterable[Any]) -> dict[Any, Course]:
    """Lock courses in the order of their keys, and return them by key."""
    ids = set(course_ids)
    courses: dict[Any, Course] = {}
    for chunk in rows.chunks(sorted(ids)):
        locked = Course.objects.filter(pk__in=chunk).order_by("pk").select_for_update()
        courses |= {course.pk: course for course in locked}
    if missing := ids - courses.keys():
        raise Course.DoesNotExist(f"Course {rows.format_keys(missing)} does not exist.")
    return courses


def _move_counter(course: Course, delta: int) -> None:
    """Add `delta` to the counter of a locked course, or recount a counter that is too low."""
    if course.total_enrollments + delta < 0:
        recount_locked(course_pks=[course.pk])
        logger.error(
            "The stored count of course %s was %d, too low to subtract %d. The count had drifted "
            "and has been corrected. Find the code that writes enrollments without the services.",
            course.pk,
            course.total_enrollments,
            -delta,
        )
    elif delta:
        _add_to_counter(course.pk, delta)


def _add_to_counter(course_id: Any, delta: int) -> None:
    Course.objects.filter(pk=course_id).update(total_enrollments=F("total_enrollments") + delta)
