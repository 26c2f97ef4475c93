import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from enrollments.exchange.reader import (
    PassedOver,
    Refused,
    Row,
    UnreadableFile,
    enrollment_file,
    slug_of,
)

CANVAS = "course_id,user_id,role,section_id,status"
ONEROSTER = (
    "sourcedId,status,dateLastModified,classSourcedId,schoolSourcedId,userSourcedId,"
    "role,primary,beginDate,endDate"
)
GOOD = "C1,u1,student,S1,active"

Read = Callable[..., list[Row | PassedOver | Refused]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(content: str | bytes, encoding: str | None = None) -> list[Row | PassedOver | Refused]:
        path = tmp_path / "enrollments.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with enrollment_file(path=path, encoding=encoding, starts={}) as file:
            return list(file)

    return read


def told(rows: list[Row | PassedOver | Refused]) -> list[tuple[int, str]]:
    """The line of each row, and its student or why it was refused."""
    return [
        (row.number, row.student if isinstance(row, Row) else getattr(row, "reason", "passed over"))
        for row in rows
    ]


# Canvas ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "status"),
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
def test_canvas_statuses(read: Read, given: str, status: str) -> None:
    (row,) = read(f"{CANVAS}\nC1,u1,student,S1,{given}\n")
    assert (row.course, row.title, row.student, row.status) == ("c1", "C1", "u1", status)
    assert (row.enrollment_date, row.withdrawal_date, row.subject) == (None, None, "")


def test_canvas_columns_in_any_order_and_case_with_others_beside_them(read: Read) -> None:
    columns = "root_account,STATUS,User_ID,associated_user_id,Role, course_id ,start_date,role_id"
    (row,) = read(f"{columns}\n,active, u1 ,,Student,C1,2026-01-01T00:00:00Z,3\n")
    assert (row.title, row.student, row.status) == ("C1", "u1", "active")


@pytest.mark.parametrize("role", ["teacher", "ta", "observer", "designer", "Lab Partner"])
def test_canvas_roles_other_than_student_are_passed_over(read: Read, role: str) -> None:
    # Even where the rest makes no sense: it is about nobody that is counted here.
    assert read(f"{CANVAS}\nC1,,{role},,asleep\n") == [PassedOver(2)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("C1,u1,student,S1,asleep", "status 'asleep' is none of active, completed, concluded,"),
        ("C1,u1,student,S1,", "status '' is none of"),
        ("C1,u1,,S1,active", "role is empty: a role_id alone does not say whose it is"),
        (",u1,student,S1,active", "course_id is empty: a section_id alone does not say which"),
        ("C1,,student,S1,active", "'' is no username: This field cannot be blank."),
        ("C1,u 1,student,S1,active", "'u 1' is no username: Enter a valid username."),
        ("C1,u\0,student,S1,active", r"'u\x00' is no username"),
        (f"C1,{'u' * 151},student,S1,active", "is no username: Ensure this value has at most 150"),
        ("C\0,u1,student,S1,active", r"'C\x00' is no id of a course: 1 to 200 printable"),
        ('"C\n1",u1,student,S1,active', r"'C\n1' is no id of a course"),
        (f"{'C' * 201},u1,student,S1,active", "is no id of a course"),
        ("C1,u1,student", "the number of fields is 3 instead of 5"),
        ("   ", "the number of fields is 1 instead of 5"),
    ],
)
def test_a_bad_canvas_row_is_refused_and_the_others_are_read(
    read: Read, line: str, reason: str
) -> None:
    first, bad, last = read(f"{CANVAS}\n{GOOD}\n{line}\nC1,u2,student,S1,active\n")
    assert (first.student, last.student) == ("u1", "u2")
    assert str(bad).startswith("Line 3: ")
    assert reason in bad.reason
    assert [field.strip() for field in bad.values] == [
        field.strip('" ') for field in line.split(",")
    ]


# OneRoster ------------------------------------------------------------------------------


def test_oneroster_bulk(read: Read) -> None:
    (row,) = read(f"{ONEROSTER}\ne1,,,class 1,school,u1,student,,2026-01-05,2026-06-30\n")
    assert (row.title, row.student, row.status) == ("class 1", "u1", "active")
    assert row.enrollment_date == datetime(2026, 1, 5, tzinfo=UTC)
    assert row.withdrawal_date is None


