from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core import serializers
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models import ProtectedError, QuerySet
from django.utils import timezone

from courses.models import Course
from enrollments.managers import DirectWriteError
from enrollments.models import Enrollment
from enrollments.services import enroll, unenroll
from tests.support.counts import drift_by_title
from tests.support.enrollments import MakeStudents

Enrollments = Enrollment.objects


@pytest.fixture
def enrollment(student: User, course: Course) -> Enrollment:
    return enroll(student=student, course=course)[0]


class TestDirectWrites:
    """Ordinary use of the ORM cannot write a row without its counter."""

    @pytest.mark.parametrize(
        ("write", "service"),
        [
            pytest.param(lambda row: row.save(), "enroll", id="save"),
            pytest.param(lambda row: row.delete(), "unenroll", id="delete"),
            pytest.param(
                lambda row: Enrollments.create(student=row.student, course=row.course),
                "enroll",
                id="create",
            ),
            pytest.param(
                lambda row: Enrollments.get_or_create(student=row.student, course=row.course),
                "enroll",
                id="get_or_create",
            ),
            pytest.param(
                lambda row: Enrollments.update_or_create(student=row.student, course=row.course),
                "enroll",
                id="update_or_create",
            ),
            pytest.param(
                lambda row: Enrollments.bulk_create([row]), "enroll_many", id="bulk_create"
            ),
            pytest.param(
                lambda row: Enrollments.bulk_update([row], ["status"]),
                "register_many",
                id="bulk_update",
            ),
            pytest.param(
                lambda row: Enrollments.update(status="withdrawn"), "set_status", id="update"
            ),
            pytest.param(
                lambda row: Enrollments.filter(pk=row.pk).update(status="withdrawn"),
                "set_status",
                id="filter().update",
            ),
            pytest.param(
                lambda row: Enrollments.all().delete(), "erase_student", id="all().delete"
            ),
            pytest.param(
                lambda row: row.course.enrollments.create(student=row.student),
                "enroll",
                id="course.enrollments.create",
            ),
            pytest.param(
                lambda row: row.course.enrollments.all().delete(),
                "unenroll",
                id="course.enrollments.all().delete",
            ),
            pytest.param(
                lambda row: row.course.enrollments.add(row),
                "set_status",
                id="course.enrollments.add",
            ),
            pytest.param(
                lambda row: row.course.enrollments.add(row, bulk=False),
                "enroll",
                id="course.enrollments.add(bulk=False)",
            ),
            pytest.param(
                lambda row: row.course.enrollments.set([row]),
                "set_status",
                id="course.enrollments.set",
            ),
            pytest.param(
                lambda row: row.course.enrollments.get_or_create(student=row.student),
                "enroll",
                id="course.enrollments.get_or_create",
            ),
            pytest.param(
                lambda row: row.student.enrollments.update_or_create(course=row.course),
                "enroll",
                id="student.enrollments.update_or_create",
            ),
            pytest.param(
                lambda row: row.student.enrollments.update(status="withdrawn"),
                "set_status",
                id="student.enrollments.update",
            ),
        ],
    )
    def test_raises_direct_write_error_and_names_the_service(
        self, enrollment: Enrollment, write: Callable[[Enrollment], object], service: str
    ) -> None:
        rows = list(Enrollments.values_list())
        with pytest.raises(DirectWriteError, match=rf"\b{service}\("), transaction.atomic():
            write(enrollment)
        assert list(Enrollments.values_list()) == rows
        assert drift_by_title() == {}

    @pytest.mark.parametrize("method", ["acreate", "aupdate", "adelete"])
    def test_async_methods_raise_direct_write_error(
        self, enrollment: Enrollment, method: str
    ) -> None:
        with pytest.raises(DirectWriteError):
            async_to_sync(getattr(Enrollments.all(), method))()


class TestConstraints:
    @pytest.mark.parametrize(
        ("values", "constraint"),
        [
            ({"status": "asleep"}, "enrollment_status_valid"),
            ({"status": "withdrawn"}, "enrollment_withdrawal_date_if_withdrawn"),
            (
                {"withdrawal_date": timezone.now()},
                "enrollment_withdrawal_date_if_withdrawn",
            ),
        ],
        ids=["unknown status", "withdrawn without a date", "active with a withdrawal date"],
    )
    def test_the_database_rejects_an_invalid_row(
        self, student: User, course: Course, values: dict[str, Any], constraint: str
    ) -> None:
        invalid = Enrollment(student=student, course=course, **values)
        with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
            invalid.save_base(force_insert=True)

    def test_the_database_rejects_a_second_row_of_student_and_course(
        self, enrollment: Enrollment
    ) -> None:
        duplicate = Enrollment(student=enrollment.student, course=enrollment.course)
        # SQLite names the columns of a unique constraint instead of the constraint.
        description = {
            "mysql": "enrollment_student_course_unique",
            "sqlite": r"student_id, \w+\.course_id",
        }
        with (
            pytest.raises(IntegrityError, match=description[connection.vendor]),
            transaction.atomic(),
        ):
            duplicate.save_base(force_insert=True)

    def test_students_and_courses_with_withdrawn_rows_are_protected(
        self, enrollment: Enrollment
    ) -> None:
        unenroll(student=enrollment.student, course=enrollment.course)
        with pytest.raises(ProtectedError):
            enrollment.student.delete()
        with pytest.raises(ProtectedError):
            enrollment.course.delete()

    def test_an_index_serves_the_count_by_course_and_status(self) -> None:
        assert ["course", "status"] in [index.fields for index in Enrollment._meta.indexes]


def test_is_counted_and_counted_are_the_same_rule(
    course: Course, make_students: MakeStudents
) -> None:
    statuses = Enrollment.Status.values
    for student, status in zip(make_students(len(statuses)), statuses, strict=True):
        withdrawal_date = timezone.now() if status == "withdrawn" else None
        Enrollment(
            student=student, course=course, status=status, withdrawal_date=withdrawal_date
        ).save_base()
    counted_statuses = {row.status for row in Enrollments.counted()}
    assert counted_statuses == {row.status for row in Enrollments.all() if row.is_counted}
    assert counted_statuses == {"active", "completed"}


def test_fixtures_can_be_loaded(enrollment: Enrollment) -> None:
    fixture = serializers.serialize("json", [*Course.objects.all(), *Enrollments.all()])
    QuerySet(Enrollment).delete()
    Course.objects.all().delete()
    for deserialized in serializers.deserialize("json", fixture):
        deserialized.save()
    assert Enrollments.get().pk == enrollment.pk
    assert drift_by_title() == {}


@pytest.mark.django_db
def test_migrations_match_the_models() -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
