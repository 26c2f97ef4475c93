"""The compiled statements are what the ORM executes, and are compiled once."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import F, Q
from django.utils import timezone

from courses.models import Course
from enrollments import statements
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.services import enroll, unenroll
from enrollments.statements import Statement
from tests.support.commands import PROJECT
from tests.support.enrollments import (
    MakeCourse,
    MakeStudents,
    set_stored_count,
    stored_count,
)

ENROLL_STATEMENTS = {
    "take_seat": statements.TAKE_SEAT,
    "insert_enrollment": statements.INSERT_ENROLLMENT,
    "insert_event": statements.INSERT_EVENT,
}


class Executed(NamedTuple):
    sql: str
    params: tuple[Any, ...]


def executed_by(function: Callable[[], object]) -> Executed:
    """Return the only statement that a function executes."""
    executed: list[Executed] = []

    def record(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        # Statements do not read the new key from the result of the INSERT.
        executed.append(Executed(sql.partition(" RETURNING ")[0], tuple(params)))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(record):
        function()
    (statement,) = executed
    return statement


def execute(statement: Statement, *values: Any) -> int:
    """Return the number of affected rows."""
    with connection.cursor() as cursor:
        return statement.execute(cursor, *values)


class TestComparedWithTheORM:
    def test_take_seat(self, course: Course) -> None:
        has_free_seat = Q(capacity=None) | Q(capacity__gt=F("total_enrollments"))
        orm = executed_by(
            lambda: Course.objects.filter(has_free_seat, pk=course.pk).update(
                total_enrollments=F("total_enrollments") + 1
            )
        )
        assert executed_by(lambda: execute(statements.TAKE_SEAT, course.pk)) == orm

    @pytest.mark.parametrize("status", ["active", "withdrawn"])
    def test_insert_enrollment(
        self, course: Course, make_students: MakeStudents, status: str
    ) -> None:
        student, other_student = make_students(2)
        now = timezone.now()
        withdrawal_date = now if status == "withdrawn" else None
        orm_row = Enrollment(
            student=student,
            course=course,
            status=status,
            enrollment_date=now,
            withdrawal_date=withdrawal_date,
        )
        orm = executed_by(lambda: orm_row.save_base(force_insert=True))
        compiled = executed_by(
            lambda: execute(
                statements.INSERT_ENROLLMENT,
                other_student.pk,
                course.pk,
                status,
                now,
                withdrawal_date,
            )
        )
        assert compiled.sql == orm.sql
        assert compiled.params[1:] == orm.params[1:]
        assert Enrollment.objects.filter(student=other_student).exists()
        columns = ["course", "status", "enrollment_date", "withdrawal_date"]
        first, second = Enrollment.objects.values(*columns)
        assert first == second

    def test_insert_event(self, student: User, course: Course) -> None:
        now = timezone.now()
        values = (student.pk, course.pk, "erased", "", None, None, now, "admin", "anna", None)
        names = [field.attname for field in EnrollmentEvent._meta.concrete_fields]
        event = EnrollmentEvent(**dict(zip(names[1:], values, strict=True)))
        orm = executed_by(lambda: event.save_base(force_insert=True))
        assert executed_by(lambda: execute(statements.INSERT_EVENT, *values)) == orm
        first, second = EnrollmentEvent.objects.values(*names[1:])
        assert first == second

    def test_execute_many_inserts_the_same_rows_as_execute(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        single, many = make_course(), make_course()
        now = timezone.now()
        rows = [
            (student.pk, status, now, withdrawal_date)
            for student, (status, withdrawal_date) in zip(
                make_students(3),
                [("active", None), ("withdrawn", now), ("active", None)],
                strict=True,
            )
        ]
        for student_id, *values in rows:
            execute(statements.INSERT_ENROLLMENT, student_id, single.pk, *values)
        with connection.cursor() as cursor:
            statements.INSERT_ENROLLMENT.execute_many(
                cursor, [(student_id, many.pk, *values) for student_id, *values in rows]
            )
        columns = ["student", "status", "enrollment_date", "withdrawal_date"]
        rows_of = Enrollment.objects.order_by("student").values_list(*columns).filter
        assert list(rows_of(course=single)) == list(rows_of(course=many)) == rows


class TestTakeSeat:
    @pytest.mark.parametrize(
        ("capacity", "stored", "takes_seat"),
        [(None, 5, True), (6, 5, True), (5, 5, False), (4, 5, False), (0, 0, False)],
        ids=["no limit", "one free seat", "full", "capacity was lowered", "capacity 0"],
    )
    def test_the_update_contains_the_free_seat_condition(
        self, make_course: MakeCourse, capacity: int | None, stored: int, takes_seat: bool
    ) -> None:
        course = make_course(capacity=capacity)
        set_stored_count(course, stored)
        assert execute(statements.TAKE_SEAT, course.pk) == takes_seat
        assert stored_count(course) == stored + takes_seat

    def test_only_one_course_is_updated(self, make_course: MakeCourse) -> None:
        course, other_course = make_course(), make_course()
        execute(statements.TAKE_SEAT, course.pk)
        assert (stored_count(course), stored_count(other_course)) == (1, 0)

    def test_a_missing_course_updates_no_row(self, db: None) -> None:
        assert execute(statements.TAKE_SEAT, 1) == 0


@pytest.mark.parametrize("name", ENROLL_STATEMENTS)
def test_enroll_compiles_each_statement_once(
    name: str, course: Course, make_students: MakeStudents
) -> None:
    compiled = ENROLL_STATEMENTS[name].compiled
    compiled.cache_clear()
    for student in make_students(3):
        enroll(student=student, course=course)
        unenroll(student=student, course=course)
    assert compiled.cache_info().misses == 1
    assert compiled.cache_info().hits >= 2


def test_the_product_code_contains_no_table_name() -> None:
    """Table names come from the models. Settings name the tables that cachalot caches."""
    tables = [
        model._meta.db_table
        for app in ("courses", "enrollments")
        for model in apps.get_app_config(app).get_models()
    ]
    assert {"courses_course", "enrollments_enrollment"} <= set(tables)
    table_name = re.compile(rf"\b({'|'.join(tables)})\b")
    sources = [
        path
        for package in ("courses", "enrollments", "project")
        for path in (PROJECT / package).rglob("*.py")
        if "migrations" not in path.parts and path.name != "settings.py"
    ]
    assert PROJECT / "enrollments" / "statements.py" in sources
    assert [path.name for path in sources if table_name.search(path.read_text())] == []
