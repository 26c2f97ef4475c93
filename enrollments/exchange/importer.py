"""Files of any size, brought in through the bulk services, in bounded memory."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, islice
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.db import transaction

from courses.models import Course, Subject
from courses.transactions import retry_transaction
from enrollments.exchange.reader import EnrollmentFile, PassedOver, Refused, Row
from enrollments.history import Origin, Source
from enrollments.rows import CHUNK_SIZE
from enrollments.services import Outcome, Registration, register_many


@dataclass(slots=True)
class Summary:
    """What an import did, or would do. Every row has one outcome: they add up to `rows`."""

    rows: int = 0
    created: int = 0
    reenrolled: int = 0
    withdrawn: int = 0
    updated: int = 0
    unchanged: int = 0
    passed_over: int = 0  # about others than students
    rejected: int = 0
    courses_made: int = 0
    students_made: int = 0

    def count(self, outcome: Outcome) -> None:
        setattr(self, outcome, getattr(self, outcome) + 1)


def import_file(
    *,
    file: EnrollmentFile,
    refuse: Callable[[Refused], object],
    actor: str = "",
    dry_run: bool = False,
    existing_only: bool = False,
    expect: Callable[[int], object] = lambda rows: None,
    on_progress: Callable[[int], object] = lambda rows: None,
) -> Summary:
    """Bring in all rows that can be, making the courses and students that they need.

    Reads to the end before it writes. Then up to CHUNK_SIZE students of one course are a
    transaction: who leaves comes before who enters, else the order is the file's. Where a
    student has several rows in a course, it counts if one of them does. What is committed
    when it breaks off stays, and the next run does the rest. What the file lacks is left
    alone. Refused rows go to `refuse`, and change nothing for others.

    With `dry_run` each transaction is rolled back. With `existing_only` rows are refused that
    name a course or a student that isn't there. `actor` is who does it, for the history.
    `expect` is called with the number of good rows, once it is known; `on_progress` with the
    number done. Raises UnreadableFile, and then nothing was written.
    """
    summary, origin = Summary(), Origin(Source.IMPORT, actor)
    with closing(_Spool()) as spool:
        total = spool.fill(_good_rows(file, summary, refuse))
        for repeated in spool.without_repeated(file):
            summary.rejected += 1
            total -= 1
            refuse(repeated)
        expect(total)
        for _, rows in groupby(spool.deciding_rows(), key=lambda row: row.course):
            course_made, moved = False, 0
            for chunk in _chunks(rows):
                done = _register(
                    chunk, file.format.overwrite_dates, existing_only, dry_run, moved, origin
                )
                for row in chunk:
                    summary.count(done.outcomes[row.student])
                    if reason := done.reasons.get(row.student):
                        refuse(Refused(row.number, reason, row.values))
                course_made, moved = course_made or done.course_made, done.moved
                spool.remember(done.students_made)
                total -= len(chunk)
                on_progress(len(chunk))
            summary.courses_made += course_made
        summary.students_made = spool.number_remembered()
    # The other rows of students whose deciding row is done.
    summary.unchanged += total
    on_progress(total)
    return summary


def _good_rows(
    file: EnrollmentFile, summary: Summary, refuse: Callable[[Refused], object]
) -> Iterator[Row]:
    for row in file:
        summary.rows += 1
        if isinstance(row, Row):
            yield row
        elif isinstance(row, PassedOver):
            summary.passed_over += 1
        else:
            summary.rejected += 1
            refuse(row)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK_SIZE)):
        yield chunk


class _Spool:
    """The rows of a file, in a temporary database on disk, in the order in which they go in."""

    def __init__(self) -> None:
        # The empty name: SQLite's own temporary file, gone with the connection.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(
            """
            PRAGMA journal_mode = OFF;
            CREATE TABLE line (
                number INTEGER PRIMARY KEY, vals TEXT, course TEXT, title TEXT, subject TEXT,
                student TEXT, part TEXT, status TEXT, began TEXT, ended TEXT
            );
            CREATE TABLE made (student TEXT PRIMARY KEY) WITHOUT ROWID;
            """
        )

    def close(self) -> None:
        self._db.close()

    def fill(self, rows: Iterable[Row]) -> int:
        """Take all rows, and return their number."""
        self._db.execute("BEGIN")
        filled = self._db.executemany(
            f"INSERT INTO line VALUES ({', '.join('?' * len(Row._fields))})",
            map(_as_values, rows),
        )
        self._db.execute("COMMIT")
        return filled.rowcount

    def without_repeated(self, file: EnrollmentFile) -> Iterator[Refused]:
        """Take out the rows whose part an earlier row has already, and yield them."""
        if (reason := file.format.repeated) is None:
            return
        # What rows of the same part must agree in.
        agreeing = [] if file.format.refuses_equals else ["course", "student", "status"]
        same = " AND ".join(f"{name} = FIRST_VALUE({name}) OVER part" for name in agreeing)
        self._db.execute(
            f"""
            CREATE TEMPORARY TABLE repeated AS SELECT number, first FROM (
                SELECT number, FIRST_VALUE(number) OVER part AS first, {same or "0"} AS same
                FROM line WINDOW part AS (PARTITION BY part ORDER BY number)
            ) WHERE number > first AND NOT same
            """
        )
        found = self._db.execute(
            "SELECT line.*, first FROM line NATURAL JOIN repeated ORDER BY number"
        )
        for *values, first in found:
            row = _as_row(values)
            yield Refused(row.number, reason(row, first), row.values)
        self._db.execute("DELETE FROM line WHERE number IN (SELECT number FROM repeated)")

    def deciding_rows(self) -> Iterator[Row]:
        """Yield one row for each student of each course, a course after the other.

        Of rows of the same part it is the last, of those the one that counts most. Who
        leaves comes first: their seats are free then, in this run and not in the next.
        """
        yield from map(
            _as_row,
            self._db.execute(
                """
            WITH last AS (
                SELECT
                    number, course, student, status,
                    ROW_NUMBER() OVER (PARTITION BY part ORDER BY number DESC) AS back,
                    MIN(number) OVER (PARTITION BY course, student) AS place
                FROM line
            ), best AS (
                -- active, completed, withdrawn: as the alphabet has them
                SELECT number, course, place, status = 'withdrawn' AS leaves, ROW_NUMBER() OVER (
                    PARTITION BY course, student ORDER BY status, number
                ) AS nth
                FROM last WHERE back = 1
            )
            SELECT line.* FROM best JOIN line USING (number) WHERE nth = 1
            ORDER BY best.course, leaves DESC, place
            """
            ),
        )

    def remember(self, students: Iterable[str]) -> None:
        self._db.executemany("INSERT OR IGNORE INTO made VALUES (?)", zip(students))

    def number_remembered(self) -> int:
        """Return the number of different students. A dry run makes them once a course."""
        ((number,),) = self._db.execute("SELECT COUNT(*) FROM made")
        return number


def _as_values(row: Row) -> list[Any]:
    number, values, *others, began, ended = row
    dates = (moment and moment.isoformat() for moment in (began, ended))
    return [number, json.dumps(values), *others, *dates]


def _as_row(values: Sequence[Any]) -> Row:
    number, fields, *others, began, ended = values
    dates = (moment and datetime.fromisoformat(moment) for moment in (began, ended))
    return Row(number, json.loads(fields), *others, *dates)


class _Done(NamedTuple):
    """What became of the students of one chunk."""

    outcomes: dict[str, Outcome]
    reasons: dict[str, str]  # of those who are refused
    students_made: set[str]
    course_made: bool
    moved: int  # the counter, by all that was rolled back

    @property
    def changed_nothing(self) -> bool:
        return {*self.outcomes.values()} <= {Outcome.UNCHANGED, Outcome.REJECTED}


class _NoCourse(Exception):
    """There is no course to register students in; the message says why."""


@retry_transaction(is_own_result=lambda earlier, now: now.changed_nothing)
def _register(
    rows: list[Row],
    overwrite_dates: bool,
    existing_only: bool,
    dry_run: bool,
    moved: int,
    origin: Origin,
) -> _Done:
    """Register students of one course. `moved` is by how much its counter would be, had those
    before them not been rolled back."""
    try:
        course, course_made = _course(rows[0], existing_only)
    except _NoCourse as error:
        names = [row.student for row in rows]
        refused = dict.fromkeys(names, Outcome.REJECTED)
        return _Done(refused, dict.fromkeys(names, str(error)), set(), False, moved)
    students, students_made = _students([row.student for row in rows], existing_only)
    if dry_run:
        before = _seats_as_taken(course, moved)
    outcomes = register_many(
        course=course,
        registrations=[
            Registration(
                student=students[row.student],
                enrollment_date=row.enrollment_date,
                withdrawal_date=row.withdrawal_date,
                status=row.status,
                overwrite_dates=overwrite_dates,
            )
            for row in rows
            if row.student in students
        ],
        outcomes=True,
        origin=origin,
    ).outcomes
    assert outcomes is not None  # they were asked for
    if dry_run:
        moved = Course.objects.values_list("total_enrollments", flat=True).get(pk=course.pk)
        moved -= before
        transaction.set_rollback(True)
    by_name = {
        row.student: outcomes.get(students.get(row.student), Outcome.REJECTED) for row in rows
    }
    nobody = "there is no user {}" if existing_only else _SPELLED_OTHERWISE
    reasons = {
        name: f"{rows[0].title} is full, no seat for {name}"
        if name in students
        else nobody.format(name)
        for name, outcome in by_name.items()
        if outcome is Outcome.REJECTED
    }
    return _Done(by_name, reasons, students_made, course_made, moved)


# The database's own idea of what is equal: on MariaDB 'anna' is 'ANNA', and 'Jose' 'José'.
_SPELLED_OTHERWISE = (
    "{} can't be told from another user, whose name differs in case or accents only"
)


def _course(row: Row, existing_only: bool) -> tuple[Course, bool]:
    """Return the course of a row, and whether it was made. Raises _NoCourse."""
    alike = list(Course.objects.filter(slug__in={row.course, row.title}))
    # Ids differ in more than case; slugs that somebody wrote may have capital letters.
    for course in sorted(alike, key=lambda course: course.slug != row.course):
        if course.slug.lower() == row.course:
            return course, False
    if alike:
        raise _NoCourse(
            f"{row.title} can't be told from the course “{alike[0].title}”, whose slug "
            f"{alike[0].slug} differs in accents only"
        )
    if existing_only:
        raise _NoCourse(f"there is no course {row.title}, with the slug {row.course}")
    defaults = {"title": row.title, "subject": lambda: _subject(row.subject)}
    return Course.objects.get_or_create(slug=row.course, defaults=defaults)


def _subject(name: str) -> Subject | None:
    if not name:
        return None
    # Both name and slug are unique, and the subject may have another slug.
    there = Subject.objects.filter(name=name).first()
    return there or Subject.objects.get_or_create(slug=name.lower(), defaults={"name": name})[0]


def _seats_as_taken(course: Course, moved: int) -> int:
    """Move a course's counter as those would have who were rolled back; return what it was."""
    locked = Course.objects.select_for_update().filter(pk=course.pk)
    before = locked.values_list("total_enrollments", flat=True).get()
    Course.objects.filter(pk=course.pk).update(total_enrollments=max(0, before + moved))
    return before


def _students(usernames: list[str], existing_only: bool) -> tuple[dict[str, Any], set[str]]:
    """Return the keys of users by their exact names, and the names that were made.

    Those that are missing then can't be told from somebody else in this database.
    """
    wanted = set(usernames)
    found = _keys_of(wanted)
    missing = wanted - found.keys()
    if not missing or existing_only:
        return found, set()
    users = get_user_model()._default_manager
    users.bulk_create(
        [users.model(username=name, password=make_password(None)) for name in sorted(missing)],
        # Another import may be making them as well.
        ignore_conflicts=True,
    )
    made = _keys_of(missing)
    return found | made, set(made)


def _keys_of(usernames: set[str]) -> dict[str, Any]:
    users = get_user_model()._default_manager
    alike = users.filter(username__in=usernames).values_list("username", "pk")
    return {name: key for name, key in alike if name in usernames}
