"""The only code that writes enrollment rows, and moves their course's counter with them.

Every service is one transaction, and locks the course row before it touches the course's
enrollment rows (several courses in key order): writers of one course queue up, and don't
deadlock. Called inside a caller's `atomic()`, a service joins that transaction. Called
outside, it retries conflicts and lost connections by itself; that is safe, as is any
repeated call, because doing again what is done already changes nothing.

Each change adds an event to the history of its enrollment (`enrollments.history`), with the
`origin` that the caller gives: who asks for it, and which way it comes.

`student` and `course` are an instance or a primary key. What isn't there raises
`Course.DoesNotExist` or the user model's `DoesNotExist`. A database that stays away or
busy after all retries raises `django.db.OperationalError`: call again later.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import (
    DEFAULT_DB_ALIAS,
    IntegrityError,
    OperationalError,
    connection,
    connections,
)
from django.db.models import F, IntegerField, Model, QuerySet
from django.db.models.signals import post_save, pre_save

from courses.counts.drift import recount_locked
from courses.counts.metrics import REJECTIONS
from courses.models import Course
from courses.transactions import reads_latest_rows, retry_transaction, with_latest_rows
from enrollments import bulk, history
from enrollments.bulk import chunks
from enrollments.history import Event, EventContext, Origin, make_context
from enrollments.managers import COUNTED_STATUSES, DirectWriteError
from enrollments.models import Enrollment

logger = logging.getLogger(__name__)

Status = Enrollment.Status

UNKNOWN = Origin()  # of callers that don't say


class CourseFull(Exception):
    """The course has no seat left: tell the student so."""

    def __init__(self, course: Course) -> None:
        self.course = course
        super().__init__(f"“{course.title}” is full: all {course.capacity} seats are taken.")


class NotEnrolled(Enrollment.DoesNotExist):
    """The student has no such enrollment in the course: enroll them first."""


class CourseCompleted(Exception):
    """The student has completed the course: staff can withdraw them, with `unenroll()`."""


class Outcome(StrEnum):
    """What a service did for one student."""

    CREATED = "created"  # a new row
    REENROLLED = "reenrolled"  # a withdrawn row that counts again
    WITHDRAWN = "withdrawn"  # a row that no longer counts
    UPDATED = "updated"  # another status or other dates; counts as it did
    UNCHANGED = "unchanged"
    REJECTED = "rejected"  # no seat


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What a bulk service did: numbers of students, and who got no seat."""

    created: int = 0
    reenrolled: int = 0
    withdrawn: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: tuple[Any, ...] = ()  # keys of the students without a seat, in the given order
    # By the student's key, in the given order; None where it was not asked for.
    outcomes: Mapping[Any, Outcome] | None = field(default=None, repr=False)

    @property
    def changed(self) -> int:
        return self.created + self.reenrolled + self.withdrawn + self.updated


@dataclass(frozen=True, slots=True)
class Registration:
    """What `register_many()` makes of one student's row. Dates are aware datetimes.

    Not `overwrite_dates`: a row of that status keeps its dates. Otherwise a date that is None stays
    as the row has it, and is now where it has none.
    """

    student: Model | int
    enrollment_date: datetime | None
    withdrawal_date: datetime | None = None
    status: str = Status.ACTIVE
    overwrite_dates: bool = True


def enroll(
    *, student: Model | int, course: Course | int, origin: Origin = UNKNOWN
) -> tuple[Enrollment, bool]:
    """Enroll a student, and return the row and whether this call moved the counter.

    A withdrawn row is taken up again; one that counts already is left as it is.
    Raises CourseFull.
    """
    row, outcome = _enroll(_key(student), _key(course, Course), make_context(origin))
    assert row is not None  # else it raises
    return row, outcome is not Outcome.UNCHANGED


