"""Enrollment files of other systems: whatever they are packed in, read row by row.

Canvas: “SIS Import Format Documentation”, `enrollments.csv`. OneRoster: “CSV Binding” 1.1 and
1.2, `enrollments.csv`. Open University: `studentRegistration.csv` of its Learning Analytics
Dataset. Columns may stand in any order and any case, and others beside them.
"""

import bz2
import codecs
import csv
import gzip
import hashlib
import io
import lzma
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.utils.text import slugify

from courses.models import Course
from enrollments.models import Enrollment

Status = Enrollment.Status

# Characters of a line. What is longer is no line of such a file, and must not fill the memory.
_LONGEST = csv.field_size_limit()
# What stands where bytes mean nothing in the file's encoding.
_UNDECODABLE = "\ufffd"
_SLUG_LENGTH: Any = Course._meta.get_field("slug").max_length
_ID_LENGTH: Any = Course._meta.get_field("title").max_length
# The Open University's presentations begin in October (J) and in February (B).
START_MONTHS = {"J": 10, "B": 2}


class UnreadableFile(Exception):
    """The file isn't what it should be. Nothing was written."""


class Row(NamedTuple):
    """What the file says of one student in one course."""

    number: int  # of the line on which the row begins
    values: list[str]  # as they are in the file
    course: str  # its slug
    title: str  # its id in the file
    subject: str
    student: str  # username
    part: str  # what tells it from all others: of rows of the same part one only counts
    status: str
    enrollment_date: datetime | None
    withdrawal_date: datetime | None


class PassedOver(NamedTuple):
    """A row about somebody who is no student."""

    number: int


class Refused(NamedTuple):
    """A row that changed nothing, and why."""

    number: int
    reason: str
    values: list[str]

    def __str__(self) -> str:
        return f"Line {self.number}: {self.reason}"