def test_oneroster_delta(read: Read) -> None:
    rows = read(
        f"{ONEROSTER}\n"
        "e1,active,2026-01-05T10:00:00.000Z,k1,s,u1,student,false,,\n"
        "e2,tobedeleted,2026-01-05T10:00:00.000Z,k1,s,u2,student,false,,\n"
        "e3,tobedeleted,2026-01-05T10:00:00.000+02:00,k1,s,u3,student,false,,2026-01-04\n"
        "e4,inactive,,k1,s,u4,student,false,,\n"
        "e5,active,2026-01-05T10:00:00.000Z,k1,s,t1,teacher,true,,\n"
    )
    ten = datetime(2026, 1, 5, 10, tzinfo=UTC)
    assert [(row.student, row.status, row.withdrawal_date) for row in rows[:4]] == [
        ("u1", "active", None),
        ("u2", "withdrawn", ten),
        ("u3", "withdrawn", datetime(2026, 1, 4, tzinfo=UTC)),
        ("u4", "withdrawn", None),
    ]
    assert rows[4] == PassedOver(6)


def test_oneroster_needs_no_more_than_its_keys(read: Read) -> None:
    (row,) = read("role,userSourcedId,classSourcedId,sourcedId\nstudent,u1,k1,e1\n")
    assert (row.student, row.status) == ("u1", "active")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",,,k1,s,u1,student,,,", "sourcedId is empty"),
        ("e1,,,k1,s,u1,,,,", "role is empty"),
        ("e1,gone,,k1,s,u1,student,,,", "status 'gone' is none of active, completed, tobedeleted"),
        ("e1,,,k1,s,u1,student,,soon,", "beginDate 'soon' is no date: YYYY-MM-DD"),
        ("e1,,,k1,s,u1,student,,,2026-02-30", "endDate '2026-02-30' is no date"),
        ("e1,tobedeleted,now,k1,s,u1,student,,,", "dateLastModified 'now' is no date"),
        ("e1,active,0001-01-01T00:00:00+05:00,k1,s,u1,student,,,", "is no date"),
    ],
)
def test_a_bad_oneroster_row_is_refused(read: Read, line: str, reason: str) -> None:
    (bad,) = read(f"{ONEROSTER}\n{line}\n")
    assert reason in bad.reason


# Ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize("course_id", ["MATH-101", "math_101", "2026"])
def test_an_id_that_can_be_a_slug_is_it(course_id: str) -> None:
    assert slug_of(course_id) == course_id.lower()


def test_ids_that_look_alike_are_different_courses() -> None:
    ids = ["Math 101", "Math.101", "Mäth 101", "math-101", "数学", "物理", "a" * 200, "a " * 100]
    slugs = {slug_of(course_id) for course_id in ids}
    assert len(slugs) == len(ids)
    assert all(len(slug) <= 200 and slug.isascii() for slug in slugs)
    assert slug_of("MATH 101") == slug_of("Math 101") == "math-101-9f22adf3"


# Every kind of mess ---------------------------------------------------------------------


TWO = [(2, "u1"), (3, "u2")]
LINES = [CANVAS, GOOD, "C1,u2,student,S1,active"]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES).encode(),
        "\r\n".join([*LINES, ""]).encode(),
        "\r".join([*LINES, ""]).encode(),
        "\r\n".join([*LINES, ""]).encode("utf-8-sig"),
        "\r\n".join([*LINES, ""]).encode("utf-16"),
        b"\xfe\xff" + "\n".join(LINES).encode("utf-16-be"),
        b"\xef\xbb\xbf" + "\n".join(f'"{n}"'.replace(",", '","') for n in LINES).encode(),
    ],
    ids=["LF", "CRLF", "CR", "BOM", "UTF-16", "UTF-16 BE", "BOM quoted"],
)
def test_ends_of_lines_and_marks(read: Read, content: bytes) -> None:
    assert told(read(content)) == TWO


def test_empty_lines_are_no_rows_and_lines_are_numbered_as_they_stand(read: Read) -> None:
    content = f"\n{CANVAS}\n\n{GOOD}\r\n\r\n\nC1,u2,student,S1,asleep\n\nC1,u3,student,,active"
    first, bad, last = read(content)
    assert (first.number, bad.number, last.number) == (4, 7, 9)


def test_quoted_newlines_are_part_of_a_field(read: Read) -> None:
    content = f'{CANVAS},note\n{GOOD},"one\ntwo\r\n\nthree"\nC1,u2,student,S1,active,"a ""b"""\n'
    assert told(read(content)) == [(2, "u1"), (6, "u2")]


def test_a_quote_that_is_never_closed_costs_its_own_line_only(read: Read) -> None:
    content = f'{CANVAS}\n{GOOD}\nC1,"u2,student,S1,active\nC1,u3,student,S1,active\n'
    content += 'C1,"u4"x,student,S1,active\nC1,u5,student,S1,active\n'
    assert told(read(content)) == [
        (2, "u1"),
        (3, "',' expected after '\"'"),
        (4, "u3"),
        (5, "',' expected after '\"'"),
        (6, "u5"),
    ]