def unenroll(*, student: Model | int, course: Course | int, origin: Origin = UNKNOWN) -> bool:
    """Withdraw a student, and return whether this call did so.

    False: there was no enrollment that counts. The row is kept, as withdrawn.
    """
    stamp = make_context(origin)
    _, outcome = _write_one(
        _key(student), _key(course, Course), _withdrawn(stamp.created_at), stamp
    )
    return outcome is not Outcome.UNCHANGED


def leave(*, student: Model | int, course: Course | int, origin: Origin = UNKNOWN) -> bool:
    """Withdraw a student who wants to, and return whether this call did so.

    As `unenroll()`, but what is completed stays. Raises CourseCompleted.
    """
    stamp = make_context(origin)
    withdraw = _withdrawn(stamp.created_at)

    def target(row: _State | None) -> _State | None:
        if row is not None and row.status == Status.COMPLETED:
            raise CourseCompleted("You have completed this course: it stays among yours.")
        return withdraw(row)

    _, outcome = _write_one(_key(student), _key(course, Course), target, stamp)
    return outcome is not Outcome.UNCHANGED


def set_status(
    *, student: Model | int, course: Course | int, status: str, origin: Origin = UNKNOWN
) -> bool:
    """Give an enrollment another status, and return whether this call changed it.

    Raises NotEnrolled where there is no row, CourseFull where a withdrawn row would
    count again and no seat is left, ValueError for a status that doesn't exist.
    """
    _require_status(status)
    stamp = make_context(origin)

    def target(row: _State | None) -> _State | None:
        if row is None or row.status == status:
            return None
        if status == Status.WITHDRAWN:
            return _State(status, row.enrollment_date, stamp.created_at)
        return _State(status, row.enrollment_date if row.is_counted else stamp.created_at, None)

    row, outcome = _write_one(_key(student), _key(course, Course), target, stamp)
    if row is None:
        raise NotEnrolled("The student has no enrollment in this course: enroll them first.")
    return outcome is not Outcome.UNCHANGED


def transfer(
    *,
    student: Model | int,
    source: Course | int,
    target: Course | int,
    origin: Origin = UNKNOWN,
) -> tuple[Enrollment, bool]:
    """Move an active enrollment; return the row in `target`, and whether this call moved it.

    The row in `source` is kept, as withdrawn. False: it was there already, and nothing
    is active in `source`. Raises NotEnrolled where there is nothing to move, CourseFull,
    and ValueError where both are the same course; nothing is changed then.
    """
    source_key, target_key = _key(source, Course), _key(target, Course)
    if source_key == target_key:
        raise ValueError("Source and target are the same course: name two.")
    row, outcome = _transfer(_key(student), source_key, target_key, make_context(origin))
    assert row is not None  # else it raises
    return row, outcome is not Outcome.UNCHANGED


def enroll_many(
    *,
    course: Course | int,
    students: Iterable[Model | int],
    chunk_size: int | None = None,
    outcomes: bool = False,
    origin: Origin = UNKNOWN,
) -> BulkResult:
    """Enroll students in the given order until the course is full; the rest are refused.

    Without `chunk_size`: all or nothing, in one transaction, which holds the course until all
    are in. With it: that many students a transaction. Others enroll and leave in between, and
    may take the last seats; after an error or a crash the earlier chunks are in, whole, and
    the same call again brings in the rest. Inside a caller's `atomic()` it is the caller's
    transaction that holds the course, and all goes back with it, with or without chunks.

    `outcomes` asks for the outcome of each student. Raises ValueError for a `chunk_size`
    below 1.
    """
    stamp = make_context(origin)
    targets = dict.fromkeys(_keys(students), _enrolled(stamp.created_at))
    return _write_chunks(_key(course, Course), targets, stamp, chunk_size, outcomes)


def unenroll_many(
    *,
    course: Course | int,
    students: Iterable[Model | int],
    chunk_size: int | None = None,
    outcomes: bool = False,
    origin: Origin = UNKNOWN,
) -> BulkResult:
    """Withdraw students; those without an enrollment that counts are left as they are.

    `chunk_size` and `outcomes` are those of `enroll_many()`.
    """
    stamp = make_context(origin)
    targets = dict.fromkeys(_keys(students), _withdrawn(stamp.created_at))
    return _write_chunks(_key(course, Course), targets, stamp, chunk_size, outcomes)


