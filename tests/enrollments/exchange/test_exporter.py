import csv
import io
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from courses.models import Course
from enrollments.exchange.exporter import FORMATS, export_enrollments
from enrollments.exchange.importer import import_file
from enrollments.exchange.reader import enrollment_file
from enrollments.models import Enrollment
from enrollments.services import (
    Registration,
    enroll,
    enroll_many,
    erase_student,
    register_many,
    set_status,
    unenroll,
)
from tests.conftest import drifts
from tests.support.commands import manage
from tests.support.threads import ConcurrentThread

Make = Callable[..., Any]
DAY = datetime(2013, 10, 20, tzinfo=UTC)


@pytest.fixture
def enrolled(make_course: Make, django_user_model: Any) -> list[Any]:
    """Four students in two courses, one of them withdrawn from one and completed in the other."""
    users = [django_user_model.objects.create_user(name) for name in ("11", "12", "13", "14")]
    first = make_course(title="AAA-2013J", slug="aaa-2013j")
    second = make_course(title="A Course of Its Own", slug="bbb-2014b", capacity=9)
    for course in (first, second):
        dated = [Registration(student=user, enrollment_date=DAY) for user in users]
        register_many(course=course, registrations=dated)
    unenroll(student=users[0], course=first)
    set_status(student=users[0], course=second, status="completed")
    return users


def counts() -> dict[str, int]:
    return dict(Course.objects.values_list("slug", "total_enrollments"))


def rows() -> set[tuple[str, str, bool]]:
    names = ("course__slug", "student__username", "status")
    found = Enrollment.objects.values_list(*names)
    return {(slug, name, status == "withdrawn") for slug, name, status in found}


def emptied() -> None:
    for student in list(Enrollment.objects.values_list("student", flat=True).distinct()):
        erase_student(student=student)
    Course.objects.all().delete()


def imported(path: Path) -> Any:
    with enrollment_file(path=path, starts={}) as file:
        return import_file(file=file, refuse=lambda row: pytest.fail(str(row)))


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_exported_comes_back_the_same(
    enrolled: list[Any], tmp_path: Path, name: str
) -> None:
    path = tmp_path / "export.csv"
    call_command("export_enrollments", format_name=name, output=path, verbosity=0)
    before = rows(), counts()
    if name != "open-university":  # which has no completed ones
        completed = Enrollment.objects.filter(status="completed").count()
        assert (imported(path).updated, completed) == (0 if name == "canvas" else 1, 1)
        assert (rows(), counts()) == before
    emptied()
    assert imported(path).created == 8
    assert (rows(), counts()) == before
    assert counts() == {"aaa-2013j": 3, "bbb-2014b": 4}
    assert drifts() == {}
    if name == "canvas":
        assert Enrollment.objects.filter(status="completed").count() == 1
    else:
        assert Enrollment.objects.filter(enrollment_date=DAY).count() == 8
    assert imported(path).unchanged == 8


def test_formats_are_those_that_the_import_knows(enrolled: list[Any], tmp_path: Path) -> None:
    for name in FORMATS:
        path = tmp_path / name
        with path.open("w", newline="") as file:
            export_enrollments(file=file, format_name=name, starts={})
        with enrollment_file(path=path, starts={}) as read:
            assert read.format.name == name


def test_open_university_days_are_those_of_the_file(enrolled: list[Any]) -> None:
    file = io.StringIO()
    assert export_enrollments(file=file, format_name="open-university", starts={}) == 8
    written = file.getvalue().splitlines()
    assert written[2] == "AAA,2013J,12,19,"
    assert written[-1] == "bbb,2014B,14,-104,"


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_rows_are_read_in_batches_by_their_key(
    enrolled: list[Any], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("enrollments.exchange.exporter.BATCH_SIZE", size)
    file = io.StringIO()
    with CaptureQueriesContext(connection) as queries:
        export_enrollments(file=file, format_name="canvas", starts={})
    assert len(file.getvalue().splitlines()) == 1 + 8
    batches = -(-8 // size)
    assert len(queries) == 3 * batches + 1
    assert not any("OFFSET" in query["sql"] for query in queries)


@pytest.mark.parametrize(
    ("course", "student", "reason"),
    [
        ({"slug": "other"}, "1", "course other: its id is not MODULE-PRESENTATION"),
        ({"slug": "aaa-last"}, "1", "course aaa-last: code_presentation 'LAST' has no known start"),
        ({"slug": "aaa-2013j"}, "anna", "student anna: the name is not a whole number"),
    ],
)
def test_what_a_format_can_not_say_leaves_no_file(
    make_course: Make,
    django_user_model: Any,
    tmp_path: Path,
    course: dict[str, str],
    student: str,
    reason: str,
) -> None:
    user = django_user_model.objects.create_user(student)
    enroll(student=user, course=make_course(**course))
    path = tmp_path / "export.csv"
    path.write_text("before")
    with pytest.raises(CommandError) as refused:
        call_command("export_enrollments", format_name="open-university", output=path)
    assert refused.value.returncode == 2
    assert f"open-university can't say this: {reason}" in str(refused.value)
    assert [each.name for each in tmp_path.iterdir()] == ["export.csv"]
    assert path.read_text() == "before"


def test_courses_with_their_counts(make_course: Make, make_students: Make, tmp_path: Path) -> None:
    right, wrong = make_course(title="Right, “quoted”", capacity=5), make_course()
    enroll_many(course=right, students=make_students(2))
    Course.objects.filter(pk=wrong.pk).update(total_enrollments=F("total_enrollments") + 3)
    path = tmp_path / "courses.csv"
    call_command("export_courses", output=path, verbosity=0)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["course_id", "slug", "title", "capacity", "stored", "true", "drift"],
            [str(right.pk), right.slug, "Right, “quoted”", "5", "2", "2", "0"],
            [str(wrong.pk), wrong.slug, wrong.title, "", "3", "0", "3"],
        ]
    assert path.stat().st_mode & 0o044 == 0o044


def test_what_is_there_keeps_its_mode_its_links_and_its_kind(db: None, tmp_path: Path) -> None:
    secret, link, pipe = (tmp_path / name for name in ("secret", "link", "pipe"))
    secret.touch(mode=0o600)
    link.symlink_to(secret)
    call_command("export_courses", output=link, verbosity=0)
    assert link.is_symlink()
    assert (secret.stat().st_mode & 0o777, bool(secret.read_text())) == (0o600, True)
    os.mkfifo(pipe)
    reader = ConcurrentThread(pipe.read_text)
    reader.start()
    call_command("export_courses", output=pipe, verbosity=0)
    assert reader.finish() == secret.read_text()
    assert pipe.is_fifo()


def test_where_nothing_can_be_written_is_said(db: None, tmp_path: Path) -> None:
    for command in ("export_courses", "export_enrollments"):
        with pytest.raises(CommandError, match="can't be written: No such file") as refused:
            call_command(command, output=tmp_path / "no" / "file.csv")
        assert refused.value.returncode == 2


@pytest.mark.django_db(transaction=True)
def test_standard_output_is_a_file_of_its_own(enrolled: list[Any], tmp_path: Path) -> None:
    done = manage("export_enrollments")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == "AAA-2013J,11,student,,deleted"
    path = tmp_path / "export.csv"
    path.write_text(done.stdout)
    assert imported(path).unchanged == 8
    assert manage("export_courses").stdout.splitlines()[1].endswith(",AAA-2013J,,3,3,0")
    done = manage("export_courses", "--output", str(path))
    assert done.stdout == f"2 courses written to {path}.\n"
    assert len(path.read_text().splitlines()) == 3
