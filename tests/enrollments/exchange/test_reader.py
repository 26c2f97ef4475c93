import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enrollments.exchange import reader
from enrollments.exchange.reader import (
    EnrollmentFile,
    ParsedRow,
    RejectedRow,
    SkippedRow,
    UnreadableFile,
    open_enrollment_file,
)
from tests.support.exchange import (
    CANVAS_HEADER,
    ONEROSTER_HEADER,
    OPEN_UNIVERSITY_HEADER,
    read_rows,
)

FIRST_LINE = "C1,u1,student,S1,active"
LINES = [CANVAS_HEADER, FIRST_LINE, "C1,u2,student,S1,active"]
TWO_STUDENTS = [(2, "u1"), (3, "u2")]

WriteFile = Callable[..., Path]


def describe(rows: list[ParsedRow | SkippedRow | RejectedRow]) -> list[tuple[int, str]]:
    """Return the line number of each row, and its student or why it was rejected."""
    return [
        (row.line_number, row.reason if isinstance(row, RejectedRow) else row.record.username)
        for row in rows
    ]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES).encode(),
        "\r\n".join([*LINES, ""]).encode(),
        "\r".join([*LINES, ""]).encode(),
        "\r\n".join([*LINES, ""]).encode("utf-8-sig"),
        b"\xef\xbb\xbf" + "\n".join(f'"{n}"'.replace(",", '","') for n in LINES).encode(),
    ],
    ids=["LF", "CRLF", "CR", "BOM", "BOM quoted"],
)
def test_reads_every_line_ending_and_byte_order_mark(write_file: WriteFile, content: bytes) -> None:
    assert describe(read_rows(write_file(content))) == TWO_STUDENTS


def test_columns_are_found_in_any_order_and_case_beside_others(write_file: WriteFile) -> None:
    header = "root_account,STATUS,User_ID,associated_user_id,Role, course_id ,start_date,role_id"
    line = ",active, u1 ,,Student,C1,2026-01-01T00:00:00Z,3"
    (row,) = read_rows(write_file(header, line))
    assert row.record[:2] == ("C1", "u1")
    assert row.record.status == "active"


def test_empty_lines_are_not_rows_but_are_numbered(write_file: WriteFile) -> None:
    content = f"\n{CANVAS_HEADER}\n\n{FIRST_LINE}\r\n\r\n\nC1,u2,student,S1,asleep\n\nC1,u3,student"
    rows = read_rows(write_file(f"{content},,active"))
    assert [row.line_number for row in rows] == [4, 7, 9]


def test_quoted_fields_may_contain_newlines_and_quotes(write_file: WriteFile) -> None:
    content = f'{CANVAS_HEADER},note\n{FIRST_LINE},"one\ntwo\r\n\nthree"\n'
    content += 'C1,u2,student,S1,active,"a ""b"""\n'
    assert describe(read_rows(write_file(content))) == [(2, "u1"), (6, "u2")]


def test_stray_quote_rejects_its_own_line_only(write_file: WriteFile) -> None:
    content = f'{CANVAS_HEADER}\n{FIRST_LINE}\nC1,"u2,student,S1,active\nC1,u3,student,S1,active\n'
    content += 'C1,"u4"x,student,S1,active\nC1,u5,student,S1,active\n'
    assert describe(read_rows(write_file(content))) == [
        (2, "u1"),
        (3, "',' expected after '\"'"),
        (4, "u3"),
        (5, "',' expected after '\"'"),
        (6, "u5"),
    ]


def test_rows_after_a_stray_quote_are_read_as_if_alone(write_file: WriteFile) -> None:
    lines = ['C1,"u2', "C1,u3,student,S1,active", 'C1,"u4",student,S1,active', 'x","', 'x","', "y"]
    rows = describe(read_rows(write_file("\n".join([CANVAS_HEADER, *lines, FIRST_LINE]))))
    assert rows == [
        (2, "',' expected after '\"'"),
        (3, "u3"),
        (4, "u4"),
        (5, "unexpected end of data"),
        (6, "unexpected end of data"),
        (7, "expected 5 fields, found 1"),
        (8, "u1"),
    ]


