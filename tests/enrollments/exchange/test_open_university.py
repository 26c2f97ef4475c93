from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model

from courses.models import Course
from enrollments.exchange.importer import ImportSummary
from tests.support.commands import all_rows
from tests.support.counts import drift_by_title
from tests.support.exchange import (
    OPEN_UNIVERSITY_HEADER,
    counts_by_title,
    enrollment_rows,
    import_path,
)

LINES = ["AAA,2013J,11391,-159,", "AAA,2013J,28400,-53,12", "BBB,2014B,11391,?,"]
ROWS = [
    ("AAA-2013J", "11391", "active", datetime(2013, 4, 25, tzinfo=UTC), None),
    (
        *("AAA-2013J", "28400", "withdrawn"),
        *(datetime(2013, 8, 9, tzinfo=UTC), datetime(2013, 10, 13, tzinfo=UTC)),
    ),
    ("BBB-2014B", "11391", "active", datetime(2014, 2, 1, tzinfo=UTC), None),
]
ALL_LINES = [OPEN_UNIVERSITY_HEADER, *LINES]
QUOTED_LINES = [
    ",".join(f'"{value}"' for value in line.replace("?", "").split(",")) for line in ALL_LINES
]

WriteFile = Callable[..., Path]


def test_import_creates_courses_students_and_enrollments(db: None, write_file: WriteFile) -> None:
    path = write_file(*ALL_LINES)
    summary = ImportSummary(rows=3, courses_created=2, students_created=2, created=3)
    assert import_path(path) == (summary, [])
    assert enrollment_rows() == ROWS
    assert counts_by_title() == {"AAA-2013J": 1, "BBB-2014B": 1}
    assert drift_by_title() == {}
    assert list(Course.objects.values_list("slug", "subject", "capacity")) == [
        ("aaa-2013j", None, None),
        ("bbb-2014b", None, None),
    ]
    assert not any(user.has_usable_password() for user in get_user_model().objects.all())


@pytest.mark.parametrize(
    "content",
    [
        "\r\n".join(QUOTED_LINES) + "\r\n",
        "\n".join(ALL_LINES) + "\n",
        "\ufeff" + "\r\n".join(ALL_LINES) + "\r\n",
        "\ufeff" + "\r\n".join(QUOTED_LINES),
        "\r".join(ALL_LINES),
        "\n\n".join(ALL_LINES) + "\n\n\r\n",
        "\n".join(ALL_LINES).replace(",", " , "),
        "\n".join(
            ",".join(["é", *reversed(line.split(",")), "" if "AAA" in line else "more"])
            for line in ALL_LINES[:-1]
        )
        + "\né,,?,11391,2014B,BBB,",
    ],
    ids=["published", "plain", "BOM", "BOM quoted", "CR", "blank lines", "spaces", "columns"],
)
def test_import_reads_every_published_variant(
    db: None, write_file: WriteFile, content: str
) -> None:
    summary, rejected = import_path(write_file(content))
    assert (enrollment_rows(), rejected, summary.rows) == (ROWS, [], 3)


def test_import_of_the_same_file_changes_nothing(db: None, write_file: WriteFile) -> None:
    path = write_file(*ALL_LINES)
    import_path(path)
    before = all_rows()
    assert import_path(path) == (ImportSummary(rows=3, unchanged=3), [])
    assert all_rows() == before


def test_import_of_a_newer_file_updates_statuses_and_dates(db: None, write_file: WriteFile) -> None:
    import_path(write_file(*ALL_LINES, "CCC,2014B,5,0,", "CCC,2014B,6,0,"))
    lines = [
        "AAA,2013J,11391,-159,3",  # withdrawn
        "AAA,2013J,28400,-53,",  # re-enrolled
        "BBB,2014B,11391,-1,",  # another date
        "CCC,2014B,5,0,",
    ]
    path = write_file(OPEN_UNIVERSITY_HEADER, *lines)
    summary = ImportSummary(rows=4, withdrawn=1, reenrolled=1, updated=1, unchanged=1)
    assert import_path(path) == (summary, [])
    # Student 6 is absent from the newer file, and still enrolled.
    assert counts_by_title() == {"AAA-2013J": 1, "BBB-2014B": 1, "CCC-2014B": 2}
    assert drift_by_title() == {}
    before = all_rows()
    import_path(path)
    assert all_rows() == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("AAA,2013J,1,-159", "expected 5 fields, found 4"),
        ("AAA,2013J,1,-159,,", "expected 5 fields, found 6"),
        (",,,,", "code_module '' is not a module code"),
        ("   ", "expected 5 fields, found 1"),
        ("A-A,2013J,1,0,", "code_module 'A-A' is not a module code"),
        ("A\0A,2013J,1,0,", r"code_module 'A\x00A' is not a module code"),
        ("Ä,2013J,1,0,", "code_module 'Ä' is not a module code"),
        ("A" * 51 + ",2013J,1,0,", f"code_module '{'A' * 51}' is not a module code"),
        ("A" * 9_000 + ",2013J,1,0,", f"code_module '{'A' * 79} is not a module code"),
        ('"AA\nA",2013J,1,0,', r"code_module 'AA\nA' is not a module code"),
        ("AAA,2013X,1,0,", "code_presentation '2013X' is not a presentation code like 2013J"),
        ("AAA,?,1,0,", "code_presentation '' is not a presentation code like 2013J"),
        ("AAA,2013 J,1,0,", "code_presentation '2013 J' is not a presentation code like 2013J"),
        ("AAA,2013J,1.0,0,", "id_student '1.0' is not a whole number"),
        ("AAA,2013J,-1,0,", "id_student '-1' is not a whole number"),
        ("AAA,2013J,,0,", "id_student '' is not a whole number"),
        ("AAA,2013J,١,0,", "id_student '١' is not a whole number"),
        ("AAA,2013J," + "1" * 21 + ",0,", f"id_student '{'1' * 21}' is not a whole number"),
        ("AAA,2013J,1,soon,", "date_registration 'soon' is not a number of days"),
        ("AAA,2013J,1,0,--1", "date_unregistration '--1' is not a number of days"),
        ("AAA,2013J,1,0,999999", "date_unregistration '999999' is not a number of days"),
    ],
)
def test_invalid_row_is_rejected_and_the_others_are_imported(
    db: None, write_file: WriteFile, line: str, reason: str
) -> None:
    path = write_file(OPEN_UNIVERSITY_HEADER, LINES[0], line, *LINES[1:])
    summary, rejected = import_path(path)
    assert rejected == [f"Line 3: {reason}"]
    assert (summary.rejected, summary.rows, enrollment_rows()) == (1, 4, ROWS)


def test_last_row_of_a_student_is_used(db: None, write_file: WriteFile) -> None:
    lines = ["AAA,2013J,1,0,", "AAA,2013J,2,0,", "aaa,2013J,1,0,9"]
    summary, rejected = import_path(write_file(OPEN_UNIVERSITY_HEADER, *lines))
    assert (summary.created, summary.unchanged, rejected) == (2, 1, [])
    assert [row[1:3] for row in enrollment_rows()] == [("1", "withdrawn"), ("2", "active")]


def test_modules_that_differ_in_case_are_the_same_course(db: None, write_file: WriteFile) -> None:
    path = write_file(OPEN_UNIVERSITY_HEADER, "AAA,2013J,1,0,", "aaa,2013J,2,0,")
    import_path(path)
    assert counts_by_title() == {"AAA-2013J": 2}
    assert import_path(path)[0].unchanged == 2