def register_many(
    *,
    course: Course | int,
    registrations: Iterable[Registration],
    chunk_size: int | None = None,
    outcomes: bool = False,
    origin: Origin = UNKNOWN,
) -> BulkResult:
    """Make rows as given, with their dates: for records that are kept elsewhere.

    Where a student is given twice, the last one counts. Seats go in the given order.
    `chunk_size` and `outcomes` are those of `enroll_many()`.
    Raises ValueError for a status that doesn't exist or doesn't fit the dates.
    """
    stamp = make_context(origin)
    targets = {_key(item.student): _registered(item, stamp.created_at) for item in registrations}
    return _write_chunks(_key(course, Course), targets, stamp, chunk_size, outcomes)


def erase_student(*, student: Model | int, origin: Origin = UNKNOWN) -> int:
    """Delete all rows of a student with their history, and return the number of rows.

    For deletion requests: the user can be deleted afterwards. What is left of each row is the
    event that it was erased.
    """
    erased = None
    while erased is None:
        erased = _erase(_key(student), make_context(origin))
    return erased


# How it is done -----------------------------------------------------------------


class _State(NamedTuple):
    """What a service writes into a row."""

    status: str
    enrollment_date: datetime
    withdrawal_date: datetime | None

    @property
    def is_counted(self) -> bool:
        return self.status in COUNTED_STATUSES


# Says what a row is to be (None: as it is), given what it is (None: there is none).
_Target = Callable[[_State | None], _State | None]


class _Row(NamedTuple):
    """A row as it is in the database, for a tenth of what a model instance costs."""

    pk: Any
    state: _State


# By how much the counter moved for a row that was there before.
_MOVED = {1: Outcome.REENROLLED, 0: Outcome.UPDATED, -1: Outcome.WITHDRAWN}

_Outcomes = dict[Any, Outcome]  # by student, in the given order


class _Written(NamedTuple):
    rows: dict[Any, _Row]  # by student, as they are now
    outcomes: _Outcomes


class _WrittenOne(NamedTuple):
    row: Enrollment | None
    outcome: Outcome

    @property
    def is_unchanged(self) -> bool:
        return self.outcome is Outcome.UNCHANGED


def _enrolled(now: datetime) -> _Target:
    state = _State(Status.ACTIVE, now, None)
    return lambda row: None if row is not None and row.is_counted else state


def _withdrawn(now: datetime) -> _Target:
    def target(row: _State | None) -> _State | None:
        if row is None or not row.is_counted:
            return None
        return _State(Status.WITHDRAWN, row.enrollment_date, now)

    return target


def _registered(item: Registration, now: datetime) -> _Target:
    _require_status(item.status)
    is_withdrawn = item.status == Status.WITHDRAWN
    has_date = item.withdrawal_date is not None
    if has_date != is_withdrawn and (has_date or item.overwrite_dates):
        raise ValueError("A withdrawn registration has a withdrawal date, and no other has one.")
    if item.overwrite_dates:
        if item.enrollment_date is None:
            raise ValueError("An exact registration has an enrollment date.")
        state = _State(item.status, item.enrollment_date, item.withdrawal_date)
        return lambda row: None if row == state else state

    def target(row: _State | None) -> _State | None:
        if row is not None and row.status == item.status:
            return None
        kept = row and (row.is_counted or is_withdrawn) and row.enrollment_date
        began = item.enrollment_date or kept or now
        return _State(item.status, began, (item.withdrawal_date or now) if is_withdrawn else None)

    return target


def _state(row: Enrollment) -> _State:
    return _State(row.status, row.enrollment_date, row.withdrawal_date)


