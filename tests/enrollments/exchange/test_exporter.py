import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from courses.models import Course
from enrollments.exchange import FORMATS
from enrollments.exchange.exporter import UnsupportedRecord, export_courses, export_enrollments
from enrollments.exchange.reader import open_enrollment_file
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
from tests.support.counts import drift_by_title
from tests.support.exchange import enrollment_rows, import_path, statuses

MakeCourse = Callable[..., Course]
DAY = datetime(2013, 10, 20, tzinfo=UTC)


@pytest.fixture
def enrollments(make_course: MakeCourse, django_user_model: Any) -> None:
    """Four students in two courses, one of them withdrawn from one and completed in the other."""
    students = [django_user_model.objects.create_user(name) for name in ("11", "12", "13", "14")]
    first = make_course(title="Algebra", slug="aaa-2013j", code="AAA-2013J")
    second = make_course(title="A Course of Its Own", slug="bbb-2014b", capacity=9)
    for course in (first, second):
        registrations = [Registration(student=each, enrollment_date=DAY) for each in students]
        register_many(course=course, registrations=registrations)
    unenroll(student=students[0], course=first)
    set_status(student=students[0], course=second, status="completed")


def export(format_name: str, **options: Any) -> list[str]:
    file = io.StringIO()
    format = FORMATS[format_name]
    export_enrollments(file=file, format=format, on_progress=lambda rows: None, **options)
    return file.getvalue().splitlines()


def export_to(path: Path, format_name: str) -> None:
    call_command("export_enrollments", format=format_name, output=path, verbosity=0)


def counts_by_slug() -> dict[str, int]:
    return dict(Course.objects.values_list("slug", "total_enrollments"))


def is_withdrawn_by_key() -> dict[tuple[str, str], bool]:
    return {key: status == "withdrawn" for key, status in statuses().items()}


@pytest.mark.parametrize("name", FORMATS)
def test_exported_file_has_its_own_format(enrollments: None, tmp_path: Path, name: str) -> None:
    path = tmp_path / "export.csv"
    export_to(path, name)
    with open_enrollment_file(path=path) as file:
        assert file.format.name == name
        assert file.header == list(file.format.columns)


