"""Registrations from a file: read line by line, registered through the bulk services."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.db import transaction

from courses.models import Course, Subject
from courses.transactions import in_transaction
from enrollments.services import BulkResult, Registration, register_many

# What a value looks like, and what it then is.
_FORMS = {
    "code_module": (r"\w{1,50}", "module code"),
    "code_presentation": (r"\w{1,50}", "presentation code"),
    "id_student": (r"\d{1,20}", "whole number"),
    "date_registration": (r"([+-]?\d{1,5})?", "number of days"),
    "date_unregistration": (r"([+-]?\d{1,5})?", "number of days"),
}
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

    @property
    def slug(self) -> str:
        return self.course.lower()


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
    number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if any(header.count(name) != 1 for name in _FORMS):
                raise UnreadableFile(
                    f"{path} has other columns: its first line must name each of "
                    f"{', '.join(_FORMS)} once."
                )
            first_lines: dict[tuple[str, str], int] = {}
            number = rows.line_num + 1
            for values in rows:
                if values:
                    yield _line(number, header, values, starts, first_lines)
                number = rows.line_num + 1
    except OSError as error:
        raise UnreadableFile(f"{path} can't be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(
            f"{path} is no CSV file in UTF-8 from line {number} on: {error}."
        ) from error


def import_registrations(
    *,
    lines: Iterable[Line | BadLine],
    dry_run: bool = False,
    complain: Callable[[BadLine], object],
    looked_at: Callable[[int], object],
) -> Summary:
    """Register all good lines, making the courses and students that they need.

    Reads to the end before it writes; then each course is a transaction of its own. Bad
    lines, and students for whom there is no seat, go to `complain` one by one, and change
    nothing for the others. `looked_at` is called with the number of lines done.
    With `dry_run` everything is done and rolled back, a course at a time.
    """
    summary = Summary()
    by_course: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        summary.lines += 1
        if isinstance(line, BadLine):
            summary.bad += 1
            complain(line)
        else:
            by_course[line.slug].append(line)
    looked_at(summary.bad)
    # A dry run makes a student again for each of their courses.
    made_students: set[str] = set()
    for _, group in sorted(by_course.items()):
        written = _register(group, dry_run)
        summary.add(written.result)
        summary.courses_made += written.course_made
        made_students |= written.made_students
        for bad in written.without_seat:
            complain(bad)
        looked_at(len(group))
    summary.students_made = len(made_students)
    return summary


@dataclass(frozen=True, slots=True)
class _Written:
    result: BulkResult
    course_made: bool
    made_students: set[str]
    without_seat: list[BadLine]


def _register_now(lines: list[Line], dry_run: bool) -> _Written:
    """Register the lines of one course."""
    any_line = lines[0]
    course, course_made = Course.objects.get_or_create(
        slug=any_line.slug,
        defaults={"title": any_line.course, "subject": lambda: _subject(any_line.subject)},
    )
    students, made_students = _students([line.username for line in lines])
    # Who left comes first: their seats are free then, in this run and not in the next.
    by_key = {
        students[line.username]: line
        for line in sorted(lines, key=lambda line: line.withdrawal_date is None)
    }
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
        BadLine(
            by_key[key].number, f"{any_line.course} is full, no seat for {by_key[key].username}"
        )
        for key in result.refused
    ]
    if dry_run:
        transaction.set_rollback(True)
    return _Written(result, course_made, made_students, without_seat)


_register = in_transaction(_register_now, is_own_doing=lambda earlier, now: not now.result.changed)


def _subject(name: str) -> Subject:
    # Both name and slug are unique, and the subject may have another slug.
    there = Subject.objects.filter(name=name).first()
    return there or Subject.objects.get_or_create(slug=name.lower(), defaults={"name": name})[0]


def _students(usernames: list[str]) -> tuple[dict[str, int], set[str]]:
    """Return the keys of all by username, and the usernames that were made for it."""
    users = get_user_model()._default_manager
    known = users.only("username")
    found = known.in_bulk(usernames, field_name="username")
    if missing := set(usernames) - found.keys():
        users.bulk_create(
            [
                users.model(username=username, password=make_password(None))
                for username in sorted(missing)
            ],
            batch_size=1_000,
            # Another import may be making them as well.
            ignore_conflicts=True,
        )
        found |= known.in_bulk(missing, field_name="username")
    return {username: user.pk for username, user in found.items()}, missing


def _line(
    number: int,
    header: list[str],
    values: list[str],
    starts: Mapping[str, date],
    first_lines: dict[tuple[str, str], int],
) -> Line | BadLine:
    try:
        if len(values) != len(header):
            raise ValueError(f"the number of fields is {len(values)} instead of {len(header)}")
        given = dict(zip(header, map(_present, values), strict=True))
        for name, (form, what) in _FORMS.items():
            if not re.fullmatch(form, given[name], re.ASCII):
                raise ValueError(f"{name} {given[name]!r:.80} is no {what}")
        module, presentation, student, registered, unregistered = (given[name] for name in _FORMS)
        start = _start(presentation, starts)
        line = Line(
            number=number,
            subject=module,
            course=f"{module}-{presentation}",
            username=student,
            enrollment_date=start + timedelta(days=int(registered or 0)),
            withdrawal_date=start + timedelta(days=int(unregistered)) if unregistered else None,
        )
        first = first_lines.setdefault((line.slug, student), number)
        if first != number:
            raise ValueError(f"student {student} is in {line.course} by line {first} already")
    except OverflowError:
        return BadLine(number, "a date is not within the years 1 to 9999")
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
