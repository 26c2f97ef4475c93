"""Read, insert and update enrollment rows of a locked course. Only `writing` uses this module."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection
from django.db.models import QuerySet

from courses.transactions import reads_latest_rows, with_latest_rows
from enrollments import statements
from enrollments.models import Enrollment
from enrollments.transitions import RowValues

# Keys in one IN list. MariaDB turns an IN list of 1,000 keys or more into a join, which reads
# and locks more rows than it returns.
CHUNK_SIZE = 900


class Row(NamedTuple):
    """A row as it is in the database, at a tenth of the cost of a model instance."""

    pk: Any
    values: RowValues


def raw_queryset() -> QuerySet:
    """Return a queryset of the primary, without the guard of `Enrollment.objects`."""
    return QuerySet(Enrollment, using=DEFAULT_DB_ALIAS)


def read_rows(course_id: Any, student_ids: Sequence[Any]) -> dict[Any, Row]:
    """Return at least the rows of these students, by student key."""
    names = ("student_id", "pk", *RowValues._fields)
    rows = raw_queryset().filter(course=course_id).values_list(*names)
    if len(student_ids) > CHUNK_SIZE and reads_latest_rows():
        # For large batches, reading the whole course is faster than IN lists, unless the course
        # has more rows than the batch. A read that must lock its rows reads no others.
        all_rows = list(rows[: len(student_ids) + 1])
        if len(all_rows) <= len(student_ids):
            return _by_student(all_rows)
    return _by_student(
        row
        for chunk in chunks(student_ids)
        for row in with_latest_rows(rows.filter(student__in=chunk))
    )


def read_rows_of_student(student_id: Any) -> list[Enrollment]:
    return list(with_latest_rows(raw_queryset().filter(student=student_id)))


def insert_row(cursor: Any, student_id: Any, course_id: Any, values: RowValues) -> Any:
    """Insert a row and return its key. Raises IntegrityError."""
    statements.INSERT_ENROLLMENT.execute(cursor, student_id, course_id, *values)
    return cursor.lastrowid


def insert_rows(course_id: Any, values_by_student: Mapping[Any, RowValues]) -> None:
    """Insert many rows. Raises IntegrityError, with some of the rows inserted."""
    rows = [(student_id, course_id, *values) for student_id, values in values_by_student.items()]
    with connection.cursor() as cursor:
        statements.INSERT_ENROLLMENT.execute_many(cursor, rows)


def update_rows(updates: Iterable[tuple[Row, RowValues]]) -> None:
    """Write the columns that changed, with one UPDATE for each combination of new values."""
    pks_by_change: defaultdict[tuple[tuple[str, Any], ...], list[Any]] = defaultdict(list)
    for row, values in updates:
        columns = zip(RowValues._fields, row.values, values, strict=True)
        changed = tuple((name, new) for name, old, new in columns if old != new)
        pks_by_change[changed].append(row.pk)
    for changed, pks in pks_by_change.items():
        for chunk in chunks(pks):
            matched = raw_queryset().filter(pk__in=chunk).update(**dict(changed))
            _require_matched(matched, len(chunk))


def delete_row(enrollment: Enrollment) -> None:
    _require_matched(raw_queryset().filter(pk=enrollment.pk).delete()[0], 1)


def make_enrollment(student_id: Any, course_id: Any, row: Row) -> Enrollment:
    """Return a model instance of a row that is in the database."""
    enrollment = Enrollment(
        pk=row.pk, student_id=student_id, course_id=course_id, **row.values._asdict()
    )
    enrollment._state.adding, enrollment._state.db = False, DEFAULT_DB_ALIAS
    return enrollment


def insert_requires_student(student_id: Any) -> bool:
    """Return whether inserting a row fails at once if the student does not exist.

    SQLite checks foreign keys at COMMIT. In MariaDB and MySQL, "ABC" refers to the key "abc".
    """
    return not (connection.features.can_defer_constraint_checks or isinstance(student_id, str))


def require_students(student_ids: Sequence[Any]) -> None:
    """Raise the user model's DoesNotExist if one of the students does not exist."""
    model = get_user_model()
    users = model._default_manager.using(DEFAULT_DB_ALIAS)
    missing = set(student_ids)
    for chunk in chunks(student_ids):
        missing.difference_update(users.filter(pk__in=chunk).values_list("pk", flat=True))
    if missing:
        raise model.DoesNotExist(f"{model.__name__} {format_keys(missing)} does not exist.")


def chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the items in chunks of CHUNK_SIZE."""
    return (items[start : start + CHUNK_SIZE] for start in range(0, len(items), CHUNK_SIZE))


def format_keys(keys: Iterable[Any], limit: int = 5) -> str:
    ordered = sorted(keys, key=str)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(map(str, ordered[:limit])) + more


def _by_student(rows: Iterable[tuple[Any, ...]]) -> dict[Any, Row]:
    return {student_id: Row(pk, RowValues(*values)) for student_id, pk, *values in rows}


def _require_matched(matched: int, expected: int) -> None:
    # A Galera cluster does not share our lock on the course with its other nodes. If a service on
    # another node moves the counter, we conflict at COMMIT. But erasing a withdrawn row moves no
    # counter: the row is gone, and nothing conflicts. Raise the code that MariaDB has for this, so
    # that `retry_transaction` repeats the call.
    if matched != expected:
        raise OperationalError(1020, "Rows were erased on another node since they were read")