def _enroll_now(student_key: Any, course_key: Any, stamp: EventContext) -> _WrittenOne:
    # The common case in two statements, and the one of its event: the UPDATE takes the
    # course's lock, tests for a seat and moves the counter.
    if connection.features.can_defer_constraint_checks:
        # This database would notice a missing student at COMMIT only.
        _require_students([student_key])
    row = Enrollment(
        student_id=student_key,
        course_id=course_key,
        status=Status.ACTIVE,
        enrollment_date=stamp.created_at,
    )
    if _insert_counted(row, stamp):
        return _WrittenOne(row, Outcome.CREATED)
    # There is a row already, or no seat, or no such student or course.
    return _write_one_now(student_key, course_key, _enrolled(stamp.created_at), stamp)


# By hand: the ORM takes longer to make up these statements than the database to do them, and
# the second one while all others wait for the course (see `make bench`).
_TAKE_SEAT = (
    "UPDATE courses_course SET total_enrollments = total_enrollments + 1 "
    "WHERE id = %s AND (capacity IS NULL OR capacity > total_enrollments)"
)
_GIVE_SEAT_BACK = (
    "UPDATE courses_course SET total_enrollments = total_enrollments - 1 WHERE id = %s"
)
_INSERT = (
    "INSERT INTO enrollments_enrollment "
    "(student_id, course_id, status, enrollment_date, withdrawal_date) VALUES (%s, %s, %s, %s, %s)"
)
_INSERTED: list[Any] = [
    Enrollment._meta.get_field(name)
    for name in ("student", "course", "status", "enrollment_date", "withdrawal_date")
]


def _insert_counted(row: Enrollment, stamp: EventContext) -> bool:
    """Take a seat and insert the row with its event, or nothing; return which."""
    # Looked up once, which Django's `connection` does for each of its attributes.
    database = connections[DEFAULT_DB_ALIAS]
    with database.cursor() as cursor:
        cursor.execute(_TAKE_SEAT, [row.course_id])
        if not cursor.rowcount:
            return False
        values = _insert(cursor, row)
        if values is None:
            cursor.execute(_GIVE_SEAT_BACK, [row.course_id])
            return False
        history.add_enrolled(cursor, values, stamp)
    _tell_inserted(row)
    return True


def _insert(cursor: Any, row: Enrollment) -> list[Any] | None:
    """Insert a row; return its values as the database has them, or None: a key forbids it.

    `_tell_inserted()` is for when its counter and its event are written, too.
    """
    asked = row.student_id, row.course_id, row.is_counted
    pre_save.send(**_sent(row))
    if (row.student_id, row.course_id, row.is_counted) != asked:
        raise DirectWriteError(
            "A receiver of pre_save changed an enrollment's student, course or status, which moves "
            "counters: call enrollments.services instead."
        )
    values = [field.get_db_prep_save(getattr(row, field.attname), cursor.db) for field in _INSERTED]
    try:
        cursor.execute(_INSERT, values)
    except IntegrityError:
        # MariaDB, MySQL and SQLite undo the one statement that failed.
        return None
    row.pk = cursor.lastrowid
    row._state.adding, row._state.db = False, cursor.db.alias
    return values


def _tell_inserted(row: Enrollment) -> None:
    post_save.send(**_sent(row), created=True)


def _sent(row: Enrollment) -> dict[str, Any]:
    """What Django's save() sends to receivers."""
    return {
        "sender": Enrollment,
        "instance": row,
        "raw": False,
        "using": DEFAULT_DB_ALIAS,
        "update_fields": None,
    }


def _write_one_now(
    student_key: Any, course_key: Any, target: _Target, stamp: EventContext
) -> _WrittenOne:
    (course,) = _lock(course_key)
    return _one(course, student_key, target, stamp)


def _one(
    course: Course, student_key: Any, target: _Target, stamp: EventContext, moved: Any = None
) -> _WrittenOne:
    rows, outcomes = _write(course, {student_key: target}, stamp, moved)
    if outcomes[student_key] is Outcome.REJECTED:
        raise CourseFull(course)
    row = rows.get(student_key)
    return _WrittenOne(row and _enrollment(course, student_key, row), outcomes[student_key])


