"""Processes that are killed, and databases that can't write, in the middle of a service."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import DatabaseError, connection, connections

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import (
    enroll,
    enroll_many,
    erase_student,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from tests.conftest import connected_to, drifts
from tests.support.servers import mariadb

Make = Callable[..., Any]
pytestmark = pytest.mark.django_db(transaction=True)


CALLS: dict[str, Callable[[list[int], int, int], Any]] = {
    "enroll": lambda s, c, o: enroll(student=s[0], course=o),
    "unenroll": lambda s, c, o: unenroll(student=s[0], course=c),
    "set_status": lambda s, c, o: set_status(student=s[0], course=c, status="completed"),
    "transfer": lambda s, c, o: transfer(student=s[0], source=c, target=o),
    "enroll_many": lambda s, c, o: enroll_many(course=o, students=s),
    "unenroll_many": lambda s, c, o: unenroll_many(course=c, students=s),
    "erase_student": lambda s, c, o: erase_student(student=s[0]),
}


def run_and_die(call: Callable[[], Any], at: int) -> bool:
    """Call in a process that is killed at its statement number `at`; say whether it was.

    What isn't a statement is COMMIT: it is killed right before that when `at` is one more than
    there are.
    """
    connections.close_all()
    process = os.fork()
    if process == 0:
        number = 0

        def die_in_time() -> None:
            nonlocal number
            number += 1
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)

        def counted(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            die_in_time()
            return execute(sql, params, many, context)

        connection.ensure_connection()
        commit = connection._commit

        def counted_commit() -> None:
            die_in_time()
            commit()
            die_in_time()

        connection._commit = counted_commit
        with connection.execute_wrapper(counted):
            call()
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


@pytest.mark.parametrize("name", CALLS)
def test_a_writer_that_is_killed_leaves_all_or_nothing(
    make_course: Make, make_students: Make, name: str
) -> None:
    students = [student.pk for student in make_students(3)]
    course, other = make_course().pk, make_course().pk
    call = CALLS[name]
    at, killed, seen, ends = 0, True, set(), []
    while killed:
        enroll_many(course=course, students=students)
        before = state()
        at += 1
        killed = run_and_die(lambda: call(students, course, other), at)
        seen.add("nothing" if state() == before else "all")
        assert drifts() == {}
        # Nobody's lock stayed behind, and doing it again is safe.
        call(students, course, other)
        ends.append(state())
        assert drifts() == {}
        for student in students:
            erase_student(student=student)
    assert all(end == ends[0] for end in ends)
    assert at > 3
    # Killed before the COMMIT, and after it.
    assert seen == {"nothing", "all"}


def state() -> list[tuple[Any, ...]]:
    rows = Enrollment.objects.order_by("student", "course")
    return [
        *rows.values_list("student", "course", "status"),
        *Course.objects.order_by("pk").values_list("total_enrollments"),
    ]


@contextmanager
def read_only_server() -> Iterator[None]:
    """MariaDB as on a replica. It binds those only who may not override it."""
    settings = connection.settings_dict
    before = settings["USER"], settings["PASSWORD"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE USER reader@'%' IDENTIFIED BY 'reader'")
        cursor.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO reader@'%'")
        cursor.execute("SET GLOBAL read_only = ON")
    connection.close()
    settings["USER"] = settings["PASSWORD"] = "reader"
    try:
        yield
    finally:
        connection.close()
        settings["USER"], settings["PASSWORD"] = before
        with connection.cursor() as cursor:
            cursor.execute("SET GLOBAL read_only = OFF")
            cursor.execute("DROP USER reader@'%'")


@contextmanager
def read_only_file() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA query_only = ON")
    try:
        yield
    finally:
        connection.close()


@contextmanager
def full_file() -> Iterator[None]:
    """SQLite's answer where the disk is full: no page more."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA page_count")
        cursor.execute(f"PRAGMA max_page_count = {cursor.fetchone()[0]}")
    try:
        yield
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(read_only_server, "read-only", marks=pytest.mark.mariadb),
        pytest.param(read_only_file, "readonly", marks=pytest.mark.sqlite),
        pytest.param(full_file, "full", marks=pytest.mark.sqlite),
    ],
)
def test_a_database_that_can_not_write_says_so_and_keeps_what_it_has(
    course: Course, make_students: Make, fault: Callable[[], Any], said: str
) -> None:
    students = make_students(3_000)
    enroll(student=students[0], course=course)
    with fault():
        with pytest.raises(DatabaseError, match=said):
            enroll_many(course=course, students=students)
        assert Enrollment.objects.count() == 1
        assert drifts() == {}
    assert enroll_many(course=course, students=students).created == 2_999
    assert drifts() == {}


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Another MariaDB, whose only file can't grow."""
    options = ["--innodb-file-per-table=0", "--innodb-data-file-path=ibdata1:12M;ibdata2:10M"]
    with mariadb(options=options) as server, connected_to(server.url):
        yield


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_a_full_disk_is_said_and_what_was_there_stays(full_disk: None) -> None:
    course = Course.objects.create(title="Hot", slug="hot")
    enrolled = []

    def enrol_until_full() -> None:
        for number in range(1_000):
            names = [f"{number}-{each}" for each in range(900)]
            users.bulk_create([users.model(username=name) for name in names])
            students = users.filter(username__in=names).values_list("pk", flat=True)
            enrolled.append(enroll_many(course=course, students=students).created)

    users = get_user_model()._default_manager
    with pytest.raises(DatabaseError, match="is full"):
        enrol_until_full()
    assert Enrollment.objects.count() == sum(enrolled) > 0
    assert drifts() == {}
    # What needs no room goes on.
    student = Enrollment.objects.first().student
    assert unenroll(student=student, course=course) is True
    assert drifts() == {}
