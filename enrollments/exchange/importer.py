"""Importing files of any size through the bulk services, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.exceptions import ObjectDoesNotExist
from django.db import DEFAULT_DB_ALIAS, IntegrityError, transaction
from django.db.models import Q

from courses.models import Course
from courses.transactions import retry_transaction
from enrollments.exchange.base import EnrollmentRecord, Format, make_slug
from enrollments.exchange.reader import EnrollmentFile, ParsedRow, RejectedRow, SkippedRow
from enrollments.exchange.staging import StagingTable
from enrollments.history import Origin, Source
from enrollments.models import SelfRegistration
from enrollments.rows import CHUNK_SIZE
from enrollments.services import Outcome, Registration, register_many

# Attempts at one chunk whose course or students others create or delete at the same time.
MAX_ATTEMPTS = 5


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
    allow_self_registered: bool = False,
    on_total: Callable[[int], object] = lambda rows: None,
    on_progress: Callable[[int], object] = lambda rows: None,
) -> ImportSummary:
    """Import all valid rows, and create the courses and students that they need.

    The whole file is read before anything is written. Then each transaction registers up to
    CHUNK_SIZE students of one course. Withdrawals are applied before enrollments. Apart from
    that, seats are taken in the order of the file. Enrollments absent from the file are
    unchanged. Committed chunks survive an interruption: run the import again to finish.

    `dry_run` puts all chunks of a course into one transaction, and rolls it back.
    `existing_only` rejects rows whose course or student does not exist. Rows of students who
    signed up themselves are rejected, unless `allow_self_registered` is true. `actor` is recorded
    in the history. `on_reject` gets each rejected row, `on_total` the number of rows to import, and
    `on_progress` the number just imported.
    """
    summary = ImportSummary()
    options = _Options(
        Origin(Source.IMPORT, actor),
        file.format,
        existing_only,
        allow_self_registered,
    )

    def reject(row: RejectedRow) -> None:
        summary.rejected += 1
        on_reject(row)

    def count(rows: list[ParsedRow], result: _ChunkResult) -> None:
        summary.courses_created += result.is_new_course
        for row in rows:
            if reason := result.rejections.get(row.record.username):
                reject(RejectedRow(row.line_number, reason, row.values))
            else:
                summary.count(result.outcomes[row.record.username])

    with closing(StagingTable()) as staging:
        remaining = staging.add(_parsed_rows(file, summary, reject))
        on_total(remaining)
        for _, rows in groupby(staging.effective_rows(), key=attrgetter("record.course_key")):
            with _rolled_back() if dry_run else nullcontext():
                while chunk := list(islice(rows, CHUNK_SIZE)):
                    result = _register_or_reject(chunk, options)
                    count(chunk, result)
                    staging.record_new_students(result.new_students)
                    remaining -= len(chunk)
                    on_progress(len(chunk))
        summary.students_created = staging.count_new_students()
    # Of the rows that were not effective, none changed anything.
    summary.unchanged += remaining
    on_progress(remaining)
    return summary


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


@contextmanager
def _rolled_back() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@dataclass(frozen=True, slots=True)
class _Options:
    origin: Origin
    format: Format
    existing_only: bool
    allow_self_registered: bool
    # The keys of the IDs that were matched with courses without an ID, by the course's key.
    claims: dict[Any, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _ChunkResult:
    """The result of one transaction. Students are identified by their usernames."""

    rejections: dict[str, str]  # the reasons by student
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    new_students: set[str] = field(default_factory=set)
    is_new_course: bool = False


def _register_or_reject(rows: list[ParsedRow], options: _Options) -> _ChunkResult:
    """Register students in one course, or reject them if others keep changing their records.

    A course or student may be created, deleted or given an ID after it was looked up.
    """
    for _ in range(MAX_ATTEMPTS):
        try:
            return _register_chunk(rows, options)
        except (ObjectDoesNotExist, IntegrityError) as error:
            last_error = error
    reason = f"not imported after {MAX_ATTEMPTS} attempts, the last error was: {last_error}"
    return _ChunkResult({row.record.username: reason for row in rows})


@retry_transaction(
    # Nothing is left to do if the unconfirmed attempt was committed.
    is_own_result=lambda earlier, latest: (
        {*latest.outcomes.values()} <= {Outcome.UNCHANGED, Outcome.REJECTED}
    )
)
def _register_chunk(rows: list[ParsedRow], options: _Options) -> _ChunkResult:
    """Register students in one course, in one transaction."""
    usernames = [row.record.username for row in rows]
    try:
        course, is_new_course = _get_or_create_course(rows[0].record, options)
    except ValueError as error:
        return _ChunkResult(dict.fromkeys(usernames, str(error)))
    students, new_students = _get_or_create_students(usernames, options)
    # After new users were created, because a name may have been taken by sign-up just now.
    self_registered = set() if options.allow_self_registered else _self_registered(students)
    registered = [
        row.record
        for row in rows
        if row.record.username in students and row.record.username not in self_registered
    ]
    result = register_many(
        course=course,
        registrations=[_registration(record, students, options) for record in registered],
        outcomes=True,
        origin=options.origin,
    )
    assert result.outcomes is not None  # because outcomes=True
    outcomes = {
        record.username: result.outcomes[students[record.username]] for record in registered
    }
    rejections = {
        username: _rejection_reason(
            rows[0].record.course_id, username, students, self_registered, options
        )
        for username in usernames
        if outcomes.get(username, Outcome.REJECTED) is Outcome.REJECTED
    }
    return _ChunkResult(rejections, outcomes, new_students - self_registered, is_new_course)


def _registration(
    record: EnrollmentRecord, students: dict[str, Any], options: _Options
) -> Registration:
    return Registration(
        student=students[record.username],
        enrollment_date=record.enrollment_date,
        withdrawal_date=record.withdrawal_date,
        status=record.status,
        overwrite_dates=options.format.overwrite_dates,
        keep_completed=not options.format.has_completed_status,
    )


def _get_or_create_course(record: EnrollmentRecord, options: _Options) -> tuple[Course, bool]:
    """Return the course of a record and whether it is new. Raises ValueError with the reason."""
    course_id, slug = record.course_id, make_slug(record.course_id)
    if course := _find_course(record, options):
        return course, False
    # MariaDB's comparison ignores case and accents.
    if other := Course.objects.using(DEFAULT_DB_ALIAS).filter(slug=slug).first():
        name = f"course {other.code}" if other.code else f"the course “{other.title}”"
        raise ValueError(
            f"course {course_id} needs the slug {slug}, but {name} has the slug {other.slug}: "
            "change that slug in the admin"
        )
    if options.existing_only:
        raise ValueError(f"course {course_id} does not exist (slug {slug})")
    return Course.objects.create(title=course_id, slug=slug, code=course_id), True


def _find_course(record: EnrollmentRecord, options: _Options) -> Course | None:
    """Return the course with this ID, or the one with its slug if that course has no ID yet."""
    course_id, key = record.course_id, record.course_key
    # Former versions used shorter digests.
    slugs = {make_slug(course_id), make_slug(course_id, digits=8)}
    # MariaDB's comparison ignores case and accents. Existing slugs may contain capital letters.
    similar = Q(code__iexact=course_id) | Q(slug__in={*slugs, course_id})
    found = Course.objects.using(DEFAULT_DB_ALIAS).filter(similar)
    courses = sorted(found, key=attrgetter("pk"))
    for course in courses:
        if course.code.lower() == key:
            return course
    for course in courses:
        if (
            not course.code
            and course.slug.lower() in slugs
            and options.claims.setdefault(course.pk, key) == key
        ):
            _set_code(course, course_id)
            return course
    return None


def _set_code(course: Course, course_id: str) -> None:
    """Give a course its ID, unless that is its slug. Raises Course.DoesNotExist."""
    if course.slug == course_id:
        return
    if not Course.objects.filter(pk=course.pk, code="").update(code=course_id):
        raise Course.DoesNotExist(f"Course {course.slug} was deleted or got another ID.")


def _get_or_create_students(
    usernames: list[str], options: _Options
) -> tuple[dict[str, Any], set[str]]:
    """Return the primary keys of users by their exact names, and the names that are new.

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


def _self_registered(students: dict[str, Any]) -> set[str]:
    """Return the names of students who signed up themselves and were not confirmed by staff."""
    registrations = SelfRegistration.objects.using(DEFAULT_DB_ALIAS)
    keys = set(registrations.filter(pk__in=students.values()).values_list("pk", flat=True))
    return {name for name, key in students.items() if key in keys}


def _user_keys(usernames: Iterable[str]) -> dict[str, Any]:
    wanted = set(usernames)
    users = get_user_model()._default_manager.using(DEFAULT_DB_ALIAS)
    # MariaDB also finds names that differ in case or accents.
    found = users.filter(username__in=wanted).values_list("username", "pk")
    return {name: key for name, key in found if name in wanted}


def _rejection_reason(
    course_id: str,
    username: str,
    students: dict[str, Any],
    self_registered: set[str],
    options: _Options,
) -> str:
    if username in self_registered:
        return (
            f"user {username} signed up and may be somebody else: confirm or delete the account in "
            "the admin, or use --allow-self-registered"
        )
    if username in students:
        return f"{course_id} is full, no seat for {username}"
    if options.existing_only:
        return f"user {username} does not exist"
    return f"user {username} differs only in case or accents from an existing user"