def test_what_stands_in_quotes_is_nobodys_row(read: Read) -> None:
    content = f'{CANVAS}\nC1,u1,student,"S1\nC2,u2,student,S1,deleted\n"\nC1,u3,student,S1,active\n'
    assert told(read(content)) == [
        (2, "the number of fields is 4 instead of 5, for quotes make lines 2 to 4 one row"),
        (5, "u3"),
    ]


def test_a_last_line_that_is_cut_off(read: Read) -> None:
    for cut, reason in [
        ("C1,u2,stud", "the number of fields is 3 instead of 5"),
        ("C1,u2,student,S1,act", "status 'act' is none of"),
        ('C1,"u2', "unexpected end of data"),
    ]:
        good, bad = read(f"{CANVAS}\n{GOOD}\n{cut}")
        assert (good.student, bad.number) == ("u1", 3)
        assert reason in bad.reason


def test_bytes_that_are_not_utf_8_cost_their_own_line_only(read: Read) -> None:
    content = f"{CANVAS}\n{GOOD}\nC1,Jos\xe9,student,S1,active\nC1,u3,student,S1,active\n"
    content = content.encode("cp1252")
    first, bad, last = read(content)
    assert (first.student, bad.number, last.student) == ("u1", 3, "u3")
    assert bad.reason == "it is not in UTF-8: name the right encoding with --encoding"
    assert told(read(content, "cp1252"))[1] == (3, "José")
    assert told(read(content, "latin-1"))[1] == (3, "José")
    # One byte is nothing in this encoding, either.
    (bad,) = read(f"{CANVAS}\n".encode() + b"C1,u\x81,student,,active\n", "cp1252")
    assert bad.reason == "it is not in CP1252: name the right encoding with --encoding"


def test_half_a_character_at_the_end_of_utf_16(read: Read) -> None:
    good, bad = read(f"{CANVAS}\n{GOOD}\nC1,u2,student,S1,active".encode("utf-16") + b"x")
    assert (good.student, bad.number) == ("u1", 3)


def test_a_line_without_end_is_refused_and_not_held(read: Read) -> None:
    huge = "x" * 3_000_000
    content = f"{CANVAS}\n{GOOD}\n{huge}\nC1,u3,student,S1,active\nC1,{huge}"
    rows = read(content)
    assert [row.number for row in rows] == [2, 3, 4, 5]
    assert rows[1].reason == rows[3].reason == "the line is longer than 131072 characters"
    assert len(rows[1].values[0]) == 131_072
    assert rows[2].student == "u3"


def test_a_file_of_a_header_has_no_rows(read: Read) -> None:
    assert read(CANVAS) == read(f"{ONEROSTER}\r\n\r\n") == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty: not even its columns are named."),
        (b"\n\r\n", "is empty"),
        (b"\0" * 20, "has other columns"),
        (f"{CANVAS},user_id\n".encode(), "name, once each, those of a known format (canvas: "),
        (b"\x1f\x8b\x08\x00", "can't be read: Compressed file ended before"),
        (gzip.compress(f"{CANVAS}\n".encode() * 99)[:-9], "can't be read: Compressed file ended"),
        (b"BZh91AY&SY" + b"x" * 99, "can't be read: Invalid data stream."),
        (lzma.compress(CANVAS.encode())[:-9], "can't be read: Compressed file ended"),
        (b"PK\x03\x04", "can't be read: File is not a zip file."),
    ],
)
def test_what_can_not_be_read_is_said_in_one_line(read: Read, content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableFile) as unreadable:
        read(content)
    assert reason in str(unreadable.value)
    assert len(str(unreadable.value).splitlines()) == 1


# Packed ---------------------------------------------------------------------------------


def zipped(**members: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return packed.getvalue()


PLAIN = "\n".join([*LINES, ""])


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(PLAIN.encode()),
        bz2.compress(PLAIN.encode()),
        lzma.compress(PLAIN.encode()),
        gzip.compress(PLAIN.encode("utf-16")),
        zipped(anything_txt=PLAIN),
        zipped(manifest_csv="a,b", Enrollments_csv=PLAIN),
    ],
    ids=["gzip", "bzip2", "xz", "gzip of UTF-16", "zip", "zip of OneRoster"],
)
def test_packed_files_are_read_as_they_are(read: Read, content: bytes) -> None:
    assert told(read(content)) == TWO


@pytest.mark.parametrize("members", [{}, {"a_csv": PLAIN, "b_csv": PLAIN}])
def test_a_zip_of_none_or_many_is_refused(read: Read, members: dict[str, str]) -> None:
    with pytest.raises(UnreadableFile, match=r"zip"):
        read(zipped(**members))