class _Said(NamedTuple):
    """What the format makes of the fields of one row."""

    course: str
    student: str
    part: str
    status: str
    enrollment_date: datetime | None = None
    withdrawal_date: datetime | None = None
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file. Columns are named in lower case."""

    name: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    # The row's fields in this order. None: no student. Raises ValueError: why it is refused.
    read: Callable[..., _Said | None]
    # Dates of rows that count already are the file's, too.
    overwrite_dates: bool
    # Why a row is refused that says of the same part what line `first` does not, and whether
    # it is also if it says the same. None: the last of them counts.
    repeated: Callable[[Row, int], str] | None = None
    refuses_equals: bool = False


def _canvas(course: str, user: str, role: str, status: str, section: str) -> _Said | None:
    if not role:
        raise ValueError("role is empty: a role_id alone does not say whose it is")
    if role.lower() != "student":
        return None
    if not course:
        raise ValueError("course_id is empty: a section_id alone does not say which course")
    part = f"{course.lower()}\0{user}\0{section}"
    return _Said(course, user, part, _status(status, _CANVAS_STATUSES))


_CANVAS_STATUSES = {
    "active": Status.ACTIVE,
    "completed": Status.COMPLETED,
    "concluded": Status.COMPLETED,
    # Deletes where another section has the student, and completes the last one.
    "deleted_last_completed": Status.COMPLETED,
    "inactive": Status.WITHDRAWN,
    "deleted": Status.WITHDRAWN,
}


def _oneroster(
    sourced_id: str,
    course: str,
    user: str,
    role: str,
    status: str,
    modified: str,
    begins: str,
    ends: str,
) -> _Said | None:
    if not role:
        raise ValueError("role is empty")
    if role.lower() != "student":
        return None
    if not sourced_id:
        raise ValueError("sourcedId is empty")
    # Empty in bulk files, which hold what is active.
    known = _status(status or "active", _ONEROSTER_STATUSES)
    began = _day("beginDate", begins)
    ended = _day("endDate", ends) or _moment("dateLastModified", modified)
    return _Said(
        course, user, sourced_id, known, began, ended if known == Status.WITHDRAWN else None
    )


_ONEROSTER_STATUSES = {
    "active": Status.ACTIVE,
    "completed": Status.COMPLETED,
    "tobedeleted": Status.WITHDRAWN,
    "inactive": Status.WITHDRAWN,
}

_OPEN_UNIVERSITY_FORMS = {
    "code_module": (re.compile(r"\w{1,50}", re.ASCII), "module code"),
    "code_presentation": (re.compile(r"\w{1,50}", re.ASCII), "presentation code"),
    "id_student": (re.compile(r"\d{1,20}", re.ASCII), "whole number"),
    "date_registration": (re.compile(r"([+-]?\d{1,5})?", re.ASCII), "number of days"),
    "date_unregistration": (re.compile(r"([+-]?\d{1,5})?", re.ASCII), "number of days"),
}


def _open_university(starts: Mapping[str, date], *fields: str) -> _Said:
    fields = tuple("" if field == "?" else field for field in fields)
    forms = _OPEN_UNIVERSITY_FORMS.items()
    for field, (name, (form, what)) in zip(fields, forms, strict=True):
        if not form.fullmatch(field):
            raise ValueError(f"{name} {field!r:.80} is no {what}")
    module, presentation, student, registered, unregistered = fields
    start = start_of(presentation, starts)
    try:
        began = start + timedelta(days=int(registered or 0))
        ended = start + timedelta(days=int(unregistered)) if unregistered else None
    except OverflowError:
        raise ValueError("a date is not within the years 1 to 9999") from None
    status = Status.WITHDRAWN if ended else Status.ACTIVE
    course = f"{module}-{presentation}"
    return _Said(course, student, f"{course.lower()}\0{student}", status, began, ended, module)


def formats(starts: Mapping[str, date]) -> list[Format]:
    """The formats that are known. `starts`: the first days of Open University presentations
    that do not begin on October 1 or February 1."""
    return [
        Format(
            name="canvas",
            needed=("course_id", "user_id", "role", "status"),
            optional=("section_id",),
            read=_canvas,
            overwrite_dates=False,
        ),
        Format(
            name="oneroster",
            needed=("sourcedid", "classsourcedid", "usersourcedid", "role"),
            optional=("status", "datelastmodified", "begindate", "enddate"),
            read=_oneroster,
            overwrite_dates=False,
            repeated=lambda row, first: (
                f"sourcedId {row.part} is another enrollment by line {first} already"
            ),
        ),
        Format(
            name="open-university",
            needed=tuple(_OPEN_UNIVERSITY_FORMS),
            optional=(),
            read=partial(_open_university, starts),
            overwrite_dates=True,
            repeated=lambda row, first: (
                f"student {row.student} is in {row.title} by line {first} already"
            ),
            refuses_equals=True,
        ),
    ]


class EnrollmentFile:
    """An open file whose header is known. Iterating yields its rows, once."""

    def __init__(self, name: str, lines: "_Lines", starts: Mapping[str, date]) -> None:
        self._name, self._lines = name, lines
        self._reader = csv.reader(lines, strict=True)
        self._number = 1  # of the line that comes next
        with _as_unreadable(name):
            self.header = self._read_header()
        folded = [column.strip().lower() for column in self.header]
        for known in formats(starts):
            if all(folded.count(column) == 1 for column in known.needed):
                self.format = known
                break
        else:
            kinds = "; ".join(f"{known.name}: {', '.join(known.needed)}" for known in formats({}))
            raise UnreadableFile(
                f"{name} has other columns: its first line must name, once each, those of a "
                f"known format ({kinds})."
            )
        # A column that isn't there is the empty one that is put after the last.
        self._pick = itemgetter(
            *(folded.index(column) for column in self.format.needed),
            *(folded.index(c) if c in folded else len(folded) for c in self.format.optional),
        )

    def __iter__(self) -> Iterator[Row | PassedOver | Refused]:
        with _as_unreadable(self._name):
            while (read := self._next()) is not None:
                yield read

    def _read_header(self) -> list[str]:
        try:
            header = next((values for values in self._reader if values), None)
        except csv.Error as error:
            raise UnreadableFile(f"{self._name} is no CSV file: {error}.") from error
        if header is None:
            raise UnreadableFile(f"{self._name} is empty: not even its columns are named.")
        if _UNDECODABLE in "".join(header):
            raise UnreadableFile(
                f"{self._name} is no CSV file in {self._lines.encoding}: name the right encoding "
                "with --encoding, for instance cp1252."
            )
        self._number += self._lines.taken()
        return header

    def _next(self) -> Row | PassedOver | Refused | None:
        values: list[str] = []
        while not values:
            number = self._number
            try:
                values = next(self._reader)
            except StopIteration:
                return None
            except csv.Error as error:
                return self._first_line_only(str(error))
            self._number += self._lines.taken()
        return self._read(number, values)

    def _first_line_only(self, reason: str) -> Refused:
        number, self._number = self._number, self._number + 1
        return Refused(number, reason, [self._lines.give_back_all_but_one().rstrip("\r\n")])

    def _read(self, number: int, values: list[str]) -> Row | PassedOver | Refused:
        try:
            if len(values) != len(self.header):
                last = self._number - 1
                # Nobody can tell a stray quote from a line in a field, which is nobody's row.
                quoted = f", for quotes make lines {number} to {last} one row"
                raise ValueError(
                    f"the number of fields is {len(values)} instead of {len(self.header)}"
                    + (quoted if last > number else "")
                )
            if _UNDECODABLE in "".join(values):
                raise ValueError(
                    f"it is not in {self._lines.encoding}: name the right encoding with --encoding"
                )
            said = self.format.read(*(field.strip() for field in self._pick([*values, ""])))
            if said is None:
                return PassedOver(number)
            slug = slug_of(said.course)
            _require_username(said.student)
        except ValueError as error:
            return Refused(number, str(error), values)
        return Row(
            *(number, values, slug, said.course, said.subject, said.student, said.part),
            *(said.status, said.enrollment_date, said.withdrawal_date),
        )


@contextmanager
def enrollment_file(
    *, path: Path, encoding: str | None = None, starts: Mapping[str, date]
) -> Iterator[EnrollmentFile]:
    """Open a file of any known format: plain, gzip, bzip2, xz, or a zip of one; `-` is
    standard input. Without `encoding` it is UTF-8, or UTF-16 with its mark.

    `starts` gives the first day of Open University presentations where it isn't October 1 or
    February 1. Raises UnreadableFile, and so does reading it.
    """
    with ExitStack() as stack:
        with _as_unreadable(str(path)):
            stream: Any = _unpacked(path, stack)
            if encoding is None:
                begins = stream.peek(2)[:2]
                utf_16 = begins in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                encoding = "utf-16" if utf_16 else "utf-8"
            if codecs.lookup(encoding).name == "utf-8":
                encoding = "utf-8-sig"
            # Undecodable bytes are the business of the line they are in.
            text = io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline="")
        yield EnrollmentFile(str(path), _Lines(text), starts)


@contextmanager
def _as_unreadable(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, UnicodeError) as e:
        said = getattr(e, "strerror", None) or str(e)
        raise UnreadableFile(f"{name} can't be read: {said}.") from e


def _unpacked(path: Path, stack: ExitStack) -> IO[bytes]:
    # Not by the name: what comes from a pipe has none.
    packed: Any = sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))
    begins = packed.peek(10)[:10]
    for magic, opened in (
        (rb"\x1f\x8b", gzip.open),
        (rb"BZh[1-9]1AY&SY", bz2.open),
        (rb"\xfd7zXZ\x00", lzma.open),
    ):
        if re.match(magic, begins, re.DOTALL):
            file: Any = opened(packed)
            return stack.enter_context(file)
    return _only_member(packed, stack) if begins.startswith(b"PK\x03\x04") else packed


def _only_member(packed: IO[bytes], stack: ExitStack) -> IO[bytes]:
    if not packed.seekable():
        copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        shutil.copyfileobj(packed, copy)
        packed = copy
    archive = stack.enter_context(zipfile.ZipFile(packed))
    members = [name for name in archive.namelist() if not name.endswith("/")]
    if len(members) > 1:
        # OneRoster's files come together.
        members = [name for name in members if Path(name).name.lower() == "enrollments.csv"]
    if len(members) != 1:
        raise OSError("a zip file must hold one file, or one enrollments.csv")
    try:
        return stack.enter_context(archive.open(members[0]))
    except (RuntimeError, NotImplementedError) as error:
        raise OSError(f"{error}") from error


class _Lines:
    """Lines for csv.reader, which can be given back."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.encoding = text.encoding.upper().removesuffix("-SIG")
        self._text = text
        self._given_back: deque[str] = deque()
        self._taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else self._read()
        if not line:
            raise StopIteration
        self._taken.append(line)
        if len(line) == _LONGEST:
            raise csv.Error(f"the line is longer than {_LONGEST} characters")
        return line

    def _read(self) -> str:
        line = self._text.readline(_LONGEST)
        if len(line) == _LONGEST:
            rest = line
            while rest and rest[-1] not in "\r\n":
                rest = self._text.readline(_LONGEST)
        return line

    def taken(self) -> int:
        """Return how many lines were taken since this was called last."""
        number = len(self._taken)
        self._taken.clear()
        return number

    def give_back_all_but_one(self) -> str:
        first, *others = self._taken
        self._given_back.extendleft(reversed(others))
        self._taken.clear()
        return first


