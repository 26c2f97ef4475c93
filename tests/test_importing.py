import os
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from courses.models import Course, Subject
from enrollments.importing import (
    BadLine,
    Summary,
    UnreadableFile,
    import_registrations,
    read_registrations,
)
from enrollments.models import Enrollment
from enrollments.services import CHUNK, enroll, unenroll
from tests.commands import NOBODY, assert_refused, everything, manage, no_tables
from tests.conftest import drifts
from tests.processes import run_in_processes

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
    path: Path, *, dry_run: bool = False, starts: dict[str, date] | None = None
) -> tuple[Summary, list[str]]:
    """Import the file; return what was done, and what was passed over."""
    passed_over: list[BadLine] = []
    looked_at: list[int] = []
    summary = import_registrations(
        lines=read_registrations(path=path, starts=starts or {}),
        dry_run=dry_run,
        complain=passed_over.append,
        looked_at=looked_at.append,
    )
    assert sum(looked_at) == summary.lines
    return summary, [str(line) for line in passed_over]


def rows() -> list[tuple[Any, ...]]:
    names = ["course__title", "student__username", "status", "enrollment_date", "withdrawal_date"]
    return list(Enrollment.objects.order_by(*names[:2]).values_list(*names))


def stored() -> dict[str, int]:
    return dict(Course.objects.values_list("title", "total_enrollments"))


def test_makes_courses_students_and_rows(db: None, write: Write) -> None:
    assert load(write(LINES)) == (
        Summary(lines=3, courses_made=2, students_made=2, created=3),
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
    assert (rows(), passed_over, summary.lines) == (ROWS, [], 3)


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
    assert load(path) == (Summary(lines=3, unchanged=3), [])
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
    assert summary == Summary(lines=4, withdrawn=1, taken_up=1, updated=1, unchanged=1)
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
    assert (summary.bad, summary.lines, rows()) == (1, 4, ROWS)


def test_names_that_differ_in_case_are_one_course(db: None, write: Write) -> None:
    path = write(["AAA,2013J,1,0,", "aaa,2013J,2,0,"])
    load(path)
    assert stored() == {"AAA-2013J": 2}
    assert load(path)[0].unchanged == 2


def test_a_full_course_takes_no_more(make_course: Callable[..., Course], write: Write) -> None:
    make_course(title="Full", slug="aaa-2013j", capacity=2)
    path = write([f"AAA,2013J,{n},0," for n in range(1, 5)])
    summary, passed_over = load(path)
    assert summary == Summary(lines=4, students_made=4, created=2, refused=2)
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
    assert load(path) == (Summary(lines=2, students_made=1, created=1, withdrawn=1), [])
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
        *(11, 2, 2),
        **{"created": 3, "taken_up": 1, "withdrawn": 1, "unchanged": 3, "refused": 1, "bad": 2},
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
    number = CHUNK + 500
    path = write(f"AAA,2013J,{n},0,{'' if n % 2 else n % 9}" for n in range(number))
    assert load(path)[0].created == number
    assert (stored(), drifts()) == ({"AAA-2013J": number // 2}, {})
    assert load(path)[0].unchanged == number


UNREADABLE = {
    "empty": (b"", "has other columns"),
    "other columns": (b"a,b,c\n1,2,3\n", "has other columns"),
    "semicolons": (HEADER.replace(",", ";").encode() + b"\n", "has other columns"),
    "a column twice": (f"{HEADER},id_student\n".encode(), "has other columns"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "no CSV file in UTF-8 from line 1 on"),
    "UTF-16": (HEADER.encode("utf-16"), "no CSV file in UTF-8 from line 1 on"),
    "Latin-1": (f"{HEADER},\xe9\n".encode("latin-1"), "no CSV file in UTF-8 from line 1 on"),
    "quote": (f'{HEADER}\n{LINES[0]}\n"A"A,2013J,1,0,\n'.encode(), "from line 3 on"),
    "cut off": (f'{HEADER}\n{LINES[0]}\n"AAA","20'.encode(), "from line 3 on: unexpected end"),
    "huge": (f"{HEADER}\n{LINES[0]}\n{'A' * 132_000}".encode(), "from line 3 on: field larger"),
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
        "4 lines: 2 courses and 2 students made, 3 enrolments created, 0 taken up again, "
        "0 withdrawn, 0 updated, 0 unchanged, 0 without a seat, 1 bad lines.\n"
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


@pytest.mark.parametrize("given", ["2013J", "2013J=", "2013J=soon", "2013J=2013-02-30", ""])
def test_a_start_that_is_no_day(db: None, write: Write, given: str) -> None:
    with pytest.raises(CommandError, match="PRESENTATION=YYYY-MM-DD") as refused:
        call_command("import_enrollments", str(write(LINES)), "--start", given)
    assert refused.value.returncode == 2
    assert not any(everything().values())


@pytest.mark.django_db(transaction=True)
class TestProcess:
    """As it is called: by name, in a process of its own."""

    @pytest.mark.parametrize("kind", ["empty", "other columns", "binary", "cut off"])
    def test_bad_files_are_one_line_and_status_2(self, write: Write, kind: str) -> None:
        content, reason = UNREADABLE[kind]
        assert_refused(manage("import_enrollments", str(write(content))), reason)
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
        assert_refused(manage("import_enrollments", *arguments), reason)

    def test_a_pipe_can_be_read_once_only(self, write: Write, tmp_path: Path) -> None:
        with write(LINES).open() as file:
            done = manage("import_enrollments", "/dev/stdin", stdin=file)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("3 lines: 2 courses and 2 students made, 3 enrolments")
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        content = write(LINES).read_text()
        threading.Thread(target=pipe.write_text, args=[content], daemon=True).start()
        done = manage("import_enrollments", str(pipe))
        assert (done.returncode, done.stderr) == (0, "")
        assert "3 unchanged" in done.stdout
        assert rows() == ROWS

    def test_status_1_when_lines_were_passed_over(self, write: Write) -> None:
        done = manage("import_enrollments", str(write([*LINES, "x"])))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert rows() == ROWS

    def test_no_tables(self, write: Write, tmp_path: Path) -> None:
        with no_tables(tmp_path) as url:
            done = manage("import_enrollments", str(write(LINES)), env={"DATABASE_URL": url})
        assert_refused(done, "run manage.py migrate")


def test_database_away(write: Write) -> None:
    url = f"mysql://user:secret@{NOBODY}/catalogue"
    done = manage("import_enrollments", str(write(LINES)), env={"DATABASE_URL": url})
    assert_refused(done, "The database does not answer as it should (Can't connect")


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