def _enrollment(course: Course, student_key: Any, row: _Row) -> Enrollment:
    values = {"pk": row.pk, "student_id": student_key, "course_id": course.pk}
    enrollment = Enrollment(**values, **row.state._asdict())
    enrollment._state.adding, enrollment._state.db = False, connection.alias
    return enrollment


def _write_many_now(
    course_key: Any, targets: Mapping[Any, _Target], stamp: EventContext
) -> _Outcomes:
    (course,) = _lock(course_key)
    return _write(course, targets, stamp).outcomes


def _write_chunks(
    course_key: Any,
    targets: Mapping[Any, _Target],
    stamp: EventContext,
    chunk_size: int | None,
    with_outcomes: bool,
) -> BulkResult:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"The chunk size must be at least 1, not {chunk_size}.")
    remaining = iter(targets.items())
    outcomes = _write_many(course_key, dict(islice(remaining, chunk_size)), stamp)
    while chunk := dict(islice(remaining, chunk_size)):
        outcomes |= _write_many(course_key, chunk, stamp)
    number = Counter(outcomes.values())
    return BulkResult(
        created=number[Outcome.CREATED],
        reenrolled=number[Outcome.REENROLLED],
        withdrawn=number[Outcome.WITHDRAWN],
        updated=number[Outcome.UPDATED],
        unchanged=number[Outcome.UNCHANGED],
        rejected=tuple(key for key, outcome in outcomes.items() if outcome is Outcome.REJECTED),
        outcomes=outcomes if with_outcomes else None,
    )


def _transfer_now(
    student_key: Any, source_key: Any, target_key: Any, stamp: EventContext
) -> _WrittenOne:
    """Return the row in the target, and the outcome in the source."""
    courses = {course.pk: course for course in _lock(source_key, target_key)}

    def leave(row: _State | None) -> _State | None:
        if row is None or row.status != Status.ACTIVE:
            return None
        return _State(Status.WITHDRAWN, row.enrollment_date, stamp.created_at)

    left = _one(courses[source_key], student_key, leave, stamp, target_key)
    if left.is_unchanged:
        there = courses[target_key]
        row = _rows_of(there, [student_key]).get(student_key)
        if row is None or not row.state.is_counted:
            raise NotEnrolled("The student has no active enrollment in the course to leave.")
        return _WrittenOne(_enrollment(there, student_key, row), Outcome.UNCHANGED)
    entered = _one(courses[target_key], student_key, _enrolled(stamp.created_at), stamp, source_key)
    return _WrittenOne(entered.row, left.outcome)


def _erase_now(student_key: Any, stamp: EventContext) -> int | None:
    """Return the number of rows erased, or None: look again, there is one more course now."""
    _require_students([student_key])
    locked = _lock(*(row.course_id for row in _rows_of_student(student_key)))
    # Before the rows: the row of each event is among them then, and its course is locked. One of
    # a course that they come to meanwhile keeps its event, and nobody waits for it.
    events = history.keys_of(student_key)
    rows = _rows_of_student(student_key)
    if {row.course_id for row in rows} - {course.pk for course in locked}:
        return None
    courses = {course.pk: course for course in locked}
    history.delete_events(events)
    for row in rows:
        _require_all(_unguarded().filter(pk=row.pk).delete()[0], [row.pk])
        history.add(row.course_id, [Event(student_key, history.Action.ERASED)], stamp)
        _move_counter(courses[row.course_id], -int(row.is_counted))
    return len(rows)


def _found_as_left(earlier: _WrittenOne, now: _WrittenOne) -> bool:
    # The dates tell our writing from that of others, for each call has its own moment.
    return (
        now.outcome is Outcome.UNCHANGED
        and earlier.row is not None
        and now.row is not None
        and _state(earlier.row) == _state(now.row)
    )