@lru_cache(maxsize=4096)
def slug_of(course_id: str) -> str:
    """Return the slug of the course that other systems know by this id; case doesn't matter.

    Raises ValueError for an id that can be none.
    """
    if not course_id or len(course_id) > _ID_LENGTH or not course_id.isprintable():
        raise ValueError(
            f"{course_id!r:.80} is no id of a course: 1 to {_ID_LENGTH} printable characters"
        )
    if re.fullmatch(r"[-\w]+", course_id, re.ASCII):
        return course_id.lower()
    # Two ids must not become one course because of what a slug can't hold.
    digest = hashlib.sha256(course_id.lower().encode()).hexdigest()[:8]
    return f"{slugify(course_id)[: _SLUG_LENGTH - 9] or 'course'}-{digest}"


def _require_username(name: str) -> None:
    try:
        get_user_model()._meta.get_field("username").clean(name, None)
    except ValidationError as error:
        raise ValueError(f"{name!r:.80} is no username: {error.messages[0]}") from None


def _status(given: str, known: Mapping[str, str]) -> str:
    try:
        return known[given.lower()]
    except KeyError:
        raise ValueError(f"status {given!r:.80} is none of {', '.join(known)}") from None


def _day(name: str, given: str) -> datetime | None:
    try:
        day = date.fromisoformat(given) if given else None
    except ValueError:
        return _moment(name, given)
    return datetime(day.year, day.month, day.day, tzinfo=UTC) if day else None


def _moment(name: str, given: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(given) if given else None
        return moment and (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} {given!r:.80} is no date: YYYY-MM-DD") from None


def start_of(presentation: str, starts: Mapping[str, date]) -> datetime:
    """Return the first day of an Open University presentation. Raises ValueError."""
    if presentation in starts:
        day = starts[presentation]
    elif re.fullmatch(r"[12]\d{3}[BJ]", presentation, re.ASCII):
        day = date(int(presentation[:4]), START_MONTHS[presentation[4]], 1)
    else:
        raise ValueError(
            f"code_presentation {presentation!r} has no known start: "
            "name it with --start PRESENTATION=YYYY-MM-DD"
        )
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
