import csv
import gzip
import os
import resource
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection

from benchmarks import canvas_file
from courses.models import Course, Subject
from enrollments.exchange.importer import Summary, import_file
from enrollments.exchange.reader import Refused, UnreadableFile, enrollment_file
from enrollments.models import Enrollment
from enrollments.rows import CHUNK_SIZE
from enrollments.services import enroll, enroll_many, unenroll
from tests.conftest import drifts
from tests.support.commands import (
    NOBODY,
    assert_usage_error,
    everything,
    manage,
    unmigrated_database,
)
from tests.support.processes import run_in_processes

COLUMNS = ["code_module", "code_presentation", "id_student"]
COLUMNS += ["date_registration", "date_unregistration"]
HEADER = ",".join(COLUMNS)

LINES = ["AAA,2013J,11391,-159,", "AAA,2013J,28400,-53,12", "BBB,2014B,11391,?,"]
ROWS = [
    ("AAA-2013J", "11391", "active", datetime(2013, 4, 25, tzinfo=UTC), None),
    (
        *("AAA-2013J", "28400", "withdrawn"),
        *(datetime(2013, 8, 9, tzinfo=UTC), datetime(2013, 10, 13, tzinfo=UTC)),
    ),
    ("BBB-2014B", "11391", "active", datetime(2014, 2, 1, tzinfo=UTC), None),
]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(lines: Iterable[str] | bytes, header: str = HEADER) -> Path:
        path = tmp_path / "registrations.csv"
        if not isinstance(lines, bytes):
            lines = "\r\n".join([header, *lines, ""]).encode()
        path.write_bytes(lines)
        return path

    return write


def load(
    path: Path,
    *,
    dry_run: bool = False,
    existing_only: bool = False,
    starts: dict[str, date] | None = None,
) -> tuple[Summary, list[str]]:
    """Import the file; return what was done, and what was refused."""
    refused: list[Refused] = []
    expected: list[int] = []
    on_progress: list[int] = []
    with enrollment_file(path=path, starts=starts or {}) as file:
        summary = import_file(
            file=file,
            dry_run=dry_run,
            existing_only=existing_only,
            refuse=refused.append,
            expect=expected.append,
            on_progress=on_progress.append,
        )
    assert [sum(on_progress)] == expected
    outcomes = ["created", "reenrolled", "withdrawn", "updated", "unchanged", "passed_over"]
    assert summary.rows == sum(getattr(summary, name) for name in [*outcomes, "rejected"])
    assert summary.rejected == len(refused)
    return summary, [str(row) for row in refused]


def rows() -> list[tuple[Any, ...]]:
    names = ["course__title", "student__username", "status", "enrollment_date", "withdrawal_date"]
    return list(Enrollment.objects.order_by(*names[:2]).values_list(*names))


def stored() -> dict[str, int]:
    return dict(Course.objects.values_list("title", "total_enrollments"))


def test_makes_courses_students_and_rows(db: None, write: Write) -> None:
    assert load(write(LINES)) == (
        Summary(rows=3, courses_made=2, students_made=2, created=3),
        [],
    )
    assert rows() == ROWS
    assert stored() == {"AAA-2013J": 1, "BBB-2014B": 1}
    assert drifts() == {}
    assert list(Course.objects.values_list("slug", "subject__name", "capacity")) == [
        ("aaa-2013j", "AAA", None),
        ("bbb-2014b", "BBB", None),
    ]
    assert not any(user.has_usable_password() for user in get_user_model().objects.all())


ALL = [HEADER, *LINES]
QUOTED = [",".join(f'"{value}"' for value in line.replace("?", "").split(",")) for line in ALL]


@pytest.mark.parametrize(
    "content",
    [
        "\r\n".join(QUOTED) + "\r\n",
        "\n".join(ALL) + "\n",
        "\ufeff" + "\r\n".join(ALL) + "\r\n",
        "\ufeff" + "\r\n".join(QUOTED),
        "\r".join(ALL),
        "\n\n".join(ALL) + "\n\n\r\n",
        "\n".join(ALL).replace(",", " , "),
        "\n".join(
            ",".join(["é", *reversed(line.split(",")), "more" if line == HEADER else ""])
            for line in ALL
        ),
    ],
    ids=["published", "plain", "BOM", "BOM quoted", "CR", "blank lines", "spaces", "columns"],
)
def test_reads_every_copy_that_goes_round(db: None, write: Write, content: str) -> None:
    summary, passed_over = load(write(content.encode()))
    assert (rows(), passed_over, summary.rows) == (ROWS, [], 3)


