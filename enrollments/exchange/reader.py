"""Reading enrollment files: decompress, decode, recognize the format and parse row by row."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError

from enrollments.exchange import FORMATS
from enrollments.exchange.base import EnrollmentRecord, Format, make_slug

# In characters. Longer lines are rejected, and not kept in memory.
_MAX_LINE_LENGTH = csv.field_size_limit()
_REPLACEMENT_CHARACTER = "\ufffd"
_READ_ERRORS = (EOFError, OSError, UnicodeError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


class UnreadableFile(Exception):
    """The file is not an enrollment file. The message is one line that says why."""


class ParsedRow(NamedTuple):
    """A row about a student."""

    line_number: int  # of the first line of the row
    values: list[str]  # all fields, unchanged
    slug: str  # of the course
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
def open_enrollment_file(*, path: Path, encoding: str | None = None) -> Iterator["EnrollmentFile"]:
    """Open a file in one of the formats.

    The file may be compressed with gzip, bzip2 or xz, or be in a zip file. The path `-` is
    standard input. `encoding` defaults to UTF-8, or UTF-16 if the file has its byte order mark.
    Raises UnreadableFile, here and while the file is read.
    """
    with ExitStack() as stack:
        with _report_unreadable(path):
            stream: Any = _decompress(path, stack)
            if encoding is None:
                mark = stream.peek(2)[:2]
                is_utf16 = mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                encoding = "utf-16" if is_utf16 else "utf-8"
            if codecs.lookup(encoding).name == "utf-8":
                encoding = "utf-8-sig"
            # Only the rows with undecodable bytes are rejected.
            text = io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline="")
        yield EnrollmentFile(path, text)


class EnrollmentFile:
    """An open file of a known format. Iterate once to get its rows."""

    def __init__(self, path: Path, text: io.TextIOWrapper) -> None:
        self.path = path
        self.encoding = text.encoding.upper().removesuffix("-SIG")
        self._lines = _Lines(text)
        self._reader = csv.reader(self._lines, strict=True)
        with _report_unreadable(path):
            self.header = self._read_header()
        columns = [column.strip().lower() for column in self.header]
        self.format = self._recognize_format(columns)
        # Missing columns get the index of an empty value that is added to each row.
        self._indexes = {
            column: columns.index(column.lower()) if column.lower() in columns else len(columns)
            for column in self.format.columns
        }

    def __iter__(self) -> Iterator[ParsedRow | SkippedRow | RejectedRow]:
        with _report_unreadable(self.path):
            while (row := self._next_row()) is not None:
                yield row

    def _read_header(self) -> list[str]:
        try:
            header = next((values for values in self._reader if values), None)
        except csv.Error as error:
            raise UnreadableFile(f"{self.path} is not a CSV file: {error}.") from error
        if header is None:
            raise UnreadableFile(f"{self.path} is empty. Its first line must name the columns.")
        if _REPLACEMENT_CHARACTER in "".join(header):
            raise UnreadableFile(
                f"{self.path} is not a CSV file in {self.encoding}. Pass its encoding with "
                "--encoding, for example cp1252."
            )
        return header

    def _recognize_format(self, columns: list[str]) -> Format:
        formats = FORMATS.values()
        for format in formats:
            if all(columns.count(column.lower()) == 1 for column in format.required_columns):
                return format
        known = "; ".join(f"{each.name}: {', '.join(each.required_columns)}" for each in formats)
        raise UnreadableFile(
            f"{self.path} is in no known format. Its first line must name all columns of one "
            f"format, once each ({known})."
        )

    def _next_row(self) -> ParsedRow | SkippedRow | RejectedRow | None:
        values: list[str] = []
        while not values:
            self._lines.start_row()
            try:
                values = next(self._reader)
            except StopIteration:
                return None
            except csv.Error as error:
                # Only the line of a stray quote is rejected, not the lines after it.
                line = self._lines.push_back_all_but_first()
                return RejectedRow(self._lines.row_number, str(error), [line.rstrip("\r\n")])
        try:
            return self._parse(values)
        except ValueError as error:
            return RejectedRow(self._lines.row_number, str(error), values)

    def _parse(self, values: list[str]) -> ParsedRow | SkippedRow:
        if len(values) != len(self.header):
            # The quotes may be stray, or enclose a field of several lines.
            lines = len(self._lines.row)
            cause = f", because quotes join {lines} lines into one row" if lines > 1 else ""
            raise ValueError(f"expected {len(self.header)} fields, found {len(values)}{cause}")
        if _REPLACEMENT_CHARACTER in "".join(values):
            raise ValueError(f"not in {self.encoding}: pass the encoding with --encoding")
        fields = [*values, ""]
        record = self.format.parse(
            {column: fields[index].strip() for column, index in self._indexes.items()}
        )
        if record is None:
            return SkippedRow(self._lines.row_number)
        _validate_username(record.username)
        return ParsedRow(self._lines.row_number, values, make_slug(record.course_id), record)


class _Lines:
    """Lines for csv.reader, which can be pushed back."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._pushed_back: deque[str] = deque()
        self.row: list[str] = []  # the lines of the current row
        self.row_number = 1  # the number of its first line

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._pushed_back.popleft() if self._pushed_back else self._read()
        if not line:
            raise StopIteration
        self.row.append(line)
        if len(line) == _MAX_LINE_LENGTH:
            raise csv.Error(f"the line is longer than {_MAX_LINE_LENGTH} characters")
        return line

    def _read(self) -> str:
        line = self._text.readline(_MAX_LINE_LENGTH)
        if len(line) == _MAX_LINE_LENGTH:
            remainder = line
            while remainder and remainder[-1] not in "\r\n":
                remainder = self._text.readline(_MAX_LINE_LENGTH)
        return line

    def start_row(self) -> None:
        self.row_number += len(self.row)
        self.row.clear()

    def push_back_all_but_first(self) -> str:
        """End the current row after its first line, and return that line."""
        first, *others = self.row
        self._pushed_back.extendleft(reversed(others))
        self.row = [first]
        return first


