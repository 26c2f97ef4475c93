from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from courses.models import Course
from enrollments.exchange.importer import ImportSummary
from enrollments.exchange.reader import SkippedRow
from enrollments.models import Enrollment
from enrollments.services import enroll, set_status
from tests.support.counts import drift_by_title
from tests.support.exchange import (
    ONEROSTER_HEADER,
    counts_by_title,
    import_path,
    read_rows,
    statuses,
)
from tests.support.threads import ConcurrentThread

SHORT_HEADER = "sourcedId,classSourcedId,userSourcedId,role,status,beginDate,endDate"

WriteFile = Callable[..., Path]


def test_parse_reads_bulk_files(write_file: WriteFile) -> None:
    line = "e1,,,class 1,school,u1,student,,2026-01-05,2026-06-30"
    (row,) = read_rows(write_file(ONEROSTER_HEADER, line))
    record = row.record
    assert (record.course_id, record.username, record.status) == ("class 1", "u1", "active")
    assert record.enrollment_date == datetime(2026, 1, 5, tzinfo=UTC)
    assert record.withdrawal_date is None


def test_parse_reads_delta_files(write_file: WriteFile) -> None:
    path = write_file(
        ONEROSTER_HEADER,
        "e1,active,2026-01-05T10:00:00.000Z,k1,s,u1,student,false,,",
        "e2,tobedeleted,2026-01-05T10:00:00.000Z,k1,s,u2,student,false,,",
        "e3,tobedeleted,2026-01-05T10:00:00.000+02:00,k1,s,u3,student,false,,2026-01-04",
        "e4,inactive,,k1,s,u4,student,false,,",
        "e5,active,2026-01-05T10:00:00.000Z,k1,s,t1,teacher,true,,",
    )
    *rows, teacher = read_rows(path)
    records = [row.record for row in rows]
    assert [(record.username, record.status, record.withdrawal_date) for record in records] == [
        ("u1", "active", None),
        ("u2", "withdrawn", datetime(2026, 1, 5, 10, tzinfo=UTC)),
        ("u3", "withdrawn", datetime(2026, 1, 4, tzinfo=UTC)),
        ("u4", "withdrawn", None),
    ]
    assert teacher == SkippedRow(6)


def test_parse_needs_only_the_required_columns(write_file: WriteFile) -> None:
    header = "role,userSourcedId,classSourcedId,sourcedId"
    (row,) = read_rows(write_file(header, "student,u1,k1,e1"))
    assert (row.record.username, row.record.status) == ("u1", "active")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",,,k1,s,u1,student,,,", "sourcedId is empty"),
        ("e1,,,k1,s,u1,,,,", "role is empty"),
        ("e1,gone,,k1,s,u1,student,,,", "status 'gone' is not one of active, completed, tobedel"),
        ("e1,,,k1,s,u1,student,,soon,", "beginDate 'soon' is not a date: use YYYY-MM-DD"),
        ("e1,,,k1,s,u1,student,,,2026-02-30", "endDate '2026-02-30' is not a date"),
        ("e1,tobedeleted,now,k1,s,u1,student,,,", "dateLastModified 'now' is not a date"),
        ("e1,active,0001-01-01T00:00:00+05:00,k1,s,u1,student,,,", "is not a date"),
    ],
)
def test_invalid_row_is_rejected(write_file: WriteFile, line: str, reason: str) -> None:
    (rejected,) = read_rows(write_file(ONEROSTER_HEADER, line))
    assert reason in rejected.reason


def test_import_uses_the_last_row_of_a_record(db: None, write_file: WriteFile) -> None:
    path = write_file(
        SHORT_HEADER,
        "e1,k1,u1,student,active,2026-01-05,",
        "e1,k1,u1,student,active,2026-01-05,",  # identical
        "e2,k1,u2,student,active,,",
        "e2,k1,u2,student,tobedeleted,,",  # replaces line 4
        "e2,k2,u2,student,active,,",  # another course
        "e3,k1,u3,student,tobedeleted,2026-01-05,2026-02-01",
        "e4,k1,u3,student,active,2026-03-01,",  # a second enrollment of the same student
    )
    summary, rejected = import_path(path)
    assert summary == ImportSummary(
        rows=7, created=4, unchanged=3, courses_created=2, students_created=3
    )
    assert rejected == []
    assert statuses() == {
        ("k1", "u1"): "active",
        ("k1", "u2"): "withdrawn",
        ("k1", "u3"): "active",
        ("k2", "u2"): "active",
    }
    dates = dict(Enrollment.objects.values_list("student__username", "enrollment_date"))
    assert dates["u1"] == datetime(2026, 1, 5, tzinfo=UTC)
    assert dates["u3"] == datetime(2026, 3, 1, tzinfo=UTC)


def test_import_of_active_rows_keeps_completed_enrollments(
    make_course: Callable[..., Course], student: Any, write_file: WriteFile
) -> None:
    course = make_course(slug="k1")
    enroll(student=student, course=course)
    set_status(student=student, course=course, status="completed")
    active = f"e1,k1,{student.username},student,active,2026-01-05,"
    assert import_path(write_file(SHORT_HEADER, active))[0].unchanged == 1
    assert statuses() == {("k1", student.username): "completed"}
    withdrawn = f"e1,k1,{student.username},student,tobedeleted,,2026-02-01"
    assert import_path(write_file(SHORT_HEADER, withdrawn))[0].withdrawn == 1
    assert import_path(write_file(SHORT_HEADER, active))[0].reenrolled == 1
    assert statuses() == {("k1", student.username): "active"}
    assert drift_by_title() == {}


@pytest.mark.django_db(transaction=True)
def test_import_keeps_an_enrollment_that_is_completed_while_it_runs(
    make_course: Callable[..., Course], student: Any, write_file: WriteFile
) -> None:
    course = make_course(slug="k1")
    enroll(student=student, course=course)
    path = write_file(SHORT_HEADER, f"e1,k1,{student.username},student,active,,")
    importing = ConcurrentThread(lambda: import_path(path))
    with transaction.atomic():
        set_status(student=student, course=course, status="completed")
        importing.start_and_wait_until_blocked()
    assert importing.finish()[0].unchanged == 1
    assert statuses() == {("k1", student.username): "completed"}


def test_import_of_a_delta_changes_only_its_enrollments(db: None, write_file: WriteFile) -> None:
    import_path(write_file(SHORT_HEADER, "e1,k1,u1,student,,,", "e2,k1,u2,student,,,"))
    path = write_file(
        SHORT_HEADER,
        "e1,k1,u1,student,tobedeleted,2020-01-01,2026-02-01",
        "e3,k1,u3,student,active,,",
    )
    assert import_path(path)[0] == ImportSummary(rows=2, withdrawn=1, created=1, students_created=1)
    row = Enrollment.objects.get(student__username="u1")
    assert row.withdrawal_date == datetime(2026, 2, 1, tzinfo=UTC)
    # The dates in the file are used because the status changes.
    assert row.enrollment_date == datetime(2020, 1, 1, tzinfo=UTC)
    assert (counts_by_title(), drift_by_title()) == ({"k1": 2}, {})
    assert import_path(path)[0] == ImportSummary(rows=2, unchanged=2)
