"""Temporary databases for the benchmarks, with rows that the server itself generates."""

import itertools
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import MySQLdb
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.db.models import Model

from benchmarks.models import PEER_MODELS, TRIGGER
from enrollments.models import Enrollment

_course_numbers = itertools.count(1)


@contextmanager
def temporary_database(name: str) -> Iterator[None]:
    """Connect Django to a new database with the tables of the project and of the peers."""
    original_name = connection.settings_dict["NAME"]
    name = f"benchmark_{name}"
    execute(f"CREATE DATABASE {name}")
    _connect_to(name)
    try:
        call_command("migrate", verbosity=0)
        with connection.schema_editor() as editor:
            for model in PEER_MODELS:
                editor.create_model(model)
        execute(TRIGGER)
        yield
    finally:
        _connect_to(original_name)
        execute(f"DROP DATABASE {name}")


def _connect_to(name: str) -> None:
    connection.close()
    connection.settings_dict["NAME"] = name


@contextmanager
def bare_driver() -> Iterator[Any]:
    """Yield a mysqlclient connection with Django's options. Autocommit is off."""
    with closing(
        MySQLdb.connect(**connection.get_connection_params(), local_infile=True)
    ) as driver:
        with driver.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        yield driver


def execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def table_name(model: type[Model]) -> str:
    return model._meta.db_table


def course_model(enrollment_model: type[Model]) -> type[Model]:
    return enrollment_model._meta.get_field("course").related_model


def new_course(model: type[Model]) -> int:
    """Create an empty course and return its primary key."""
    number = next(_course_numbers)
    return model.objects.create(title=f"Course {number}", slug=f"new-{number}").pk


def insert_students(number: int) -> None:
    """Insert students with the primary keys 1 to `number`."""
    execute(
        f"""
        INSERT INTO {table_name(get_user_model())} (
            id, password, is_superuser, username, first_name, last_name, email, is_staff,
            is_active, date_joined
        )
        SELECT seq, '!', 0, CONCAT('student', seq), '', '', '', 0, 1, NOW(6)
        FROM seq_1_to_{number}
        """
    )


def insert_courses(number: int) -> None:
    """Insert courses with the primary keys 1 to `number`."""
    execute(
        f"""
        INSERT INTO courses_course (id, title, slug, total_enrollments)
        SELECT seq, CONCAT('Course ', seq), CONCAT('course-', seq), 0 FROM seq_1_to_{number}
        """
    )


def insert_enrollments(
    *, per_course: int, courses: str = "TRUE", model: type[Model] = Enrollment
) -> None:
    """Enroll the students 1 to `per_course` in each course, and set the counters.

    `courses` is a condition on the course's id. One enrollment in ten is withdrawn.
    """
    courses_table = table_name(course_model(model))
    execute(
        f"""
        INSERT INTO {table_name(model)} (
            student_id, course_id, status, enrollment_date, withdrawal_date
        )
        SELECT
            student.seq,
            course.id,
            IF((course.id + student.seq) % 10, 'active', 'withdrawn'),
            NOW(6),
            IF((course.id + student.seq) % 10, NULL, NOW(6))
        FROM {courses_table} AS course JOIN seq_1_to_{per_course} AS student
        WHERE {courses}
        """,
        f"""
        UPDATE {courses_table} AS course
        JOIN (
            SELECT course_id, COUNT(*) AS true_count FROM {table_name(model)}
            WHERE status IN ('active', 'completed') GROUP BY course_id
        ) AS counts ON counts.course_id = course.id
        SET course.total_enrollments = counts.true_count
        WHERE {courses}
        """,
    )
