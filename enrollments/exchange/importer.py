"""Importing files of any size through the bulk services, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.db import transaction

from courses.models import Course, Subject
from courses.transactions import retry_transaction
from enrollments.exchange.reader import EnrollmentFile, ParsedRow, RejectedRow, SkippedRow
from enrollments.exchange.staging import StagingTable
from enrollments.history import Origin, Source
from enrollments.rows import CHUNK_SIZE
from enrollments.services import Outcome, Registration, register_many


@dataclass(slots=True)
class ImportSummary:
    """What an import did, or would do. Each of `rows` has one outcome."""

    rows: int = 0
    created: int = 0
    reenrolled: int = 0
    withdrawn: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0  # not about a student
    rejected: int = 0
    courses_created: int = 0
    students_created: int = 0

    def count(self, outcome: Outcome) -> None:
        setattr(self, outcome, getattr(self, outcome) + 1)


def import_file(
    *,
    file: EnrollmentFile,
    on_reject: Callable[[RejectedRow], object],
    actor: str = "",
    dry_run: bool = False,
    existing_only: bool = False,
    on_total: Callable[[int], object] = lambda rows: None,
    on_progress: Callable[[int], object] = lambda rows: None,
) -> ImportSummary:
    """Import all valid rows, and create the courses and students that they need.

    The whole file is read before anything is written. Then each transaction registers up to
    CHUNK_SIZE students of one course. Withdrawals are applied before enrollments. Apart from
    that, seats are taken in the order of the file. Enrollments absent from the file are
    unchanged. Committed chunks survive an interruption: run the import again to finish.

    `dry_run` rolls back each transaction. `existing_only` rejects rows whose course or student
    does not exist. `actor` is recorded in the history. `on_reject` gets each rejected row,
    `on_total` the number of rows to import, and `on_progress` the number just imported.
    Raises UnreadableFile; nothing was written then.
    """
    summary = ImportSummary()
    options = _Options(
        origin=Origin(Source.IMPORT, actor),
        overwrite_dates=file.format.overwrite_dates,
        existing_only=existing_only,
        dry_run=dry_run,
    )

    def reject(row: RejectedRow) -> None:
        summary.rejected += 1
        on_reject(row)

    with closing(StagingTable()) as staging:
        remaining = staging.add(_parsed_rows(file, summary, reject))
        on_total(remaining)
        for chunk, result in _register_rows(staging.effective_rows(), options):
            for row in chunk:
                if reason := result.rejections.get(row.record.username):
                    reject(RejectedRow(row.line_number, reason, row.values))
                else:
                    summary.count(result.outcomes[row.record.username])
            staging.record_created(result.created)
            remaining -= len(chunk)
            on_progress(len(chunk))
        summary.courses_created = staging.count_created("course")
        summary.students_created = staging.count_created("student")
    # Of the rows that were not effective, none changed anything.
    summary.unchanged += remaining
    on_progress(remaining)
    return summary


@dataclass(frozen=True, slots=True)
class _Options:
    origin: Origin
    overwrite_dates: bool
    existing_only: bool
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _ChunkResult:
    """The result of one transaction. Students are identified by their usernames."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    rejections: dict[str, str] = field(default_factory=dict)  # the reasons by student
    created: set[tuple[str, str]] = field(default_factory=set)  # ("student", username), …
    # By how much a dry run has changed the counter of the course in all chunks so far.
    simulated_change: int = 0


def _parsed_rows(
    file: EnrollmentFile, summary: ImportSummary, reject: Callable[[RejectedRow], None]
) -> Iterator[ParsedRow]:
    for row in file:
        summary.rows += 1
        match row:
            case ParsedRow():
                yield row
            case SkippedRow():
                summary.skipped += 1
            case RejectedRow():
                reject(row)


def _register_rows(
    rows: Iterable[ParsedRow], options: _Options
) -> Iterator[tuple[list[ParsedRow], _ChunkResult]]:
    for _, course_rows in groupby(rows, key=attrgetter("slug")):
        result = _ChunkResult()
        while chunk := list(islice(course_rows, CHUNK_SIZE)):
            result = _register_chunk(chunk, options, simulated_change=result.simulated_change)
            yield chunk, result


def _is_own_result(unconfirmed: _ChunkResult, current: _ChunkResult) -> bool:
    """Return whether the unconfirmed attempt was committed, so that nothing was left to do."""
    return {*current.outcomes.values()} <= {Outcome.UNCHANGED, Outcome.REJECTED}