def _validate_username(username: str) -> None:
    try:
        get_user_model()._meta.get_field("username").clean(username, None)
    except ValidationError as error:
        raise ValueError(f"{username!r:.80} is not a username: {error.messages[0]}") from None


@contextmanager
def _report_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableFile(f"{path} cannot be read: {reason}.") from error


def _decompress(path: Path, stack: ExitStack) -> IO[bytes]:
    """Return the content of a file. Its type is recognized by its first bytes, not its name."""
    file: Any = sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))
    signature = file.peek(10)[:10]
    if signature.startswith(b"PK\x03\x04"):
        return _open_zip_member(file, stack)
    openers: list[tuple[bytes, Any]] = [
        (rb"\x1f\x8b", gzip.open),
        (rb"BZh[1-9]1AY&SY", bz2.open),
        (rb"\xfd7zXZ\x00", lzma.open),
    ]
    for pattern, opener in openers:
        if re.match(pattern, signature):
            return stack.enter_context(opener(file))
    return file


def _open_zip_member(file: IO[bytes], stack: ExitStack) -> IO[bytes]:
    if not file.seekable():
        copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        shutil.copyfileobj(file, copy)
        file = copy
    archive = stack.enter_context(zipfile.ZipFile(file))
    members = [name for name in archive.namelist() if not name.endswith("/")]
    if len(members) > 1:
        # OneRoster puts all its files into one zip file.
        members = [name for name in members if Path(name).name.lower() == "enrollments.csv"]
    if len(members) != 1:
        raise OSError("a zip file must contain one file, or one enrollments.csv")
    try:
        return stack.enter_context(archive.open(members[0]))
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown method
        raise OSError(str(error)) from error