_enroll = retry_transaction(is_own_result=_found_as_left)(_enroll_now)
_write_one = retry_transaction(is_own_result=_found_as_left)(_write_one_now)
_write_many = retry_transaction(
    is_own_result=lambda earlier, now: {*now.values()} <= {Outcome.UNCHANGED, Outcome.REJECTED}
)(_write_many_now)
_transfer = retry_transaction(is_own_result=_found_as_left)(_transfer_now)
_erase = retry_transaction(is_own_result=lambda earlier, now: now == 0)(_erase_now)


def _lock(*course_keys: Any) -> list[Course]:
    """Lock courses in key order, and return them as they are now."""
    wanted = set(course_keys)
    locked = list(Course.objects.filter(pk__in=wanted).order_by("pk").select_for_update())
    if missing := wanted - {course.pk for course in locked}:
        raise Course.DoesNotExist(f"There is no course with the key {_listed(missing)}.")
    return locked


def _rows_of(course: Course, student_keys: Sequence[Any]) -> dict[Any, _Row]:
    rows = _unguarded().filter(course=course).values_list("student_id", "pk", *_State._fields)
    if len(student_keys) > bulk.CHUNK and reads_latest_rows():
        # Most of a course is read faster whole than looked for. One more than there are
        # students: it has more rows than that.
        found = list(rows[: len(student_keys) + 1])
        if len(found) <= len(student_keys):
            return {key: _Row(pk, _State(*state)) for key, pk, *state in found}
    return {
        key: _Row(pk, _State(*state))
        for keys in chunks(student_keys)
        for key, pk, *state in with_latest_rows(rows.filter(student__in=keys))
    }


def _rows_of_student(student_key: Any) -> list[Enrollment]:
    return list(with_latest_rows(_unguarded().filter(student=student_key)))


def _write(
    course: Course, targets: Mapping[Any, _Target], stamp: EventContext, moved: Any = None
) -> _Written:
    """Bring the rows of a locked course to their targets, its counter and history with them.

    `moved` is the key of the other course, where a student is moved from one to the other.
    """
    rows = _rows_of(course, list(targets))
    free = math.inf if course.capacity is None else course.capacity - course.total_enrollments
    delta = 0
    outcomes: _Outcomes = {}
    new: dict[Any, _State] = {}
    changes: defaultdict[tuple[tuple[str, Any], ...], list[Any]] = defaultdict(list)
    done: dict[Any, str] = {}
    for student_key, target in targets.items():
        row = rows.get(student_key)
        before = None if row is None else row.state
        state = target(before)
        if state is None:
            outcomes[student_key] = Outcome.UNCHANGED
            continue
        move = state.is_counted - (before is not None and before.is_counted)
        if move > 0 and delta + move > free:
            outcomes[student_key] = Outcome.REJECTED
            REJECTIONS.inc()
            continue
        delta += move
        what = history.action_for(before and before.status, state.status, is_move=moved is not None)
        done[student_key] = what
        if row is None or before is None:
            outcomes[student_key] = Outcome.CREATED
            new[student_key] = state
        else:
            outcomes[student_key] = _MOVED[move]
            named = zip(_State._fields, before, state, strict=True)
            changes[tuple((name, now) for name, was, now in named if was != now)].append(row.pk)
            rows[student_key] = _Row(row.pk, state)
    # Of new rows, the foreign key says it where it is checked at once.
    unproven = targets if connection.features.can_defer_constraint_checks else targets.keys() - new
    _require_students([key for key in unproven if key not in rows])
    if inserted := _insert_new(course, new):
        # With what receivers of pre_save made of it.
        new[inserted.student_id] = _state(inserted)
        rows[inserted.student_id] = _Row(inserted.pk, _state(inserted))
    for change, keys in changes.items():
        for chunk in chunks(keys):
            _require_all(_unguarded().filter(pk__in=chunk).update(**dict(change)), chunk)
    events = [Event(key, what, *(new.get(key) or rows[key].state)) for key, what in done.items()]
    history.add(course.pk, events, stamp, moved)
    _move_counter(course, delta)
    if inserted:
        _tell_inserted(inserted)
    return _Written(rows, outcomes)