@pytest.mark.parametrize("line", ['a","', '"a', '",a', 'a,"b', 'a"b","', '"a"","', FIRST_LINE])
def test_reading_takes_linear_time_whatever_quotes_are_open(
    write_file: WriteFile, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    lines_parsed = 0

    class CountingFile(EnrollmentFile):
        def _lines(self) -> Iterator[str]:
            nonlocal lines_parsed
            for line in super()._lines():
                lines_parsed += 1
                yield line

    monkeypatch.setattr(reader, "EnrollmentFile", CountingFile)
    read_rows(write_file("\n".join([CANVAS_HEADER, 'a,"', *[line] * 1_000])))
    assert lines_parsed <= 3 * 1_000


def test_stray_quote_does_not_load_the_whole_file(write_file: WriteFile) -> None:
    path = write_file("\n".join([CANVAS_HEADER, *['a","'] * 100_000, FIRST_LINE]))
    with open_enrollment_file(path=path) as file:
        tracemalloc.start()
        try:
            number = sum(1 for _ in file)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert number == 100_001
    assert peak < 2**20


def test_lines_inside_quotes_are_not_rows(write_file: WriteFile) -> None:
    content = f'{CANVAS_HEADER}\nC1,u1,student,"S1\nC2,u2,student,S1,deleted\n"\n'
    content += "C1,u3,student,S1,active\n"
    assert describe(read_rows(write_file(content))) == [
        (2, "expected 5 fields, found 4, because quotes join 3 lines into one row"),
        (5, "u3"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("C1,u2,stud", "expected 5 fields, found 3"),
        ("C1,u2,student,S1,act", "status 'act' is not one of"),
        ('C1,"u2', "unexpected end of data"),
    ],
)
def test_truncated_last_line_is_rejected(write_file: WriteFile, line: str, reason: str) -> None:
    first, last = read_rows(write_file(f"{CANVAS_HEADER}\n{FIRST_LINE}\n{line}"))
    assert (first.record.username, last.line_number) == ("u1", 3)
    assert reason in last.reason


def test_undecodable_bytes_reject_their_own_line_only(write_file: WriteFile) -> None:
    content = f"{CANVAS_HEADER}\n{FIRST_LINE}\nC1,Jos\xe9,student,S1,active\n{FIRST_LINE}\n"
    path = write_file(content.encode("cp1252"))
    reason = "not in UTF-8: pass the encoding with --encoding"
    assert describe(read_rows(path)) == [(2, "u1"), (3, reason), (4, "u1")]
    for encoding in ("cp1252", "latin-1"):
        assert describe(read_rows(path, encoding=encoding))[1] == (3, "José")


def test_bytes_without_a_character_in_the_encoding_are_rejected(write_file: WriteFile) -> None:
    path = write_file(f"{CANVAS_HEADER}\n".encode() + b"C1,u\x81,student,,active\n")
    (row,) = read_rows(path, encoding="cp1252")
    assert row.reason == "not in CP1252: pass the encoding with --encoding"


def test_half_a_character_at_the_end_of_utf_16_is_rejected(write_file: WriteFile) -> None:
    content = "\n".join(LINES).encode("utf-16") + b"x"
    first, last = read_rows(write_file(content), encoding="utf-16")
    assert (first.record.username, last.line_number) == ("u1", 3)


def test_halves_of_characters_are_rejected(write_file: WriteFile) -> None:
    path = write_file(f"{CANVAS_HEADER}\nC1,u1,student,+2AA-,active\n".encode())
    (row,) = read_rows(path, encoding="utf-7")
    assert row.reason == "not in UTF-7: pass the encoding with --encoding"
    "".join(row.values).encode()  # for the report


def test_huge_field_is_rejected(write_file: WriteFile) -> None:
    huge = "x" * 3_000_000
    content = f"{CANVAS_HEADER}\n{FIRST_LINE}\n{huge}\nC1,u3,student,S1,active\nC1,{huge}"
    rows = read_rows(write_file(content))
    reason = "field larger than field limit (131072)"
    assert describe(rows) == [(2, "u1"), (3, reason), (4, "u3"), (5, reason)]


@pytest.mark.parametrize("content", [CANVAS_HEADER, f"{ONEROSTER_HEADER}\r\n\r\n"])
def test_file_with_only_a_header_has_no_rows(write_file: WriteFile, content: str) -> None:
    assert read_rows(write_file(content)) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty. Its first line must name the columns."),
        (b"\n\r\n", "is empty"),
        (b"\0" * 20, "is in no known format"),
        (b"a,b,c\n1,2,3\n", "is in no known format"),
        (f"{CANVAS_HEADER},user_id\n".encode(), "columns of one format, once each (canvas: "),
        (f"{OPEN_UNIVERSITY_HEADER},id_student\n".encode(), "is in no known format"),
        (f"{CANVAS_HEADER},Section_ID\n".encode(), "has more than one column section_id. Rename"),
        (OPEN_UNIVERSITY_HEADER.replace(",", ";").encode(), "is in no known format"),
        (OPEN_UNIVERSITY_HEADER.encode("utf-16-le"), "is in no known format"),
        (
            b"\x89PNG\r\n\x1a\n\x00\xff",
            "is not a CSV file in UTF-8. Decompress it, or pass its encoding with",
        ),
        (f"{CANVAS_HEADER},\xe9\n".encode("latin-1"), "is not a CSV file in UTF-8"),
        (b'"a,b,c', "is not a CSV file: unexpected end of data"),
        (b"\x1f\x8b\x08\x00", "is not a CSV file in UTF-8"),
        (OPEN_UNIVERSITY_HEADER.encode("utf-16"), "is not a CSV file in UTF-8"),
    ],
)
def test_unreadable_file_raises_with_one_line(
    write_file: WriteFile, content: bytes, reason: str
) -> None:
    with pytest.raises(UnreadableFile) as unreadable:
        read_rows(write_file(content))
    assert reason in str(unreadable.value)
    assert len(str(unreadable.value).splitlines()) == 1
