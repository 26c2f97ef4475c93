"""Kill writers, and make the database read-only or full, in the middle of a service."""

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
from tests.support.counts import drift_by_title
from tests.support.databases import connected_to, connection_options
from tests.support.servers import mariadb

Make = Callable[..., Any]
pytestmark = pytest.mark.django_db(transaction=True)

# By name, with the students, their course and another course.
SERVICES: dict[str, Callable[[list[int], int, int], Any]] = {
    "enroll": lambda s, c, o: enroll(student=s[0], course=o),
    "unenroll": lambda s, c, o: unenroll(student=s[0], course=c),
    "set_status": lambda s, c, o: set_status(student=s[0], course=c, status="completed"),
    "transfer": lambda s, c, o: transfer(student=s[0], source=c, target=o),
    "enroll_many": lambda s, c, o: enroll_many(course=o, students=s),
    "unenroll_many": lambda s, c, o: unenroll_many(course=c, students=s),
    "erase_student": lambda s, c, o: erase_student(student=s[0]),
}


@pytest.fixture(
    params=[{}, pytest.param({"ssl_mode": "REQUIRED"}, marks=pytest.mark.mariadb)],
    ids=["plain", "TLS"],
)
def encryption(request: pytest.FixtureRequest) -> Iterator[None]:
    with connection_options(**request.param):
        yield


@pytest.mark.parametrize("name", SERVICES)
def test_killed_service_commits_everything_or_nothing(
    make_course: Make, make_students: Make, encryption: None, name: str
) -> None:
    students = [student.pk for student in make_students(3)]
    course, other = make_course().pk, make_course().pk
    service = SERVICES[name]
    kill_at, was_killed, results, final_states = 0, True, set(), []
    while was_killed:
        enroll_many(course=course, students=students)
        initial_state = read_state()
        kill_at += 1
        was_killed = run_and_kill(lambda: service(students, course, other), kill_at)
        results.add("nothing" if read_state() == initial_state else "everything")
        assert drift_by_title() == {}
        # The killed process left no lock behind, and the call can be repeated.
        service(students, course, other)
        final_states.append(read_state())
        assert drift_by_title() == {}
        for student in students:
            erase_student(student=student)
    assert all(state == final_states[0] for state in final_states)
    assert kill_at > 3
    # The process was killed before COMMIT and after it.
    assert results == {"nothing", "everything"}


def run_and_kill(call: Callable[[], Any], kill_at: int) -> bool:
    """Call in a process that is killed at its step `kill_at`; return whether it got that far.

    Each statement is a step, and the moments right before and after COMMIT are steps.
    """
    connections.close_all()
    process = os.fork()
    if process == 0:
        _count_steps_and_call(call, kill_at)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def _count_steps_and_call(call: Callable[[], Any], kill_at: int) -> None:
    step = 0

    def count_step() -> None:
        nonlocal step
        step += 1
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def execute_step(execute: Any, *arguments: Any) -> Any:
        count_step()
        return execute(*arguments)

    connection.ensure_connection()
    commit = connection._commit

    def commit_steps() -> None:
        count_step()
        commit()
        count_step()

    connection._commit = commit_steps
    with connection.execute_wrapper(execute_step):
        call()


def read_state() -> list[tuple[Any, ...]]:
    rows = Enrollment.objects.order_by("student", "course")
    return [
        *rows.values_list("student", "course", "status"),
        *Course.objects.order_by("pk").values_list("total_enrollments"),
    ]


@contextmanager
def read_only_server() -> Iterator[None]:
    """Make MariaDB read-only, as a replica is, and connect as a user without READ ONLY ADMIN."""
    settings = connection.settings_dict
    credentials = settings["USER"], settings["PASSWORD"]
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
        settings["USER"], settings["PASSWORD"] = credentials
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
    """Make SQLite fail as it does on a full disk."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA page_count")
        cursor.execute(f"PRAGMA max_page_count = {cursor.fetchone()[0]}")
    try:
        yield
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param(read_only_server, "read-only", marks=pytest.mark.mariadb),
        pytest.param(read_only_file, "readonly", marks=pytest.mark.sqlite),
        pytest.param(full_file, "full", marks=pytest.mark.sqlite),
    ],
)
def test_failed_write_raises_and_changes_nothing(
    course: Course, make_students: Make, fault: Callable[[], Any], message: str
) -> None:
    students = make_students(3_000)
    enroll(student=students[0], course=course)
    with fault():
        with pytest.raises(DatabaseError, match=message):
            enroll_many(course=course, students=students)
        assert Enrollment.objects.count() == 1
        assert drift_by_title() == {}
    assert enroll_many(course=course, students=students).created == 2_999
    assert drift_by_title() == {}


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Connect to a MariaDB whose only data file cannot grow."""
    options = ["--innodb-file-per-table=0", "--innodb-data-file-path=ibdata1:12M;ibdata2:10M"]
    with mariadb(options=options) as server, connected_to(server.url):
        yield


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_full_disk_raises_and_keeps_committed_rows(small_disk: None) -> None:
    course = Course.objects.create(title="Busy", slug="busy")
    users = get_user_model()._default_manager
    created = []

    def enroll_until_disk_is_full() -> None:
        for batch in range(1_000):
            names = [f"{batch}-{number}" for number in range(900)]
            users.bulk_create([users.model(username=name) for name in names])
            students = users.filter(username__in=names).values_list("pk", flat=True)
            created.append(enroll_many(course=course, students=students).created)

    with pytest.raises(DatabaseError, match="is full"):
        enroll_until_disk_is_full()
    assert Enrollment.objects.count() == sum(created) > 0
    assert drift_by_title() == {}
    # A withdrawal needs no space and still works.
    student = Enrollment.objects.first().student
    assert unenroll(student=student, course=course) is True
    assert drift_by_title() == {}