def _insert_new(course: Course, new: Mapping[Any, _State]) -> Enrollment | None:
    """Insert rows of a locked course; return the row where it is only one."""
    if len(new) == 1:
        ((student_key, state),) = new.items()
        row = Enrollment(student_id=student_key, course_id=course.pk, **state._asdict())
        with connection.cursor() as cursor:
            if _insert(cursor, row):
                return row
    elif _insert_many(course, new):
        return None
    _require_students(list(new))
    raise IntegrityError(f"Others write rows of course {course.pk} without its lock.")


def _insert_many(course: Course, new: Mapping[Any, _State]) -> bool:
    """Insert rows, and return whether their keys allowed it."""
    rows = [(student_key, (course.pk, *state)) for student_key, state in new.items()]
    try:
        bulk.insert(Enrollment, ["student", "course", *_State._fields], rows)
    except IntegrityError:
        return False
    return True


def _require_all(matched: int, keys: Sequence[Any]) -> None:
    # On a Galera cluster the lock on the course is not seen by other nodes. What they do to
    # the course itself collides with us, but a withdrawn row that they erase is simply gone.
    if matched != len(keys):
        raise OperationalError(1020, "Rows were erased elsewhere since they were read")


def _move_counter(course: Course, delta: int) -> None:
    """Move the counter of a locked course by what its rows were moved by, after they were."""
    if course.total_enrollments + delta < 0:
        recount_locked(course_pks=[course.pk])
        logger.error(
            "The stored count of course %s, %d, was too low to fall by %d: it had drifted, and "
            "was recounted. Look for what writes to the tables past the services.",
            course.pk,
            course.total_enrollments,
            -delta,
        )
    elif delta:
        Course.objects.filter(pk=course.pk).update(total_enrollments=F("total_enrollments") + delta)


def _require_students(keys: Sequence[Any]) -> None:
    users = get_user_model()._default_manager
    missing = set(keys)
    for chunk in chunks(keys):
        missing.difference_update(users.filter(pk__in=chunk).values_list("pk", flat=True))
    if missing:
        raise get_user_model().DoesNotExist(f"There is no user with the key {_listed(missing)}.")


def _require_status(status: str) -> None:
    if status not in Status.values:
        raise ValueError(f"“{status}” is no status: use one of {', '.join(Status.values)}.")


def _keys(students: Iterable[Any]) -> list[Any]:
    model = get_user_model()
    keys = [student.pk if isinstance(student, model) else student for student in students]
    if {*map(type, keys)} == {int} and isinstance(model._meta.pk, IntegerField):
        # What is asked of whole numbers is a range.
        for key in (min(keys), max(keys)):
            _key(key, model)
        return keys
    return [_key(key, model) for key in keys]


def _key(value: Any, model: Any = None) -> Any:
    model = model or get_user_model()
    if isinstance(value, model):
        return value.pk
    if isinstance(value, (Model, bool, float)):
        raise TypeError(f"Expected a {model.__name__} or its key, not a {type(value).__name__}.")
    try:
        key = model._meta.pk.to_python(value)
        model._meta.pk.run_validators(key)
        model._meta.pk.get_db_prep_value(key, connection)
    except (ValidationError, ValueError):  # MySQL has no key 0
        raise model.DoesNotExist(f"There is no {model.__name__} with the key {value!r}.") from None
    return key


def _listed(keys: Iterable[Any], most: int = 5) -> str:
    keys = sorted(keys, key=str)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(map(str, keys[:most])) + more


def _unguarded() -> QuerySet:
    """Enrollment rows without the door that keeps everybody else from writing them."""
    return QuerySet(Enrollment)
