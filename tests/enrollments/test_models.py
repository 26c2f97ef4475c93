from collections.abc import Callable
from typing import Any

import pytest
from django.core import serializers
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError, QuerySet
from django.utils import timezone

from courses.models import Course
from enrollments.managers import DirectWriteError
from enrollments.models import Enrollment
from enrollments.services import enroll, unenroll
from tests.conftest import drifts

Rows = Enrollment.objects


@pytest.fixture
def row(student: Any, course: Course) -> Enrollment:
    return enroll(student=student, course=course)[0]


@pytest.mark.parametrize(
    ("write", "service"),
    [
        (lambda row: row.save(), "enroll"),
        (lambda row: row.delete(), "unenroll"),
        (lambda row: Rows.create(student=row.student, course=row.course), "enroll"),
        (lambda row: Rows.get_or_create(student=row.student, course=row.course), "enroll"),
        (lambda row: Rows.update_or_create(student=row.student, course=row.course), "enroll"),
        (lambda row: Rows.bulk_create([row]), "enroll_many"),
        (lambda row: Rows.bulk_update([row], ["status"]), "register_many"),
        (lambda row: Rows.update(status="withdrawn"), "set_status"),
        (lambda row: Rows.filter(pk=row.pk).update(status="withdrawn"), "set_status"),
        (lambda row: Rows.all().delete(), "erase_student"),
        (lambda row: row.course.enrollments.create(student=row.student), "enroll"),
        (lambda row: row.course.enrollments.all().delete(), "unenroll"),
        (lambda row: row.course.enrollments.add(row), "set_status"),
        (lambda row: row.course.enrollments.add(row, bulk=False), "enroll"),
        (lambda row: row.student.enrollments.update(status="withdrawn"), "set_status"),
    ],
)
def test_a_row_can_not_be_written_past_the_services(
    row: Enrollment, write: Callable[[Enrollment], object], service: str
) -> None:
    before = list(Rows.values_list())
    with pytest.raises(DirectWriteError, match=rf"services\..*{service}\("), transaction.atomic():
        write(row)
    assert list(Rows.values_list()) == before
    assert drifts() == {}


@pytest.mark.parametrize("name", ["acreate", "aupdate", "adelete"])
def test_async_writes_are_refused_as_well(row: Enrollment, name: str) -> None:
    from asgiref.sync import async_to_sync

    with pytest.raises(DirectWriteError):
        async_to_sync(getattr(Rows.all(), name))()


def test_fixtures_load(row: Enrollment) -> None:
    text = serializers.serialize("json", [*Course.objects.all(), *Rows.all()])
    QuerySet(Enrollment).delete()
    Course.objects.all().delete()
    for loaded in serializers.deserialize("json", text):
        loaded.save()
    assert Rows.get().pk == row.pk
    assert drifts() == {}


def test_students_and_courses_with_rows_are_protected(row: Enrollment) -> None:
    unenroll(student=row.student, course=row.course)
    for parent in (row.student, row.course):
        with pytest.raises(ProtectedError):
            parent.delete()


@pytest.mark.parametrize(
    ("values", "constraint"),
    [
        ({}, "enrollment_student_course_unique"),
        ({"status": "asleep"}, "enrollment_status_valid"),
        ({"status": "withdrawn"}, "enrollment_withdrawal_date_if_withdrawn"),
        ({"withdrawal_date": timezone.now()}, "enrollment_withdrawal_date_if_withdrawn"),
    ],
)
def test_the_database_refuses_rows_that_make_no_sense(
    row: Enrollment,
    make_course: Callable[..., Course],
    values: dict[str, Any],
    constraint: str,
) -> None:
    course = make_course() if values else row.course
    wrong = Enrollment(student=row.student, course=course, **values)
    with pytest.raises(IntegrityError) as caught, transaction.atomic():
        wrong.save_base(force_insert=True)
    # SQLite names the columns of a unique constraint rather than the constraint.
    assert constraint in str(caught.value) or "student_id, " in str(caught.value)


def test_the_count_by_status_has_its_index() -> None:
    assert ["course", "status"] in [index.fields for index in Enrollment._meta.indexes]


def test_is_counted_says_what_counted_keeps(
    course: Course, make_students: Callable[[int], list[Any]]
) -> None:
    statuses = Enrollment.Status.values
    for student, status in zip(make_students(len(statuses)), statuses, strict=True):
        withdrawn = timezone.now() if status == "withdrawn" else None
        row = Enrollment(student=student, course=course, status=status, withdrawal_date=withdrawn)
        row.save_base()
    kept = {row.status for row in Rows.counted()}
    assert kept == {row.status for row in Rows.all() if row.is_counted} == {"active", "completed"}


@pytest.mark.django_db
def test_the_migrations_make_what_the_models_say() -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