@retry_transaction(is_own_result=_is_own_result)
def _register_chunk(
    rows: list[ParsedRow], options: _Options, *, simulated_change: int
) -> _ChunkResult:
    """Register students in one course, in one transaction.

    A dry run rolls back. Its result has a new `simulated_change`, which must be passed with the
    next chunk of the course: seats that this chunk would take are then taken.
    """
    usernames = [row.record.username for row in rows]
    try:
        course, is_new_course = _get_or_create_course(rows[0], options)
    except _NoCourse as error:
        return _ChunkResult(rejections=dict.fromkeys(usernames, str(error)))
    students, created_students = _get_or_create_students(usernames, options)
    created = {("student", username) for username in created_students}
    if is_new_course:
        created.add(("course", course.slug))
    if options.dry_run:
        stored_count = _simulate_taken_seats(course, simulated_change)
    outcomes = _register_students(course, students, rows, options)
    if options.dry_run:
        course.refresh_from_db(fields=["total_enrollments"])
        simulated_change = course.total_enrollments - stored_count
        transaction.set_rollback(True)
    return _ChunkResult(
        outcomes=outcomes,
        rejections={
            row.record.username: _rejection_reason(row, students, options)
            for row in rows
            if outcomes.get(row.record.username, Outcome.REJECTED) is Outcome.REJECTED
        },
        created=created,
        simulated_change=simulated_change,
    )


class _NoCourse(Exception):
    """The course of a row does not exist and must not be created. The message is the reason."""


def _get_or_create_course(row: ParsedRow, options: _Options) -> tuple[Course, bool]:
    """Return the course of a row and whether it was created. Raises _NoCourse."""
    course_id, slug = row.record.course_id, row.slug
    # MariaDB's comparison ignores case and accents. Existing slugs may contain capital letters.
    similar = list(Course.objects.filter(slug__in={slug, course_id}))
    for course in sorted(similar, key=lambda course: course.slug != slug):
        if course.slug.lower() == slug:
            return course, False
    if similar:
        raise _NoCourse(
            f"course {course_id} differs only in accents from the course “{similar[0].title}” "
            f"(slug {similar[0].slug})"
        )
    if options.existing_only:
        raise _NoCourse(f"course {course_id} does not exist (slug {slug})")
    subject = row.record.subject
    defaults = {"title": course_id, "subject": lambda: _get_or_create_subject(subject)}
    return Course.objects.get_or_create(slug=slug, defaults=defaults)


def _get_or_create_subject(name: str) -> Subject | None:
    if not name:
        return None
    # Both the name and the slug are unique, and an existing subject may have another slug.
    existing = Subject.objects.filter(name=name).first()
    return existing or Subject.objects.get_or_create(slug=name.lower(), defaults={"name": name})[0]


def _get_or_create_students(
    usernames: list[str], options: _Options
) -> tuple[dict[str, Any], set[str]]:
    """Return the primary keys of users by their exact names, and the names that were created.

    Names are missing if they may not be created, or if this database takes them for the name of
    another user.
    """
    existing = _user_keys(usernames)
    missing = {*usernames} - existing.keys()
    if not missing or options.existing_only:
        return existing, set()
    users = get_user_model()._default_manager
    users.bulk_create(
        [users.model(username=name, password=make_password(None)) for name in sorted(missing)],
        # Another import may be creating the same users.
        ignore_conflicts=True,
    )
    created = _user_keys(missing)
    return existing | created, set(created)


def _user_keys(usernames: Iterable[str]) -> dict[str, Any]:
    wanted = set(usernames)
    users = get_user_model()._default_manager.filter(username__in=wanted)
    # MariaDB also finds names that differ in case or accents.
    return {name: key for name, key in users.values_list("username", "pk") if name in wanted}


def _simulate_taken_seats(course: Course, change: int) -> int:
    """Add the change of rolled-back chunks to the counter, and return the stored count."""
    stored_count = Course.objects.select_for_update().get(pk=course.pk).total_enrollments
    simulated_count = max(0, stored_count + change)
    Course.objects.filter(pk=course.pk).update(total_enrollments=simulated_count)
    return stored_count


def _register_students(
    course: Course, students: dict[str, Any], rows: list[ParsedRow], options: _Options
) -> dict[str, Outcome]:
    """Return the outcomes of those who are in `students`, by username."""
    result = register_many(
        course=course,
        registrations=[
            Registration(
                student=students[row.record.username],
                enrollment_date=row.record.enrollment_date,
                withdrawal_date=row.record.withdrawal_date,
                status=row.record.status,
                overwrite_dates=options.overwrite_dates,
            )
            for row in rows
            if row.record.username in students
        ],
        outcomes=True,
        origin=options.origin,
    )
    assert result.outcomes is not None  # because outcomes=True
    return {username: result.outcomes[key] for username, key in students.items()}


def _rejection_reason(row: ParsedRow, students: dict[str, Any], options: _Options) -> str:
    username = row.record.username
    if username in students:
        return f"{row.record.course_id} is full, no seat for {username}"
    if options.existing_only:
        return f"user {username} does not exist"
    return f"user {username} differs only in case or accents from an existing user"
