"""Databases of the benchmarks, filled by the server itself."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import MySQLdb
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.db.models import Model

from benchmarks.models import TABLES, TRIGGER


@contextmanager
def database(name: str) -> Iterator[None]:
    """Django's connection is to a new database, with the project's tables and the peers'."""
    before = connection.settings_dict["NAME"]
    execute(f"CREATE DATABASE {name}")
    _connect_to(name)
    try:
        call_command("migrate", verbosity=0)
        with connection.schema_editor() as editor:
            for model in TABLES:
                editor.create_model(model)
        execute(TRIGGER)
        yield
    finally:
        _connect_to(before)
        execute(f"DROP DATABASE {name}")


def _connect_to(name: str) -> None:
    connection.close()
    connection.settings_dict["NAME"] = name


@contextmanager
def bare_driver() -> Iterator[Any]:
    """A connection without Django, and otherwise like Django's; autocommit is off."""
    driver = MySQLdb.connect(**connection.get_connection_params(), local_infile=True)
    with closing(driver):
        with driver.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        yield driver


def execute(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def table(model: type[Model]) -> str:
    return model._meta.db_table


def add_students(number: int) -> None:
    """Students with the keys from 1 on."""
    execute(
        f"""
        INSERT INTO {table(get_user_model())} (
            id, password, is_superuser, username, first_name, last_name, email, is_staff,
            is_active, date_joined
        )
        SELECT seq, '!', 0, CONCAT('student', seq), '', '', '', 0, 1, NOW(6)
        FROM seq_1_to_{number}
        """
    )


def add_courses(model: type[Model], number: int) -> None:
    """Courses with the keys from 1 on."""
    execute(
        f"""
        INSERT INTO {table(model)} (id, title, slug, total_enrollments)
        SELECT seq, CONCAT('Course ', seq), CONCAT('course-', seq), 0 FROM seq_1_to_{number}
        """
    )


def add_rows(model: type[Model], *, courses: str, most: int, students: int, each: str = "") -> None:
    """Rows in the courses that the query `courses` has as `id`, and their counts.

    Each course gets `most`, or as many as the expression `each` says, of the students that
    `student_at()` says. One in ten is withdrawn.
    """
    course_model = model._meta.get_field("course").related_model
    execute(
        f"""
        INSERT INTO {table(model)} (
            student_id, course_id, status, enrollment_date, withdrawal_date
        )
        SELECT
            1 + (course.id * 7919 + place.seq) % {students},
            course.id,
            IF((course.id + place.seq) % 10, 'active', 'withdrawn'),
            NOW(6),
            IF((course.id + place.seq) % 10, NULL, NOW(6))
        FROM ({courses}) AS course
        JOIN seq_1_to_{most} AS place ON place.seq <= {each or most}
        """,
        f"""
        UPDATE {table(course_model)} AS course
        JOIN (
            SELECT course_id, COUNT(*) AS counted FROM {table(model)}
            WHERE status IN ('active', 'completed') GROUP BY course_id
        ) AS found ON found.course_id = course.id
        SET course.total_enrollments = found.counted
        """,
    )


def student_at(course: int, students: int, place: int) -> int:
    """The key of the student that `add_rows()` puts there: not the same in every course."""
    return 1 + (course * 7919 + place) % students
