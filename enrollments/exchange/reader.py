"""Reading enrollment files: recognize the format and parse row by row."""

import csv
import re
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError

from courses.models import Course
from enrollments.exchange import FORMATS
from enrollments.exchange.base import EnrollmentRecord, Format

_MAX_ID_LENGTH: Any = Course._meta.get_field("code").max_length
_REPLACEMENT_CHARACTER = "\ufffd"
_MAX_ROW_LINES = 1_000  # more lines are joined by a stray quote, not by a quoted field
_SURROGATES = re.compile("[\ud800-\udfff]")


class UnreadableFile(Exception):
    """The file is not an enrollment file. The message is one line that says why."""


class ParsedRow(NamedTuple):
    """A row about a student."""

    line_number: int  # of the first line of the row
    values: list[str]  # all fields, unchanged
    record: EnrollmentRecord


class SkippedRow(NamedTuple):
    """A row about somebody who is not a student."""

    line_number: int


class RejectedRow(NamedTuple):
    """A row that cannot be imported, and the reason."""

    line_number: int
    reason: str
    values: list[str]

    def __str__(self) -> str:
        return f"Line {self.line_number}: {self.reason}"


@contextmanager
def open_enrollment_file(*, path: Path, encoding: str = "utf-8-sig") -> Iterator["EnrollmentFile"]:
    """Open a file in one of the formats. The path `-` is standard input.

    Raises UnreadableFile.
    """
    with ExitStack() as stack:
        try:
            # Undecodable bytes are replaced, so that only their rows are rejected.
            text = stack.enter_context(
                open(
                    0 if str(path) == "-" else path, encoding=encoding, errors="replace", newline=""
                )
            )
        except (LookupError, OSError) as error:
            raise _unreadable(path, error) from error
        yield EnrollmentFile(path, text)


def _unreadable(path: Path, error: Exception) -> UnreadableFile:
    reason = getattr(error, "strerror", None) or str(error)
    return UnreadableFile(f"{path} cannot be read: {reason}. Nothing was imported.")


class EnrollmentFile:
    """An open file of a known format. Iterate once to get its rows."""

    def __init__(self, path: Path, text: TextIO) -> None:
        self._path = path
        self._text = text
        self._encoding = text.encoding.upper().removesuffix("-SIG")
        self._pushed_back: deque[str] = deque()
        self._row_lines: list[str] = []  # the lines of the current row
        self._line_number = 1  # of its first line
        self.header = self._read_header()
        self._columns = [column.strip().lower() for column in self.header]
        self.format = self._recognize_format()
        self._reject_repeated_columns()

    def __iter__(self) -> Iterator[ParsedRow | SkippedRow | RejectedRow]:
        while True:
            try:
                values = self._read_row()
            except csv.Error as error:
                # Only the line of a stray quote is rejected, not the lines after it.
                line, *others = self._row_lines
                self._row_lines = [line]
                self._pushed_back.extendleft(reversed(others))
                yield RejectedRow(self._line_number, str(error), [line.rstrip("\r\n")])
                continue
            if values is None:
                return
            try:
                yield self._parse(values)
            except ValueError as error:
                yield RejectedRow(self._line_number, str(error), values)

    def _read_header(self) -> list[str]:
        try:
            header = self._read_row()
        except csv.Error as error:
            raise UnreadableFile(f"{self._path} is not a CSV file: {error}.") from error
        if header is None:
            raise UnreadableFile(f"{self._path} is empty. Its first line must name the columns.")
        if _REPLACEMENT_CHARACTER in "".join(header):
            raise UnreadableFile(
                f"{self._path} is not a CSV file in {self._encoding}. Decompress it, or pass its "
                "encoding with --encoding, for example cp1252."
            )
        return header

    def _recognize_format(self) -> Format:
        formats = FORMATS.values()
        for format in formats:
            if all(self._columns.count(name.lower()) == 1 for name in format.required_columns):
                return format
        known = "; ".join(f"{each.name}: {', '.join(each.required_columns)}" for each in formats)
        raise UnreadableFile(
            f"{self._path} is in no known format. Its first line must name all columns of one "
            f"format, once each ({known})."
        )

    def _reject_repeated_columns(self) -> None:
        for column in self.format.columns:
            if self._columns.count(column.lower()) > 1:
                raise UnreadableFile(
                    f"{self._path} has more than one column {column}. Rename or remove the others."
                )

    def _read_row(self) -> list[str] | None:
        """Return the fields of the next row that is not empty. Raises csv.Error."""
        values: list[str] | None = []
        while values == []:
            self._line_number += len(self._row_lines)
            self._row_lines = []
            values = next(csv.reader(self._lines(), strict=True), None)
        return values

    def _lines(self) -> Iterator[str]:
        while len(self._row_lines) < _MAX_ROW_LINES and (
            line := self._pushed_back.popleft() if self._pushed_back else self._read_line()
        ):
            self._row_lines.append(line)
            yield line
            if self._pushed_back:
                # The row has a quote that is still open. The lines after it were pushed back
                # because an open quote led to an error there. Reading all of them again for each
                # such row would take quadratic time.
                return

    def _read_line(self) -> str:
        try:
            line = self._text.readline()
        except (OSError, UnicodeError) as error:
            raise _unreadable(self._path, error) from error
        # Some encodings, such as UTF-7, decode halves of characters.
        return _SURROGATES.sub(_REPLACEMENT_CHARACTER, line)

    def _parse(self, values: list[str]) -> ParsedRow | SkippedRow:
        if len(values) != len(self._columns):
            # The quotes may be stray, or enclose a field of several lines.
            lines = len(self._row_lines)
            cause = f", because quotes join {lines} lines into one row" if lines > 1 else ""
            raise ValueError(f"expected {len(self._columns)} fields, found {len(values)}{cause}")
        if _REPLACEMENT_CHARACTER in "".join(values):
            raise ValueError(f"not in {self._encoding}: pass the encoding with --encoding")
        fields = {name: value.strip() for name, value in zip(self._columns, values, strict=True)}
        record = self.format.parse(
            {column: fields.get(column.lower(), "") for column in self.format.columns}
        )
        if record is None:
            return SkippedRow(self._line_number)
        _validate_course_id(record.course_id)
        _validate_username(record.username)
        return ParsedRow(self._line_number, values, record)


def _validate_course_id(course_id: str) -> None:
    if not course_id or len(course_id) > _MAX_ID_LENGTH or not course_id.isprintable():
        raise ValueError(
            f"{course_id!r:.80} is not a course ID: use 1 to {_MAX_ID_LENGTH} printable characters"
        )


def _validate_username(username: str) -> None:
    try:
        get_user_model()._meta.get_field("username").clean(username, None)
    except ValidationError as error:
        raise ValueError(f"{username!r:.80} is not a username: {error.messages[0]}") from None
