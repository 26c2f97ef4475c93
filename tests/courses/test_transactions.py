"""Conflicts and lost connections, made for real, and what the services make of them."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import F
from django.db.models.signals import post_save

from courses import transactions
from courses.counts.drift import rebuild
from courses.models import Course
from courses.transactions import retry_transaction
from enrollments.models import Enrollment
from enrollments.services import (
    BulkResult,
    enroll,
    enroll_many,
    erase_student,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from tests.conftest import drifts
from tests.support.proxy import TCPProxy
from tests.support.threads import ConcurrentThread, deadlocks

Make = Callable[..., Any]
pytestmark = pytest.mark.django_db(transaction=True)


def lock(course: Course) -> None:
    Course.objects.select_for_update().get(pk=course.pk)


@pytest.fixture
def impatient() -> Iterator[None]:
    """A connection that waits for a lock for a second at most."""
    setting = {
        "mysql": "SET SESSION innodb_lock_wait_timeout = 1",
        "sqlite": "PRAGMA busy_timeout = 100",
    }
    with connection.cursor() as cursor:
        cursor.execute(setting[connection.vendor])
    yield
    connection.close()


def hold(course: Course, seconds: float) -> None:
    with transaction.atomic():
        lock(course)
        time.sleep(seconds)


def test_a_lock_that_is_held_too_long_is_tried_again(
    course: Course, student: Any, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    rival = ConcurrentThread(lambda: hold(course, 1.6 if connection.vendor == "mysql" else 0.5))
    rival.start()
    time.sleep(0.2)
    with caplog.at_level("INFO", "courses.transactions"):
        assert enroll(student=student, course=course)[1] is True
    rival.finish()
    assert "trying again" in caplog.text
    assert drifts() == {}


def test_inside_a_callers_transaction_the_error_rises_at_once(
    course: Course, student: Any, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    if connection.vendor == "sqlite":
        # The caller's own BEGIN IMMEDIATE waits here, so there is nothing left to fail later.
        attempts = []
        with pytest.raises(OperationalError, match="locked"), transaction.atomic():
            retry_transaction()(lambda: attempts.append(1) or _raise("database is locked"))()
        assert attempts == [1]
        return
    rival = ConcurrentThread(lambda: hold(course, 1.6))
    rival.start()
    time.sleep(0.2)
    with (
        caplog.at_level("INFO", "courses.transactions"),
        pytest.raises(OperationalError, match="Lock wait timeout"),
        transaction.atomic(),
    ):
        enroll(student=student, course=course)
    rival.finish()
    assert "trying again" not in caplog.text
    assert not Enrollment.objects.exists()
    assert drifts() == {}


def _raise(*args: Any) -> None:
    raise OperationalError(*args)


@pytest.mark.mariadb
def test_without_autocommit_the_transaction_is_the_callers(course: Course, student: Any) -> None:
    attempts = []
    transaction.set_autocommit(False)
    try:
        enroll(student=student, course=course)
        with pytest.raises(OperationalError):
            retry_transaction()(lambda: attempts.append(1) or _raise(1213, "Deadlock found"))()
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert attempts == [1]
    assert not Enrollment.objects.exists()
    assert drifts() == {}


def test_attempts_are_bounded_and_the_last_error_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "ATTEMPTS", 5)
    attempts = []
    with pytest.raises(OperationalError, match="1213"):
        retry_transaction()(lambda: attempts.append(1) or _raise(1213, "Deadlock found"))()
    assert len(attempts) == 5


def test_time_is_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "GIVE_UP_AFTER", 0.3)
    started = time.monotonic()
    with pytest.raises(OperationalError, match="1213"):
        retry_transaction()(lambda: _raise(1213, "Deadlock found"))()
    assert time.monotonic() - started < 2


def test_other_errors_are_not_tried_again(course: Course) -> None:
    attempts = []

    def wrong() -> None:
        attempts.append(1)
        Course.objects.create(title="Again", slug=course.slug)

    with pytest.raises(Exception, match=r"slug|UNIQUE"):
        retry_transaction()(wrong)()
    assert attempts == [1]


@pytest.mark.mariadb
def test_the_victim_of_a_deadlock_is_tried_again(make_course: Make, student: Any) -> None:
    """Somebody outside locks two courses against the order of their keys."""
    first, second = make_course(), make_course()
    enroll(student=student, course=first)
    before = deadlocks()

    def against_the_order() -> None:
        with transaction.atomic():
            lock(second)
            # What has written more is not the victim.
            Course.objects.bulk_create([Course(title=f"C{n}", slug=f"c{n}") for n in range(50)])
            time.sleep(0.5)
            lock(first)

    rival = ConcurrentThread(against_the_order)
    rival.start()
    time.sleep(0.2)
    assert transfer(student=student, source=first, target=second)[1] is True
    rival.finish()
    assert deadlocks() == before + 1
    assert drifts() == {}


@pytest.mark.mariadb
def test_a_connection_that_is_killed_in_mid_transaction_is_made_anew(
    course: Course, make_students: Make
) -> None:
    students = make_students(2)
    killed = []

    @retry_transaction()
    def enrol_both() -> None:
        enroll(student=students[0], course=course)
        if not killed:
            with connection.cursor() as cursor:
                cursor.execute("SELECT CONNECTION_ID()")
                killed.append(cursor.fetchone()[0])
            ConcurrentThread(
                lambda: connection.cursor().execute(f"KILL {killed[0]}")
            ).start_and_finish()
        enroll(student=students[1], course=course)

    enrol_both()
    assert killed
    assert Enrollment.objects.count() == 2
    assert drifts() == {}


@pytest.mark.mariadb
@pytest.mark.parametrize("done", [False, True], ids=["before COMMIT", "after COMMIT"])
@pytest.mark.parametrize(
    ("enrolled", "call", "answer", "again"),
    [
        (0, lambda s, c, o: enroll(student=s[0], course=c)[1], True, False),
        (1, lambda s, c, o: unenroll(student=s[0], course=c), True, False),
        (
            1,
            lambda s, c, o: set_status(student=s[0], course=c, status="completed"),
            True,
            False,
        ),
        (1, lambda s, c, o: transfer(student=s[0], source=c, target=o)[1], True, False),
        (
            1,
            lambda s, c, o: enroll_many(course=c, students=s),
            BulkResult(created=2, unchanged=1),
            BulkResult(unchanged=3),
        ),
        (
            2,
            lambda s, c, o: unenroll_many(course=c, students=s),
            BulkResult(withdrawn=2, unchanged=1),
            BulkResult(unchanged=3),
        ),
        (1, lambda s, c, o: erase_student(student=s[0]), 1, 0),
        (2, lambda s, c, o: damage_and_rebuild(c), [5], [5]),
    ],
)
def test_a_connection_lost_at_commit_changes_neither_rows_nor_answer(
    make_course: Make,
    make_students: Make,
    wire: TCPProxy,
    done: bool,
    enrolled: int,
    call: Make,
    answer: Any,
    again: Any,
) -> None:
    course, other = make_course(), make_course()
    students = make_students(3)
    enroll_many(course=course, students=students[:enrolled])
    wire.cut_once(b"COMMIT", after_the_server_did_it=done)
    # It did what it says, even where it was an attempt before the last that did it.
    assert call(students, course, other) == answer
    assert wire.cuts == 1
    assert drifts() == {}
    assert call(students, course, other) == again


def damage_and_rebuild(course: Course) -> list[int]:
    Course.objects.filter(pk=course.pk).update(total_enrollments=F("total_enrollments") + 5)
    return [found.drift for found in rebuild()]


@pytest.mark.mariadb
def test_a_row_taken_up_at_a_lost_commit_is_told_as_taken_up(
    course: Course, student: Any, wire: TCPProxy
) -> None:
    enroll(student=student, course=course)
    unenroll(student=student, course=course)
    wire.cut_once(b"COMMIT", after_the_server_did_it=True)
    assert enroll(student=student, course=course)[1] is True
    assert wire.cuts == 1
    assert drifts() == {}


@pytest.mark.mariadb
@pytest.mark.parametrize("statement", [b"autocommit", b"UPDATE", b"INSERT"])
@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
def test_a_connection_lost_at_any_statement_is_made_anew(
    course: Course, student: Any, wire: TCPProxy, statement: bytes, done: bool
) -> None:
    connection.ensure_connection()
    wire.cut_once(statement, after_the_server_did_it=done)
    assert enroll(student=student, course=course)[1] is True
    assert wire.cuts == 1
    assert Enrollment.objects.count() == 1
    assert drifts() == {}


def test_the_other_services_answer_again_after_a_conflict(
    course: Course, make_students: Make, impatient: None
) -> None:
    students = make_students(3)
    enroll_many(course=course, students=students)
    for call in (
        lambda: set_status(student=students[0], course=course, status="completed"),
        lambda: unenroll(student=students[1], course=course),
        lambda: enroll_many(course=course, students=students).reenrolled == 1,
    ):
        rival = ConcurrentThread(lambda: hold(course, 1.3 if connection.vendor == "mysql" else 0.4))
        rival.start()
        time.sleep(0.2)
        assert call() is True
        rival.finish()
    assert drifts() == {}


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("enrolled", "call", "answers"),
    [
        (False, lambda s, c: enroll(student=s, course=c)[1], [False, True]),
        (True, lambda s, c: unenroll(student=s, course=c), [False, True]),
    ],
    ids=["enroll", "unenroll"],
)
def test_what_somebody_else_did_meanwhile_is_theirs(
    course: Course,
    student: Any,
    wire: TCPProxy,
    monkeypatch: pytest.MonkeyPatch,
    enrolled: bool,
    call: Make,
    answers: list[bool],
) -> None:
    if enrolled:
        enroll(student=student, course=course)
    theirs = []
    prepare = transactions._prepare_next_attempt

    def somebody_else_first(state: Any) -> None:
        if not theirs:
            theirs.append(None)
            theirs[0] = ConcurrentThread(lambda: call(student, course)).start_and_finish()
        prepare(state)

    monkeypatch.setattr(transactions, "_prepare_next_attempt", somebody_else_first)
    wire.cut_once(b"COMMIT", after_the_server_did_it=False)
    assert [call(student, course), *theirs] == answers
    assert drifts() == {}


@pytest.mark.mariadb
def test_a_connection_that_died_outside_of_us_is_made_anew(
    course: Course, student: Any, wire: TCPProxy
) -> None:
    def somebody_elses() -> None:
        with transaction.atomic():
            Course.objects.filter(pk=course.pk).update(title="New")
            wire.cut_once(b"autocommit", after_the_server_did_it=False)

    with suppress(OperationalError):
        somebody_elses()
    assert wire.cuts == 1
    assert enroll(student=student, course=course)[1] is True
    assert drifts() == {}


def test_what_fails_after_the_commit_is_not_done_again(course: Course, student: Any) -> None:
    sent = []

    @retry_transaction()
    def enrol_and_tell() -> bool:
        transaction.on_commit(lambda: sent.append("mail"))
        transaction.on_commit(lambda: _raise(1213, "Deadlock found"))
        return enroll(student=student, course=course)[1]

    with pytest.raises(OperationalError, match="1213"):
        enrol_and_tell()
    assert sent == ["mail"]
    assert Enrollment.objects.count() == 1
    assert drifts() == {}


@pytest.mark.parametrize(
    "call",
    [
        lambda s, c: enroll(student=s, course=c),
        lambda s, c: enroll_many(course=c, students=[s]),  # inserted after the lock
    ],
)
def test_an_error_of_a_signal_receiver_is_no_duplicate(
    course: Course, student: Any, call: Callable[[Any, Course], object]
) -> None:
    def receive(**kwargs: Any) -> None:
        raise IntegrityError(1062, "Duplicate entry of the receiver")

    post_save.connect(receive, sender=Enrollment)
    try:
        with pytest.raises(IntegrityError, match="of the receiver"):
            call(student, course)
    finally:
        post_save.disconnect(receive, sender=Enrollment)
    assert not Enrollment.objects.exists()
    assert drifts() == {}
