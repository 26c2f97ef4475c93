"""Which values an enrollment row gets.

A transition is a function from the current values of a row (None: there is no row) to its new
values (None: leave the row unchanged). Transitions read and write nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from django.db.models import Model

from enrollments.managers import COUNTED_STATUSES
from enrollments.models import Enrollment
from enrollments.results import CourseCompleted

Status = Enrollment.Status


class RowValues(NamedTuple):
    """The columns of an enrollment row that services write."""

    status: str
    enrollment_date: datetime
    withdrawal_date: datetime | None

    @property
    def is_counted(self) -> bool:
        return self.status in COUNTED_STATUSES


Transition = Callable[[RowValues | None], RowValues | None]


@dataclass(frozen=True, slots=True)
class Registration:
    """One student's row for `register_many()`. Dates are aware datetimes.

    With `overwrite_dates` the row gets exactly these dates. Without it, a row that already has
    this status keeps its dates. For any other row, a missing enrollment date is that of a counted
    row, and otherwise the current time; a missing withdrawal date is the current time.

    With `keep_completed`, a completed row stays completed if this registration is active: for
    systems that do not know which enrollments are completed.
    """

    student: Model | int
    enrollment_date: datetime | None
    withdrawal_date: datetime | None = None
    status: str = Status.ACTIVE
    overwrite_dates: bool = True
    keep_completed: bool = False


def activate(now: datetime) -> Transition:
    """Enroll students who are not counted."""
    active = RowValues(Status.ACTIVE, now, None)
    return lambda row: None if row is not None and row.is_counted else active


def withdraw(now: datetime) -> Transition:
    """Withdraw students who are counted."""
    return lambda row: _withdrawn(row, now) if row is not None and row.is_counted else None


def withdraw_active(now: datetime) -> Transition:
    """Withdraw active students only."""
    return lambda row: _withdrawn(row, now) if row and row.status == Status.ACTIVE else None


def withdraw_unless_completed(now: datetime) -> Transition:
    """Withdraw active students, and raise CourseCompleted for completed ones."""

    def transition(row: RowValues | None) -> RowValues | None:
        if row is not None and row.status == Status.COMPLETED:
            raise CourseCompleted("You have completed this course. It stays in your courses.")
        return withdraw_active(now)(row)

    return transition


def change_status(status: str, now: datetime) -> Transition:
    """Change the status of existing rows. Raises ValueError for an unknown status."""
    _validate_status(status)

    def transition(row: RowValues | None) -> RowValues | None:
        if row is None or row.status == status:
            return None
        if status == Status.WITHDRAWN:
            return _withdrawn(row, now)
        return RowValues(status, row.enrollment_date if row.is_counted else now, None)

    return transition


def register(registration: Registration, now: datetime) -> Transition:
    """Give a row the values of a registration.

    Raises ValueError if the status is unknown, or if status and dates contradict each other.
    """
    _validate_registration(registration)
    registration = replace(
        registration,
        enrollment_date=_in_utc(registration.enrollment_date),
        withdrawal_date=_in_utc(registration.withdrawal_date),
    )

    def transition(row: RowValues | None) -> RowValues | None:
        status = _registered_status(registration, row)
        if registration.overwrite_dates:
            assert registration.enrollment_date is not None  # validated above
            values = RowValues(status, registration.enrollment_date, registration.withdrawal_date)
            return None if row == values else values
        if row is not None and row.status == status:
            return None
        return _fill_dates(registration, row, now)

    return transition


def _withdrawn(row: RowValues, now: datetime) -> RowValues:
    return RowValues(Status.WITHDRAWN, row.enrollment_date, now)


def _in_utc(moment: datetime | None) -> datetime | None:
    # In one time zone, the two equal hours at the end of summer time compare as equal.
    return moment.astimezone(UTC) if moment and moment.tzinfo else moment


def _registered_status(registration: Registration, row: RowValues | None) -> str:
    is_completed = row is not None and row.status == Status.COMPLETED
    if registration.keep_completed and is_completed and registration.status == Status.ACTIVE:
        return Status.COMPLETED
    return registration.status


def _fill_dates(registration: Registration, row: RowValues | None, now: datetime) -> RowValues:
    kept_date = row.enrollment_date if row is not None and row.is_counted else None
    enrollment_date = registration.enrollment_date or kept_date or now
    is_withdrawn = registration.status == Status.WITHDRAWN
    withdrawal_date = (registration.withdrawal_date or now) if is_withdrawn else None
    return RowValues(registration.status, enrollment_date, withdrawal_date)


def _validate_registration(registration: Registration) -> None:
    _validate_status(registration.status)
    is_withdrawn = registration.status == Status.WITHDRAWN
    has_date = registration.withdrawal_date is not None
    if has_date and not is_withdrawn:
        raise ValueError(f"A registration that is {registration.status} has no withdrawal date.")
    if registration.overwrite_dates and is_withdrawn and not has_date:
        raise ValueError("A withdrawn registration needs a withdrawal date.")
    if registration.overwrite_dates and registration.enrollment_date is None:
        raise ValueError("A registration that overwrites dates needs an enrollment date.")


def _validate_status(status: str) -> None:
    if status not in Status.values:
        raise ValueError(f"{status!r} is not a status. Use one of: {', '.join(Status.values)}.")