def test_start_of_a_presentation_can_be_given(db: None, write: Write) -> None:
    starts = {"2013J": date(2013, 10, 5), "Spring_26": date(2026, 3, 1)}
    _, passed_over = load(
        write(["AAA,2013J,1,-5,", "AAA,Spring_26,1,,3", "AAA,2014J,1,+1,"]), starts=starts
    )
    assert passed_over == []
    assert [row[3:] for row in rows()] == [
        (datetime(2013, 9, 30, tzinfo=UTC), None),
        (datetime(2014, 10, 2, tzinfo=UTC), None),
        (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 4, tzinfo=UTC)),
    ]


def test_run_again_changes_nothing(db: None, write: Write) -> None:
    path = write(LINES)
    load(path)
    before = everything()
    assert load(path) == (Summary(rows=3, unchanged=3), [])
    assert everything() == before


def test_rows_follow_a_newer_file(db: None, write: Write) -> None:
    load(write([*LINES, "CCC,2014B,5,0,", "CCC,2014B,6,0,"]))
    newer = [
        "AAA,2013J,11391,-159,3",  # has left
        "AAA,2013J,28400,-53,",  # is back
        "BBB,2014B,11391,-1,",  # on another day
        "CCC,2014B,5,0,",
    ]
    summary, passed_over = load(write(newer))
    assert summary == Summary(rows=4, withdrawn=1, reenrolled=1, updated=1, unchanged=1)
    assert passed_over == []
    # What the file lacks is left alone.
    assert stored() == {"AAA-2013J": 1, "BBB-2014B": 1, "CCC-2014B": 2}
    assert drifts() == {}
    before = everything()
    load(write(newer))
    assert everything() == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("AAA,2013J,1,-159", "the number of fields is 4 instead of 5"),
        ("AAA,2013J,1,-159,,", "the number of fields is 6 instead of 5"),
        (",,,,", "code_module '' is no module code"),
        ("   ", "the number of fields is 1 instead of 5"),
        ("A-A,2013J,1,0,", "code_module 'A-A' is no module code"),
        ("A\0A,2013J,1,0,", r"code_module 'A\x00A' is no module code"),
        ("Ä,2013J,1,0,", "code_module 'Ä' is no module code"),
        ("A" * 51 + ",2013J,1,0,", f"code_module '{'A' * 51}' is no module code"),
        ("A" * 9_000 + ",2013J,1,0,", f"code_module '{'A' * 79} is no module code"),
        ('"AA\nA",2013J,1,0,', r"code_module 'AA\nA' is no module code"),
        (
            "AAA,2013X,1,0,",
            "code_presentation '2013X' has no known start: "
            "name it with --start PRESENTATION=YYYY-MM-DD",
        ),
        ("AAA,?,1,0,", "code_presentation '' is no presentation code"),
        ("AAA,2013 J,1,0,", "code_presentation '2013 J' is no presentation code"),
        ("AAA,2013J,1.0,0,", "id_student '1.0' is no whole number"),
        ("AAA,2013J,-1,0,", "id_student '-1' is no whole number"),
        ("AAA,2013J,,0,", "id_student '' is no whole number"),
        ("AAA,2013J,١,0,", "id_student '١' is no whole number"),
        ("AAA,2013J," + "1" * 21 + ",0,", f"id_student '{'1' * 21}' is no whole number"),
        ("AAA,2013J,1,soon,", "date_registration 'soon' is no number of days"),
        ("AAA,2013J,1,0,--1", "date_unregistration '--1' is no number of days"),
        ("AAA,2013J,1,0,999999", "date_unregistration '999999' is no number of days"),
        ("AAA,Last,1,0,99999", "a date is not within the years 1 to 9999"),
        ("AAA,First,1,-1,", "a date is not within the years 1 to 9999"),
        ("AAA,2013J,11391,0,", "student 11391 is in AAA-2013J by line 2 already"),
        ("aaa,2013J,11391,0,", "student 11391 is in aaa-2013J by line 2 already"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_in(
    db: None, write: Write, line: str, reason: str
) -> None:
    starts = {"First": date.min, "Last": date.max}
    summary, passed_over = load(write([LINES[0], line, *LINES[1:]]), starts=starts)
    assert passed_over == [f"Line 3: {reason}"]
    assert (summary.rejected, summary.rows, rows()) == (1, 4, ROWS)


def test_names_that_differ_in_case_are_one_course(db: None, write: Write) -> None:
    path = write(["AAA,2013J,1,0,", "aaa,2013J,2,0,"])
    load(path)
    assert stored() == {"AAA-2013J": 2}
    assert load(path)[0].unchanged == 2


def test_a_full_course_takes_no_more(make_course: Callable[..., Course], write: Write) -> None:
    make_course(title="Full", slug="aaa-2013j", capacity=2)
    path = write([f"AAA,2013J,{n},0," for n in range(1, 5)])
    summary, passed_over = load(path)
    assert summary == Summary(rows=4, students_made=4, created=2, rejected=2)
    assert passed_over == [
        "Line 4: AAA-2013J is full, no seat for 3",
        "Line 5: AAA-2013J is full, no seat for 4",
    ]
    assert (stored(), drifts()) == ({"Full": 2}, {})


def test_who_left_makes_room_wherever_the_line_is(
    make_course: Callable[..., Course], write: Write
) -> None:
    make_course(title="Small", slug="aaa-2013j", capacity=1)
    load(write(["AAA,2013J,1,0,"]))
    path = write(["AAA,2013J,2,0,", "AAA,2013J,1,0,5"])
    assert load(path) == (Summary(rows=2, students_made=1, created=1, withdrawn=1), [])
    before = everything()
    load(path)
    assert everything() == before


def test_a_dry_run_changes_nothing_and_says_what_would_be(
    make_course: Callable[..., Course], write: Write
) -> None:
    load(write([*LINES, "CCC,2014B,5,0,", "CCC,2014B,7,0,1"]))
    make_course(title="Small", slug="ddd-2014b", capacity=1)
    path = write(
        [
            *LINES,
            *("CCC,2014B,5,0,9", "CCC,2014B,7,0,"),
            *("DDD,2014B,8,0,", "DDD,2014B,9,0,"),
            *("EEE,2014B,8,0,", "FFF,2014B,8,0,"),
            *("nothing", "AAA,2013J,11391,-150,"),
        ]
    )
    before = everything()
    foreseen = load(path, dry_run=True)
    assert everything() == before
    assert foreseen == load(path)
    assert foreseen[0] == Summary(
        *(11, 3, 1, 1, 0, 3),
        **{"rejected": 3, "courses_made": 2, "students_made": 2},
    )


def test_a_user_of_that_name_is_the_student(db: None, write: Write) -> None:
    users = get_user_model().objects
    users.create_user("11391", email="a@example.org", password="secret", is_staff=True)
    user = users.values().get()
    assert load(write(LINES))[0].students_made == 1
    assert users.values().get(username="11391") == user
    assert (rows(), drifts()) == (ROWS, {})


def test_what_is_there_is_taken_as_it_is(make_course: Callable[..., Course], write: Write) -> None:
    make_course(title="Databases", slug="aaa-2013j")
    Subject.objects.create(name="BBB", slug="other")
    Subject.objects.create(name="Chemistry", slug="ccc")
    load(write([*LINES, "CCC,2014B,5,0,"]))
    assert dict(Course.objects.values_list("title", "subject__name")) == {
        "Databases": None,
        "BBB-2014B": "BBB",
        "CCC-2014B": "Chemistry",
    }
    assert Subject.objects.count() == 2


def test_a_course_of_any_size(db: None, write: Write) -> None:
    number = CHUNK_SIZE + 500
    path = write(f"AAA,2013J,{n},0,{'' if n % 2 else n % 9}" for n in range(number))
    summary, _ = load(path)
    assert (summary.created, summary.courses_made) == (number, 1)
    assert (stored(), drifts()) == ({"AAA-2013J": number // 2}, {})
    assert load(path)[0].unchanged == number


# Canvas and OneRoster ---------------------------------------------------------------

CANVAS = "course_id,user_id,role,section_id,status"
ONEROSTER = "sourcedId,classSourcedId,userSourcedId,role,status,beginDate,endDate"


def statuses() -> dict[tuple[str, str], str]:
    names = ("course__slug", "student__username", "status")
    return {(slug, name): status for slug, name, status in Enrollment.objects.values_list(*names)}


def test_canvas_makes_courses_students_and_rows(db: None, write: Write) -> None:
    lines = [
        "CS-1,u1,student,,active",
        "CS 2,u1,student,,completed",
        "CS-1,u2,student,,inactive",
        "CS-1,t1,teacher,,active",
        "CS-1,u3,student,,deleted",
        "CS-1,u4,student,,asleep",
    ]
    path = write(lines, CANVAS)
    summary, refused = load(path)
    assert summary == Summary(
        rows=6, created=4, passed_over=1, rejected=1, courses_made=2, students_made=3
    )
    assert [line.partition(",")[0] for line in refused] == [
        "Line 7: status 'asleep' is none of active"
    ]
    assert statuses() == {
        ("cs-1", "u1"): "active",
        ("cs-2-978ccc5e", "u1"): "completed",
        ("cs-1", "u2"): "withdrawn",
        ("cs-1", "u3"): "withdrawn",
    }
    assert (stored(), drifts()) == ({"CS-1": 1, "CS 2": 1}, {})
    before = everything()
    assert load(path)[0] == Summary(rows=6, unchanged=4, passed_over=1, rejected=1)
    assert everything() == before


def test_canvas_rows_follow_a_newer_file(db: None, write: Write) -> None:
    load(write([f"C,u{n},student,,active" for n in range(1, 6)], CANVAS))
    newer = ["C,u1,student,,deleted", "C,u2,student,,completed", "C,u3,student,,active"]
    assert load(write(newer, CANVAS))[0] == Summary(rows=3, withdrawn=1, updated=1, unchanged=1)
    back = ["C,u1,student,,active"]
    assert load(write(back, CANVAS))[0] == Summary(rows=1, reenrolled=1)
    assert (stored(), drifts()) == ({"C": 5}, {})


@pytest.mark.parametrize(
    ("sections", "status"),
    [
        (["A,active", "B,deleted"], "active"),
        (["A,deleted", "B,active"], "active"),
        (["A,completed", "B,active", "C,deleted"], "active"),
        (["A,deleted", "B,completed"], "completed"),
        (["A,deleted", "B,inactive"], "withdrawn"),
        # Of the same section the last row counts, as in Canvas.
        (["A,active", "A,deleted"], "withdrawn"),
        (["A,deleted", "A,active"], "active"),
        (["A,active", "B,completed", "A,deleted"], "completed"),
        (["A,active", "A,active"], "active"),
    ],
)
def test_a_student_of_several_sections_counts_if_one_row_does(
    db: None, write: Write, sections: list[str], status: str
) -> None:
    path = write([f"C,u1,student,{section}" for section in sections], CANVAS)
    number = len(sections)
    assert load(path)[0] == Summary(
        rows=number, created=1, unchanged=number - 1, courses_made=1, students_made=1
    )
    assert statuses() == {("c", "u1"): status}
    assert stored() == {"C": int(status != "withdrawn")}
    assert load(path)[0].unchanged == number


def test_oneroster_rows_are_known_by_their_sourced_id(db: None, write: Write) -> None:
    lines = [
        "e1,k1,u1,student,active,2026-01-05,",
        "e1,k1,u1,student,active,2026-01-05,",  # the same once more
        "e2,k1,u2,student,active,,",
        "e2,k1,u2,student,tobedeleted,,",  # contradicts line 4
        "e2,k2,u2,student,active,,",
        "e3,k1,u3,student,tobedeleted,2026-01-05,2026-02-01",
        "e4,k1,u3,student,active,2026-03-01,",  # was there before, too
    ]
    summary, refused = load(write(lines, ONEROSTER))
    assert summary == Summary(
        rows=7, created=3, unchanged=2, rejected=2, courses_made=1, students_made=3
    )
    assert refused == [
        "Line 5: sourcedId e2 is another enrollment by line 4 already",
        "Line 6: sourcedId e2 is another enrollment by line 4 already",
    ]
    assert statuses() == {("k1", name): "active" for name in ("u1", "u2", "u3")}
    began = dict(Enrollment.objects.values_list("student__username", "enrollment_date"))
    assert (began["u1"], began["u3"]) == (
        datetime(2026, 1, 5, tzinfo=UTC),
        datetime(2026, 3, 1, tzinfo=UTC),
    )


def test_oneroster_delta_changes_what_it_names(db: None, write: Write) -> None:
    load(write(["e1,k1,u1,student,,,", "e2,k1,u2,student,,,"], ONEROSTER))
    before = Enrollment.objects.get(student__username="u1").enrollment_date
    delta = ["e1,k1,u1,student,tobedeleted,2020-01-01,2026-02-01", "e3,k1,u3,student,active,,"]
    assert load(write(delta, ONEROSTER))[0] == Summary(
        rows=2, withdrawn=1, created=1, students_made=1
    )
    row = Enrollment.objects.get(student__username="u1")
    assert row.withdrawal_date == datetime(2026, 2, 1, tzinfo=UTC)
    # What the file says of a new row is not said of one that counted already.
    assert row.enrollment_date != before
    assert (stored(), drifts()) == ({"k1": 2}, {})
    assert load(write(delta, ONEROSTER))[0] == Summary(rows=2, unchanged=2)


def test_existing_only_makes_neither_courses_nor_users(
    make_course: Callable[..., Course], make_students: Callable[[int], list[Any]], write: Write
) -> None:
    make_course(slug="cs-1")
    make_students(1)
    path = write(
        [
            "CS-1,student1,student,,active",
            "CS-1,u2,student,,active",
            "CS-2,student1,student,,active",
        ],
        CANVAS,
    )
    users, courses = get_user_model().objects.count(), Course.objects.count()
    summary, refused = load(path, existing_only=True)
    assert summary == Summary(rows=3, created=1, rejected=2)
    assert refused == [
        "Line 3: there is no user u2",
        "Line 4: there is no course CS-2, with the slug cs-2",
    ]
    assert (get_user_model().objects.count(), Course.objects.count()) == (users, courses)


ALIKE = ["anna", "Anna", "José", "Jose", "josé"]


@pytest.mark.parametrize("existing", ["ANNA", "Jose"])
def test_a_student_is_never_taken_for_another(db: None, write: Write, existing: str) -> None:
    """MariaDB compares without case and accents."""
    get_user_model().objects.create_user(existing)
    path = write([f"C,{name},student,,active" for name in ALIKE], CANVAS)
    summary, refused = load(path)
    assert summary.created + summary.rejected == len(ALIKE)
    rows = Enrollment.objects.values_list("student__username", flat=True)
    assert set(rows) <= set(ALIKE)
    if connection.vendor == "mysql":
        assert len(rows) == {"ANNA": 1, "Jose": 2}[existing]
        assert all("can't be told from another user" in line for line in refused)
    else:
        assert set(rows) == set(ALIKE)
    assert drifts() == {}
    # In a run of its own and in several chunks it ends the same.
    assert load(path)[0].unchanged == len(rows)


def test_a_course_is_never_taken_for_another(
    make_course: Callable[..., Course], write: Write
) -> None:
    make_course(title="Capital", slug="CS-1")
    make_course(title="Accent", slug="é-1")
    path = write(["cs-1,u1,student,,active", "e-1,u1,student,,active"], CANVAS)
    summary, refused = load(path)
    if connection.vendor == "mysql":
        assert refused == [
            "Line 3: e-1 can't be told from the course “Accent”, whose slug é-1 differs in "
            "accents only"
        ]
        assert (summary.created, summary.courses_made) == (1, 0)
        assert stored() == {"Capital": 1, "Accent": 0}
    else:
        assert stored()["Accent"] == 0


# Many rows --------------------------------------------------------------------------------


def test_a_dry_run_counts_seats_over_all_chunks(
    make_course: Callable[..., Course], make_students: Callable[[int], list[Any]], write: Write
) -> None:
    course = make_course(title="Large", slug="large", capacity=CHUNK_SIZE + 100)
    enroll_many(course=course, students=make_students(150))
    leaving = [f"large,student{n},student,,deleted" for n in range(1, 101)]
    path = write([f"large,u{n},student,,active" for n in range(2 * CHUNK_SIZE)] + leaving, CANVAS)
    before = everything()
    foreseen = load(path, dry_run=True)
    assert everything() == before
    assert foreseen[0].created == CHUNK_SIZE + 50
    assert foreseen == load(path)
    assert (stored(), drifts()) == ({"Large": CHUNK_SIZE + 100}, {})


def test_seats_go_in_the_order_of_the_file(
    make_course: Callable[..., Course], write: Write
) -> None:
    make_course(slug="c", capacity=2)
    # Who is named again is not sent back to the end.
    lines = ["z,A", "y,A", "x,A", "z,A", "z,B"]
    path = write(["C,{},student,{},active".format(*line.split(",")) for line in lines], CANVAS)
    assert load(path)[1] == ["Line 4: C is full, no seat for x"]
    assert {name for _, name in statuses()} == {"y", "z"}


@pytest.mark.django_db(transaction=True)
def test_what_was_committed_when_it_broke_off_stays_and_the_next_run_completes_it(
    write: Write,
) -> None:
    path = write([f"{'ABC'[n % 3]},u{n},student,,active" for n in range(3 * CHUNK_SIZE + 3)], CANVAS)
    chunks = []

    def break_off(number: int) -> None:
        chunks.append(number)
        if len(chunks) == 3:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        enrollment_file(path=path, starts={}) as file,
    ):
        import_file(file=file, refuse=print, on_progress=break_off)
    assert chunks == [CHUNK_SIZE, 1, CHUNK_SIZE]
    assert (stored(), drifts()) == ({"A": CHUNK_SIZE + 1, "B": CHUNK_SIZE}, {})
    summary, _ = load(path)
    assert (summary.unchanged, summary.created) == (2 * CHUNK_SIZE + 1, CHUNK_SIZE + 2)
    assert stored() == dict.fromkeys("ABC", CHUNK_SIZE + 1)


def test_others_enrol_between_the_chunks_of_a_long_import(
    make_course: Callable[..., Course], student: Any, write: Write
) -> None:
    course = make_course(slug="c")
    path = write([f"C,u{n},student,,active" for n in range(2 * CHUNK_SIZE)], CANVAS)
    seen = []

    def meanwhile(number: int) -> None:
        if number:
            seen.append(stored()[course.title])
            enroll(student=student, course=course)

    with enrollment_file(path=path, starts={}) as file:
        import_file(file=file, refuse=print, on_progress=meanwhile)
    assert seen == [CHUNK_SIZE, 2 * CHUNK_SIZE + 1]


def test_the_totals_of_a_large_file_are_exact_and_its_rows_are_not_held(
    db: None, tmp_path: Path
) -> None:
    path = tmp_path / "canvas.csv"
    with path.open("wb") as file:
        expected = canvas_file.write(file, rows=20_000)
    counted = expected.pop("counted")
    refused = Counter()
    with enrollment_file(path=path, starts={}) as opened:
        tracemalloc.start()
        try:
            summary = import_file(file=opened, refuse=lambda row: refused.update([row.number]))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert {name: getattr(summary, name) for name in expected} == expected
    assert len(refused) == refused.total() == expected["rejected"]
    assert (sum(stored().values()), drifts()) == (counted, {})
    # The rows alone would be three times as much.
    assert peak < 5 * 2**20


UNREADABLE = {
    "empty": (b"", "is empty"),
    "only empty lines": (b"\r\n\n", "is empty"),
    "other columns": (b"a,b,c\n1,2,3\n", "has other columns"),
    "semicolons": (HEADER.replace(",", ";").encode() + b"\n", "has other columns"),
    "a column twice": (f"{HEADER},id_student\n".encode(), "has other columns"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "no CSV file in UTF-8"),
    "UTF-16 without its mark": (HEADER.encode("utf-16-le"), "has other columns"),
    "Latin-1": (f"{HEADER},\xe9\n".encode("latin-1"), "in UTF-8: name the right encoding"),
    "an open quote": (b'"a,b,c', "no CSV file: unexpected end of data"),
}


@pytest.mark.parametrize(("content", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_file_changes_nothing(
    db: None, write: Write, content: bytes, reason: str
) -> None:
    with pytest.raises(UnreadableFile, match=reason) as unreadable:
        load(write(content))
    assert len(str(unreadable.value).splitlines()) == 1
    assert not any(everything().values())


# The command ----------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    status = 0
    try:
        call_command("import_enrollments", *map(str, arguments))
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    return status, said.out, said.err


def test_command_says_what_it_did(
    capsys: pytest.CaptureFixture[str], db: None, write: Write
) -> None:
    told = (
        "4 rows: 2 courses and 2 students made, 3 enrollments created, 0 taken up again, "
        "0 withdrawn, 0 updated, 0 unchanged, 0 passed over, 1 refused.\n"
    )
    bad = "Line 5: the number of fields is 1 instead of 5\n"
    path = write([*LINES, "x"])
    dry = call(capsys, path, "--dry-run")
    assert dry == (1, f"Dry run, nothing is changed. It would be: {told}", bad)
    assert not any(everything().values())
    assert call(capsys, path) == (1, told, bad)
    assert rows() == ROWS
    assert call(capsys, write(LINES), "--verbosity", "0") == (0, "", "")


def test_status_1_when_somebody_got_no_seat(
    capsys: pytest.CaptureFixture[str], make_course: Callable[..., Course], write: Write
) -> None:
    make_course(slug="aaa-2013j", capacity=0)
    status, _, error = call(capsys, write(LINES))
    assert (status, error) == (1, "Line 2: AAA-2013J is full, no seat for 11391\n")


def test_command_takes_starts(capsys: pytest.CaptureFixture[str], db: None, write: Write) -> None:
    starts = ["--start", "2013J=2013-10-05", "--start", "Spring=2026-03-01"]
    status, _, _ = call(capsys, write(["AAA,2013J,1,0,", "AAA,Spring,1,0,"]), *starts)
    assert status == 0
    assert [row[3].date() for row in rows()] == [date(2013, 10, 5), date(2026, 3, 1)]


def test_a_report_names_the_refused_rows_as_they_are(
    capsys: pytest.CaptureFixture[str], db: None, write: Write, tmp_path: Path
) -> None:
    report = tmp_path / "refused.csv"
    lines = ["C,u1,student,A,active", 'C,"u,2",student,A,active', "C,u3", "C,t1,teacher,,active"]
    status, out, err = call(capsys, write(lines, CANVAS), "--report", report)
    assert (status, err) == (1, "")
    assert out.endswith("1 passed over, 2 refused.\n")
    with report.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["line", "reason", *CANVAS.split(",")]
    assert [[row[0], *row[2:]] for row in rows] == [
        ["3", "C", "u,2", "student", "A", "active"],
        ["4", "C", "u3"],
    ]
    assert "is no username" in rows[0][1]
    # The report may take the place of the file: what is read is what was there.
    path = write(lines, CANVAS)
    status, out, _ = call(capsys, path, "--report", path)
    assert (status, out.endswith("1 unchanged, 1 passed over, 2 refused.\n")) == (1, True)
    assert len(path.read_text().splitlines()) == 3
    # Nothing to tell: the header says that it was looked for.
    assert call(capsys, write(lines[:1], CANVAS), "--report", report)[0] == 0
    assert len(report.read_text().splitlines()) == 1


def test_a_report_that_can_not_be_written_changes_nothing(
    capsys: pytest.CaptureFixture[str], db: None, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(CommandError, match="can't be written: No such file") as refused:
        call(capsys, write(LINES), "--report", tmp_path / "no" / "report.csv")
    assert refused.value.returncode == 2
    assert not any(everything().values())


def test_no_room_for_the_rows_is_one_line_and_changes_nothing(db: None, write: Write) -> None:
    path = write(f"AAA,2013J,{n},0," for n in range(50_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = manage(
        *("import_enrollments", str(path)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1])),
    )
    assert_usage_error(done, "The rows have no room in a temporary file")


def test_an_encoding_can_be_named(
    capsys: pytest.CaptureFixture[str], db: None, write: Write
) -> None:
    path = write(f"{CANVAS}\nC,Jos\xe9,student,,active\n".encode("cp1252"))
    assert call(capsys, path)[0] == 1
    assert call(capsys, path, "--encoding", "cp1252")[0] == 0
    assert statuses() == {("c", "José"): "active"}
    for unknown in ("cp12521", "rot13"):
        with pytest.raises(CommandError, match="--encoding takes a name like cp1252") as refused:
            call(capsys, path, "--encoding", unknown)
        assert refused.value.returncode == 2


@pytest.mark.parametrize("given", ["2013J", "2013J=", "2013J=soon", "2013J=2013-02-30", ""])
def test_a_start_that_is_no_day(db: None, write: Write, given: str) -> None:
    with pytest.raises(CommandError, match="PRESENTATION=YYYY-MM-DD") as refused:
        call_command("import_enrollments", str(write(LINES)), "--start", given)
    assert refused.value.returncode == 2
    assert not any(everything().values())


@pytest.mark.django_db(transaction=True)
class TestProcess:
    """As it is called: by name, in a process of its own."""

    @pytest.mark.parametrize("kind", ["empty", "other columns", "binary", "Latin-1"])
    def test_bad_files_are_one_line_and_status_2(self, write: Write, kind: str) -> None:
        content, reason = UNREADABLE[kind]
        assert_usage_error(manage("import_enrollments", str(write(content))), reason)
        assert not any(everything().values())

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["missing.csv"], "missing.csv can't be read: No such file or directory."),
            (["."], "can't be read: Is a directory."),
            ([], "the following arguments are required: FILE"),
        ],
    )
    def test_no_file_is_one_line_and_status_2(self, arguments: list[str], reason: str) -> None:
        assert_usage_error(manage("import_enrollments", *arguments), reason)

    def test_a_pipe_can_be_read_once_only(self, write: Write, tmp_path: Path) -> None:
        with write(LINES).open() as file:
            done = manage("import_enrollments", "/dev/stdin", stdin=file)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("3 rows: 2 courses and 2 students made, 3 enrollments")
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        content = write(LINES).read_text()
        threading.Thread(target=pipe.write_text, args=[content], daemon=True).start()
        done = manage("import_enrollments", str(pipe))
        assert (done.returncode, done.stderr) == (0, "")
        assert "3 unchanged" in done.stdout
        assert rows() == ROWS

    def test_standard_input_may_be_packed(self, write: Write, tmp_path: Path) -> None:
        packed = tmp_path / "packed"
        packed.write_bytes(gzip.compress(write(LINES).read_bytes()))
        with packed.open() as file:
            done = manage("import_enrollments", "-", stdin=file)
        assert (done.returncode, done.stderr) == (0, "")
        assert rows() == ROWS

    def test_status_1_when_lines_were_passed_over(self, write: Write) -> None:
        done = manage("import_enrollments", str(write([*LINES, "x"])))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert rows() == ROWS

    def test_no_tables(self, write: Write, tmp_path: Path) -> None:
        with unmigrated_database(tmp_path) as url:
            done = manage("import_enrollments", str(write(LINES)), env={"DATABASE_URL": url})
        assert_usage_error(done, "run manage.py migrate")


def test_database_away(write: Write) -> None:
    url = f"mysql://user:secret@{NOBODY}/catalog"
    done = manage("import_enrollments", str(write(LINES)), env={"DATABASE_URL": url})
    assert_usage_error(done, "The database failed (Can't connect")


@pytest.mark.django_db(transaction=True)
def test_several_imports_and_services_at_once(
    make_course: Callable[..., Course], make_students: Callable[[int], list[Any]], write: Write
) -> None:
    course = make_course(title="AAA-2013J", slug="aaa-2013j")
    path = write(
        [f"{letter}AA,2013J,{n},0,{'' if n % 3 else 9}" for letter in "ABCD" for n in range(300)]
    )
    work = [(load, path)] * 3
    work += [(come_and_go, student.pk, course.pk) for student in make_students(2)]
    run_in_processes(do, work)
    assert stored() == {f"{letter}AA-2013J": 200 for letter in "ABCD"}
    assert drifts() == {}
    assert load(path)[0].unchanged == Enrollment.objects.count() - 2 == 1200


def do(work: Callable[..., object], *arguments: Any) -> None:
    work(*arguments)


def come_and_go(student: int, course: int) -> None:
    for _ in range(20):
        assert enroll(student=student, course=course)[1]
        assert unenroll(student=student, course=course)