@pytest.mark.parametrize("name", FORMATS)
def test_import_of_an_export_changes_no_status(
    enrollments: None, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "export.csv"
    export_to(path, name)
    before = statuses(), counts_by_slug()
    assert "completed" in statuses().values()
    summary, rejected = import_path(path)
    # Open University files replace the time of the withdrawal with its date.
    assert (summary.updated, rejected) == (1 if name == "open-university" else 0, [])
    assert (statuses(), counts_by_slug()) == before
    assert drift_by_title() == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("canvas", ""),
        (
            "oneroster",
            "1 completed enrollment was exported as active, because the oneroster format has no "
            "such status. To keep the status, choose --format canvas.\n",
        ),
    ],
)
def test_export_reports_completed_enrollments_that_become_active(
    enrollments: None, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    call_command("export_enrollments", format=name)
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1 + 8
    assert captured.err == message


@pytest.mark.parametrize("name", FORMATS)
def test_import_of_an_export_restores_an_empty_database(
    enrollments: None, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "export.csv"
    export_to(path, name)
    before = is_withdrawn_by_key(), counts_by_slug()
    for student in set(Enrollment.objects.values_list("student", flat=True)):
        erase_student(student=student)
    Course.objects.all().delete()
    assert import_path(path)[0].created == 8
    assert (is_withdrawn_by_key(), counts_by_slug()) == before
    assert counts_by_slug() == {"aaa-2013j": 3, "bbb-2014b": 4}
    assert drift_by_title() == {}
    if name == "canvas":
        assert Enrollment.objects.filter(status="completed").count() == 1
    else:
        assert Enrollment.objects.filter(enrollment_date=DAY).count() == 8
    assert import_path(path)[0].unchanged == 8


def test_open_university_export_writes_days_since_the_first_day(enrollments: None) -> None:
    lines = export("open-university")
    assert len(lines) == 1 + 8
    assert lines[2] == "AAA,2013J,12,19,"
    assert lines[-1] == "bbb,2014B,14,-104,"


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_rows_are_read_in_batches_by_primary_key(
    enrollments: None, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("enrollments.exchange.exporter.BATCH_SIZE", size)
    with CaptureQueriesContext(connection) as queries:
        lines = export("canvas")
    assert len(lines) == 1 + 8
    batches = -(-8 // size)
    assert len(queries) == 3 * batches + 1
    assert not any("OFFSET" in query["sql"] for query in queries)


@pytest.mark.parametrize(("code", "course_id"), [("Phys 1", "Phys 1"), ("", "slug")])
def test_course_without_an_id_is_exported_with_its_slug(
    make_course: MakeCourse, student: Any, code: str, course_id: str
) -> None:
    enroll(student=student, course=make_course(title="Title", slug="slug", code=code))
    assert export("canvas")[1] == f"{course_id},student1,student,,active"


def test_progress_is_the_size_of_each_batch(
    enrollments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enrollments.exchange.exporter.BATCH_SIZE", 3)
    file, progress = io.StringIO(), []
    format = FORMATS["canvas"]
    export_enrollments(file=file, format=format, on_progress=progress.append)
    assert progress == [3, 3, 2]


@pytest.mark.parametrize(
    ("course", "username", "reason"),
    [
        ({"slug": "other"}, "1", "student 1 in course other: code_module '' is not a module code"),
        ({"slug": "aaa-last"}, "1", "code_presentation 'LAST' is not a presentation code"),
        ({"slug": "aaa-2013j"}, "anna", "id_student 'anna' is not a whole number"),
    ],
)
def test_record_that_the_format_cannot_represent_raises(
    make_course: MakeCourse,
    django_user_model: Any,
    course: dict[str, str],
    username: str,
    reason: str,
) -> None:
    user = django_user_model.objects.create_user(username)
    enroll(student=user, course=make_course(**course))
    with pytest.raises(UnsupportedRecord) as error:
        export("open-university")
    assert reason in str(error.value)


def test_course_export_cannot_execute_formulas(make_course: MakeCourse, student: Any) -> None:
    course = make_course(title="=HYPERLINK(A1)")
    enroll(student=student, course=course)
    Course.objects.update(total_enrollments=F("total_enrollments") - 1)
    file = io.StringIO()
    export_courses(file=file, on_progress=lambda rows: None)
    assert file.getvalue().splitlines()[1] == (f"{course.pk},{course.slug},'=HYPERLINK(A1),,0,1,-1")


@pytest.mark.parametrize("year", [1, 999])
def test_oneroster_export_keeps_early_dates(
    make_course: MakeCourse, student: Any, tmp_path: Path, year: int
) -> None:
    begin, end = DAY.replace(year=year), DAY.replace(year=year, month=12)
    registration = Registration(student, begin, withdrawal_date=end, status="withdrawn")
    register_many(course=make_course(slug="c"), registrations=[registration])
    path = tmp_path / "export.csv"
    export_to(path, "oneroster")
    erase_student(student=student)
    assert import_path(path)[0].created == 1
    assert [row[3:] for row in enrollment_rows()] == [(begin, end)]


def test_course_export_has_stored_and_true_counts(
    make_course: MakeCourse, make_students: Callable[[int], list[Any]]
) -> None:
    correct, drifted = make_course(title="Correct, “quoted”", capacity=5), make_course()
    enroll_many(course=correct, students=make_students(2))
    Course.objects.filter(pk=drifted.pk).update(total_enrollments=F("total_enrollments") + 3)
    file = io.StringIO()
    export_courses(file=file, on_progress=lambda rows: None)
    assert file.getvalue().splitlines() == [
        "course_id,slug,title,capacity,stored,true,drift",
        f'{correct.pk},{correct.slug},"Correct, “quoted”",5,2,2,0',
        f"{drifted.pk},{drifted.slug},{drifted.title},,3,0,3",
    ]
