"""Registrations from a file: read line by line, registered through the bulk services."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.db import transaction

from courses.models import Course, Subject
from courses.transactions import in_transaction
from enrollments.services import BulkResult, Registration, register_many

# Lines read before their courses are written, each course in a transaction of its own.
WINDOW = 5_000

COLUMNS = (
    "code_module",
    "code_presentation",
    "id_student",
    "date_registration",
    "date_unregistration",
)
# The Open University's presentations begin in October (J) and in February (B).
_START_MONTHS = {"J": 10, "B": 2}


class UnreadableFile(Exception):
    """The file isn't what it should be. Nothing was written."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was passed over, and why."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"Line {self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Line:
    """One registration, as the file has it."""

    number: int
    subject: str
    course: str
    username: str
    enrollment_date: datetime
    withdrawal_date: datetime | None


@dataclass(slots=True)
class Summary:
    """What an import did, or would do. Numbers of lines, and of what was made for them."""

    lines: int = 0
    courses_made: int = 0
    students_made: int = 0
    created: int = 0
    taken_up: int = 0
    withdrawn: int = 0
    updated: int = 0
    unchanged: int = 0
    refused: int = 0
    bad: int = 0

    def add(self, result: BulkResult) -> None:
        for name in ("created", "taken_up", "withdrawn", "updated", "unchanged"):
            setattr(self, name, getattr(self, name) + getattr(result, name))
        self.refused += len(result.refused)


def read_registrations(*, path: Path, starts: Mapping[str, date]) -> Iterator[Line | BadLine]:
    """Yield the lines of an Open University `studentRegistration.csv`.

    `starts` gives the first day of presentations where it isn't October 1 or February 1.
    Raises UnreadableFile.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if missing := [name for name in COLUMNS if name not in header]:
                raise UnreadableFile(
                    f"{path} has no column {', '.join(missing)}: its first line must name "
                    f"{', '.join(COLUMNS)}."
                )
            first_lines: dict[tuple[str, str], int] = {}
            for values in rows:
                if values:
                    yield _line(rows.line_num, header, values, starts, first_lines)
    except OSError as error:
        raise UnreadableFile(f"{path} can't be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(f"{path} is no CSV file in UTF-8: {error}.") from error


def import_registrations(
    *,
    lines: Iterable[Line | BadLine],
    dry_run: bool = False,
    complain: Callable[[BadLine], object],
    looked_at: Callable[[int], object],
) -> Summary:
    """Register all good lines, making the courses and students that they need.

    Bad lines, and students for whom there is no seat, go to `complain` one by one, and
    change nothing for the others. `looked_at` is called with the number of lines done.
    With `dry_run` everything is done and rolled back, a course at a time.
    """
    summary = Summary()
    made_courses: set[str] = set()
    made_students: set[str] = set()
    lines = iter(lines)
    while window := list(islice(lines, WINDOW)):
        by_course: defaultdict[str, list[Line]] = defaultdict(list)
        for line in window:
            if isinstance(line, BadLine):
                summary.bad += 1
                complain(line)
            else:
                by_course[line.course].append(line)
        for name in sorted(by_course):
            written = _register(name, by_course[name], dry_run)
            summary.add(written.result)
            for bad in written.without_seat:
                complain(bad)
            if dry_run:
                # What is rolled back is made again for the next window.
                written.made_students -= made_students
                made_students |= written.made_students
                written.course_made &= name not in made_courses
                made_courses.add(name)
            summary.courses_made += written.course_made
            summary.students_made += len(written.made_students)
        summary.lines += len(window)
        looked_at(len(window))
    return summary


@dataclass(slots=True)
class _Written:
    result: BulkResult
    course_made: bool
    made_students: set[str] = field(default_factory=set)
    without_seat: list[BadLine] = field(default_factory=list)


@in_transaction
def _register(name: str, lines: list[Line], dry_run: bool) -> _Written:
    course, course_made = Course.objects.get_or_create(
        slug=name.lower(), defaults={"title": name, "subject": _subject(lines[0].subject)}
    )
    students, made_students = _students([line.username for line in lines])
    by_key = {students[line.username]: line for line in lines}
    result = register_many(
        course=course,
        registrations=[
            Registration(
                student=key,
                enrollment_date=line.enrollment_date,
                withdrawal_date=line.withdrawal_date,
                status="active" if line.withdrawal_date is None else "withdrawn",
            )
            for key, line in by_key.items()
        ],
    )
    without_seat = [
        BadLine(by_key[key].number, f"{name} is full, no seat for {by_key[key].username}")
        for key in result.refused
    ]
    if dry_run:
        transaction.set_rollback(True)
    return _Written(result, course_made, made_students, without_seat)


def _subject(name: str) -> Subject:
    return Subject.objects.get_or_create(slug=name.lower(), defaults={"name": name})[0]


def _students(usernames: list[str]) -> tuple[dict[str, int], set[str]]:
    """Return the keys of all by username, and the usernames that were made for it."""
    users = get_user_model()._default_manager
    known = users.filter(username__in=usernames).values_list("username", "pk")
    keys = dict(known)
    if missing := set(usernames) - keys.keys():
        users.bulk_create(
            [
                users.model(username=username, password=make_password(None))
                for username in sorted(missing)
            ],
            batch_size=1_000,
            # Another import may be making them as well.
            ignore_conflicts=True,
        )
        keys = dict(known.all())
    return keys, missing


def _line(
    number: int,
    header: list[str],
    values: list[str],
    starts: Mapping[str, date],
    first_lines: dict[tuple[str, str], int],
) -> Line | BadLine:
    try:
        if len(values) != len(header):
            raise ValueError(f"{len(values)} fields instead of {len(header)}")
        module, presentation, student, registered, unregistered = (
            _present(dict(zip(header, values, strict=True))[name]) for name in COLUMNS
        )
        if not re.fullmatch(r"\w{1,50}", module, re.ASCII):
            raise ValueError(f"code_module {module!r} is no module code")
        start = _start(presentation, starts)
        if not re.fullmatch(r"\d{1,20}", student, re.ASCII):
            raise ValueError(f"id_student {student!r} is no whole number")
        line = Line(
            number=number,
            subject=module,
            course=f"{module}-{presentation}",
            username=student,
            enrollment_date=_day(start, registered or "0", "date_registration"),
            withdrawal_date=(
                _day(start, unregistered, "date_unregistration") if unregistered else None
            ),
        )
        first = first_lines.setdefault((line.course, line.username), number)
        if first != number:
            raise ValueError(f"student {student} is in {line.course} by line {first} already")
    except ValueError as error:
        return BadLine(number, str(error))
    return line


def _present(value: str) -> str:
    value = value.strip()
    return "" if value == "?" else value


def _start(presentation: str, starts: Mapping[str, date]) -> datetime:
    if presentation in starts:
        day = starts[presentation]
    elif re.fullmatch(r"[12]\d{3}[BJ]", presentation, re.ASCII):
        day = date(int(presentation[:4]), _START_MONTHS[presentation[4]], 1)
    else:
        raise ValueError(
            f"code_presentation {presentation!r} has no known start: "
            "name it with --start PRESENTATION=YYYY-MM-DD"
        )
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _day(start: datetime, days: str, column: str) -> datetime:
    if not re.fullmatch(r"[+-]?\d{1,5}", days, re.ASCII):
        raise ValueError(f"{column} {days!r} is no number of days")
    return start + timedelta(days=int(days))
