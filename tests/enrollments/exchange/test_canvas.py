from collections.abc import Callable
from pathlib import Path

import pytest

from enrollments.exchange.importer import ImportSummary
from enrollments.exchange.reader import SkippedRow
from tests.support.commands import all_rows
from tests.support.counts import drift_by_title
from tests.support.exchange import (
    CANVAS_HEADER,
    counts_by_title,
    import_path,
    read_rows,
    statuses,
)

WriteFile = Callable[..., Path]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("active", "active"),
        ("Active", "active"),
        ("completed", "completed"),
        ("concluded", "completed"),
        ("deleted_last_completed", "completed"),
        ("inactive", "withdrawn"),
        ("deleted", "withdrawn"),
    ],
)
def test_parse_maps_statuses(write_file: WriteFile, value: str, status: str) -> None:
    (row,) = read_rows(write_file(CANVAS_HEADER, f"C1,u1,student,S1,{value}"))
    record = row.record
    assert (record.course_id, record.username) == ("C1", "u1")
    assert record.status == status
    assert (record.enrollment_date, record.withdrawal_date) == (None, None)


@pytest.mark.parametrize("role", ["teacher", "ta", "observer", "designer", "Lab Partner"])
def test_parse_skips_other_roles_even_if_the_row_is_invalid(
    write_file: WriteFile, role: str
) -> None:
    assert read_rows(write_file(CANVAS_HEADER, f"C1,,{role},,asleep")) == [SkippedRow(2)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("C1,u1,student,S1,asleep", "status 'asleep' is not one of active, completed, concluded,"),
        ("C1,u1,student,S1,", "status '' is not one of"),
        ("C1,u1,,S1,active", "role is empty: a role_id without a role is not supported"),
        (",u1,student,S1,active", "course_id is empty: a section_id without one is not supported"),
        ("C1,,student,S1,active", "'' is not a username: This field cannot be blank."),
        ("C1,u 1,student,S1,active", "'u 1' is not a username: Enter a valid username."),
        ("C1,u\0,student,S1,active", r"'u\x00' is not a username"),
        (f"C1,{'u' * 151},student,S1,active", "not a username: Ensure this value has at most 150"),
        ("C\0,u1,student,S1,active", r"'C\x00' is not a course ID: use 1 to 200 printable"),
        (f"{'C' * 201},u1,student,S1,active", "is not a course ID: use 1 to 200 printable"),
        ('"C\n1",u1,student,S1,active', r"'C\n1' is not a course ID"),
        ("C1,u1,student", "expected 5 fields, found 3"),
        ("   ", "expected 5 fields, found 1"),
    ],
)
def test_invalid_row_is_rejected_and_the_others_are_read(
    write_file: WriteFile, line: str, reason: str
) -> None:
    path = write_file(CANVAS_HEADER, "C1,u1,student,S1,active", line, "C1,u2,student,S1,active")
    first, rejected, last = read_rows(path)
    assert (first.record.username, last.record.username) == ("u1", "u2")
    assert str(rejected).startswith("Line 3: ")
    assert reason in rejected.reason
    assert [value.strip() for value in rejected.values] == [
        value.strip('" ') for value in line.split(",")
    ]


def test_import_creates_courses_students_and_enrollments(db: None, write_file: WriteFile) -> None:
    path = write_file(
        CANVAS_HEADER,
        "CS-1,u1,student,,active",
        "CS 2,u1,student,,completed",
        "CS-1,u2,student,,inactive",
        "CS-1,t1,teacher,,active",
        "CS-1,u3,student,,deleted",
        "CS-1,u4,student,,asleep",
    )
    summary, rejected = import_path(path)
    assert summary == ImportSummary(
        rows=6, created=4, skipped=1, rejected=1, courses_created=2, students_created=3
    )
    assert [line.partition(",")[0] for line in rejected] == [
        "Line 7: status 'asleep' is not one of active"
    ]
    assert statuses() == {
        ("cs-1", "u1"): "active",
        ("cs-2-978ccc5e0b5e81048f8eb77bec032449", "u1"): "completed",
        ("cs-1", "u2"): "withdrawn",
        ("cs-1", "u3"): "withdrawn",
    }
    assert (counts_by_title(), drift_by_title()) == ({"CS-1": 1, "CS 2": 1}, {})


def test_import_of_the_same_file_changes_nothing(db: None, write_file: WriteFile) -> None:
    lines = ["C,u1,student,,active", "C,u2,student,,completed", "C,u3,student,,deleted", "bad"]
    path = write_file(CANVAS_HEADER, *lines)
    import_path(path)
    before = all_rows()
    assert import_path(path)[0] == ImportSummary(rows=4, unchanged=3, rejected=1)
    assert all_rows() == before


def test_import_of_a_newer_file_updates_statuses(db: None, write_file: WriteFile) -> None:
    lines = [f"C,u{n},student,,active" for n in range(1, 6)]
    import_path(write_file(CANVAS_HEADER, *lines))
    lines = ["C,u1,student,,deleted", "C,u2,student,,completed", "C,u3,student,,active"]
    assert import_path(write_file(CANVAS_HEADER, *lines))[0] == ImportSummary(
        rows=3, withdrawn=1, updated=1, unchanged=1
    )
    path = write_file(CANVAS_HEADER, "C,u1,student,,active")
    assert import_path(path)[0] == ImportSummary(rows=1, reenrolled=1)
    assert (counts_by_title(), drift_by_title()) == ({"C": 5}, {})


@pytest.mark.parametrize(
    ("sections", "status"),
    [
        (["A,active", "B,deleted"], "active"),
        (["A,deleted", "B,active"], "active"),
        (["A,completed", "B,active", "C,deleted"], "active"),
        (["A,deleted", "B,completed"], "completed"),
        (["A,deleted", "B,inactive"], "withdrawn"),
        # In the same section the last row wins, as it does in Canvas.
        (["A,active", "A,deleted"], "withdrawn"),
        (["A,deleted", "A,active"], "active"),
        (["A,active", "B,completed", "A,deleted"], "completed"),
        (["A,active", "A,active"], "active"),
    ],
)
def test_student_in_several_sections_counts_if_one_row_counts(
    db: None, write_file: WriteFile, sections: list[str], status: str
) -> None:
    path = write_file(CANVAS_HEADER, *(f"C,u1,student,{section}" for section in sections))
    number = len(sections)
    assert import_path(path)[0] == ImportSummary(
        rows=number, created=1, unchanged=number - 1, courses_created=1, students_created=1
    )
    assert statuses() == {("c", "u1"): status}
    assert counts_by_title() == {"C": int(status != "withdrawn")}
    assert import_path(path)[0].unchanged == number
