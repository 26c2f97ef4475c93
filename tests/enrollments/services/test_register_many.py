from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import BulkResult, Registration, register_many
from tests.support.enrollments import MakeStudents, stored_count

FIRST_DAY = datetime(2014, 10, 1, tzinfo=UTC)
LATER = FIRST_DAY + timedelta(days=12)


def rows() -> list[tuple[str, datetime, datetime | None]]:
    """Return status, enrollment date and withdrawal date of all rows, ordered by student."""
    columns = ["status", "enrollment_date", "withdrawal_date"]
    return list(Enrollment.objects.order_by("student").values_list(*columns))


class TestOverwriteDates:
    """The default: every row becomes exactly what its registration says."""

    def test_inserts_rows_with_the_given_status_and_dates(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        first, second, third = make_students(3)
        registrations = [
            Registration(first, FIRST_DAY),
            Registration(second, FIRST_DAY, withdrawal_date=LATER, status="withdrawn"),
            Registration(third, LATER, status="completed"),
        ]
        assert register_many(course=course, registrations=registrations).created == 3
        assert rows() == [
            ("active", FIRST_DAY, None),
            ("withdrawn", FIRST_DAY, LATER),
            ("completed", LATER, None),
        ]
        assert stored_count(course) == 2
        assert register_many(course=course, registrations=registrations) == BulkResult(unchanged=3)

    def test_overwrites_existing_rows(self, course: Course, make_students: MakeStudents) -> None:
        first, second, third = make_students(3)
        register_many(
            course=course,
            registrations=[
                Registration(first, FIRST_DAY),
                Registration(second, FIRST_DAY, withdrawal_date=LATER, status="withdrawn"),
                Registration(third, LATER, status="completed"),
            ],
        )
        result = register_many(
            course=course,
            registrations=[
                Registration(first, LATER),
                Registration(second, FIRST_DAY),
                Registration(third, FIRST_DAY, withdrawal_date=LATER, status="withdrawn"),
            ],
        )
        assert result == BulkResult(updated=1, reenrolled=1, withdrawn=1)
        assert rows() == [
            ("active", LATER, None),
            ("active", FIRST_DAY, None),
            ("withdrawn", FIRST_DAY, LATER),
        ]

    def test_the_repeated_hour_at_the_end_of_summer_time_is_two_hours(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        # Python compares two times of one zone without `fold`, and calls them equal.
        first = datetime(2025, 10, 26, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
        second = first.replace(fold=1)
        registrations = [
            Registration(student, date)
            for student, date in zip(make_students(2), (first, second), strict=True)
        ]
        assert register_many(course=course, registrations=registrations).created == 2
        utc = datetime(2025, 10, 26, 0, 30, tzinfo=UTC)
        assert [row[1] for row in rows()] == [utc, utc + timedelta(hours=1)]
        assert register_many(course=course, registrations=registrations) == BulkResult(unchanged=2)

    def test_the_last_registration_of_a_student_wins(self, course: Course, student: User) -> None:
        registrations = [
            Registration(student, FIRST_DAY),
            Registration(student, LATER, status="completed"),
        ]
        assert register_many(course=course, registrations=registrations) == BulkResult(created=1)
        assert rows() == [("completed", LATER, None)]


class TestKeepCompleted:
    """keep_completed=True: an active registration leaves a completed row completed."""

    @pytest.mark.parametrize("overwrite_dates", [True, False])
    def test_only_the_status_of_completed_rows_is_kept(
        self, course: Course, make_students: MakeStudents, overwrite_dates: bool
    ) -> None:
        students = make_students(3)
        registrations = [
            Registration(students[0], FIRST_DAY, status="completed"),
            Registration(students[1], FIRST_DAY, withdrawal_date=LATER, status="withdrawn"),
        ]
        register_many(course=course, registrations=registrations)

        def register(**values: Any) -> BulkResult:
            values = {"overwrite_dates": overwrite_dates, "keep_completed": True} | values
            registrations = [Registration(student, LATER, **values) for student in students]
            return register_many(course=course, registrations=registrations)

        dates_changed = int(overwrite_dates)
        result = register()
        assert result == BulkResult(
            created=1, reenrolled=1, updated=dates_changed, unchanged=1 - dates_changed
        )
        assert rows() == [
            ("completed", LATER if overwrite_dates else FIRST_DAY, None),
            ("active", LATER, None),
            ("active", LATER, None),
        ]
        assert register() == BulkResult(unchanged=3)
        assert register(status="withdrawn", withdrawal_date=LATER).withdrawn == 3
        assert register(keep_completed=False, status="completed").reenrolled == 3
        assert register(keep_completed=False).updated == 3


class TestKeepDates:
    """overwrite_dates=False: a missing date is the row's own, or now."""

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> datetime:
        now = timezone.now()
        monkeypatch.setattr(timezone, "now", lambda: now)
        return now

    @pytest.fixture
    def students(self, course: Course, make_students: MakeStudents) -> list[User]:
        """An enrolled student, a withdrawn one and one without a row."""
        enrolled, withdrawn, new = make_students(3)
        register_many(
            course=course,
            registrations=[
                Registration(enrolled, FIRST_DAY),
                Registration(withdrawn, FIRST_DAY, withdrawal_date=LATER, status="withdrawn"),
            ],
        )
        return [enrolled, withdrawn, new]

    def test_a_withdrawn_row_keeps_its_dates(
        self, course: Course, students: list[User], now: datetime
    ) -> None:
        result = register(course, students, status="withdrawn")
        assert result == BulkResult(withdrawn=1, created=1, unchanged=1)
        withdrawn_rows = [
            ("withdrawn", FIRST_DAY, now),
            ("withdrawn", FIRST_DAY, LATER),
            ("withdrawn", now, now),
        ]
        assert rows() == withdrawn_rows
        result = register(course, students, status="withdrawn", enrollment_date=LATER)
        assert result == BulkResult(unchanged=3)
        assert rows() == withdrawn_rows

    def test_a_reenrolled_row_starts_now(
        self, course: Course, students: list[User], now: datetime
    ) -> None:
        register(course, students, status="withdrawn")
        assert register(course, students, status="active") == BulkResult(reenrolled=3)
        assert rows() == [("active", now, None)] * 3

    def test_a_given_date_is_written_if_the_status_changes(
        self, course: Course, students: list[User], now: datetime
    ) -> None:
        register(course, students, status="active")
        result = register(course, students, status="completed", enrollment_date=FIRST_DAY)
        assert result == BulkResult(updated=3)
        assert rows() == [("completed", FIRST_DAY, None)] * 3

    def test_a_counted_row_keeps_its_date_if_the_status_changes(
        self, course: Course, students: list[User], now: datetime
    ) -> None:
        register(course, students, status="completed", enrollment_date=FIRST_DAY)
        assert register(course, students, status="active") == BulkResult(updated=3)
        assert rows() == [("active", FIRST_DAY, None)] * 3


def register(
    course: Course, students: list[User], *, status: str, enrollment_date: datetime | None = None
) -> BulkResult:
    registrations = [
        Registration(student, enrollment_date, status=status, overwrite_dates=False)
        for student in students
    ]
    return register_many(course=course, registrations=registrations)


class TestInvalidRegistration:
    @pytest.mark.parametrize(
        ("status", "withdrawal_date", "message"),
        [
            ("withdrawn", None, "withdrawal date"),
            ("active", FIRST_DAY, "withdrawal date"),
            ("asleep", None, "asleep"),
        ],
        ids=["withdrawn without a date", "active with a withdrawal date", "unknown status"],
    )
    def test_raises_value_error(
        self,
        course: Course,
        student: User,
        status: str,
        withdrawal_date: datetime | None,
        message: str,
    ) -> None:
        registration = Registration(
            student, FIRST_DAY, withdrawal_date=withdrawal_date, status=status
        )
        with pytest.raises(ValueError, match=message):
            register_many(course=course, registrations=[registration])

    def test_overwriting_dates_needs_an_enrollment_date(
        self, course: Course, student: User
    ) -> None:
        with pytest.raises(ValueError, match="enrollment date"):
            register_many(course=course, registrations=[Registration(student, None)])
