"""retry_transaction(), with real conflicts and lost connections, in the services that use it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import F

from courses import transactions
from courses.counts.drift import rebuild
from courses.models import Course
from courses.transactions import retry_transaction
from enrollments import writing
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
from tests.support.commands import manage, unmigrated_database
from tests.support.counts import drift_by_title
from tests.support.databases import connection_options
from tests.support.enrollments import MakeCourse, MakeStudents
from tests.support.locks import (
    forced_deadlock,
    locked_past_the_timeout,
    metadata_locked_past_the_timeout,
)
from tests.support.proxy import TCPProxy
from tests.support.servers import create_certificate
from tests.support.threads import ConcurrentThread

pytestmark = pytest.mark.django_db(transaction=True)

RETRY_LOGGER = "courses.transactions"


@pytest.fixture(autouse=True)
def check_counts_afterwards() -> Iterator[None]:
    yield
    assert drift_by_title() == {}


def deadlock_error() -> OperationalError:
    return OperationalError(1213, "Deadlock found")


class TestRetries:
    def test_enroll_is_retried_after_a_lock_timeout(
        self,
        course: Course,
        student: User,
        short_lock_timeout: None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with (
            caplog.at_level("INFO", RETRY_LOGGER),
            locked_past_the_timeout(course),
        ):
            assert enroll(student=student, course=course)[1] is True
        assert caplog.messages[0].startswith("Attempt 1 failed, retrying: ")

    @pytest.mark.parametrize(
        ("call", "result"),
        [
            pytest.param(
                lambda students, course: set_status(
                    student=students[0], course=course, status="completed"
                ),
                True,
                id="set_status",
            ),
            pytest.param(
                lambda students, course: unenroll(student=students[0], course=course),
                True,
                id="unenroll",
            ),
            pytest.param(
                lambda students, course: enroll_many(course=course, students=students),
                BulkResult(created=1, unchanged=1),
                id="enroll_many",
            ),
        ],
    )
    def test_other_services_are_retried_after_a_lock_timeout(
        self,
        course: Course,
        make_students: MakeStudents,
        short_lock_timeout: None,
        call: Callable[[list[User], Course], Any],
        result: Any,
    ) -> None:
        students = make_students(2)
        enroll(student=students[0], course=course)
        with locked_past_the_timeout(course):
            assert call(students, course) == result

    @pytest.mark.mariadb
    def test_the_victim_of_a_deadlock_is_retried(
        self, make_course: MakeCourse, student: User
    ) -> None:
        source, target = make_course(), make_course()
        enroll(student=student, course=source)
        with forced_deadlock(source, target):
            assert transfer(student=student, source=source, target=target)[1] is True

    def test_the_last_error_is_raised_after_max_attempts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transactions, "MAX_ATTEMPTS", 5)
        function = Mock(side_effect=deadlock_error())
        with pytest.raises(OperationalError, match="1213"):
            retry_transaction()(function)()
        assert function.call_count == 5

    def test_the_last_error_is_raised_after_the_time_limit(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transactions, "RETRY_TIME_LIMIT", 0.3)
        function = Mock(side_effect=deadlock_error())
        start = time.monotonic()
        with pytest.raises(OperationalError, match="1213"):
            retry_transaction()(function)()
        assert time.monotonic() - start < 2

    def test_other_errors_are_not_retried(self, course: Course) -> None:
        function = Mock(side_effect=lambda: Course.objects.create(title="Same", slug=course.slug))
        with pytest.raises(IntegrityError):
            retry_transaction()(function)()
        assert function.call_count == 1


@pytest.mark.mariadb
class TestMetadataLocks:
    """ALTER TABLE, backups and LOCK TABLES lock tables instead of rows."""

    @pytest.mark.parametrize(
        "statement", ["LOCK TABLES courses_course WRITE", "FLUSH TABLES WITH READ LOCK"]
    )
    def test_enroll_is_retried_after_a_timeout(
        self,
        course: Course,
        student: User,
        short_lock_timeout: None,
        caplog: pytest.LogCaptureFixture,
        statement: str,
    ) -> None:
        with (
            caplog.at_level("INFO", RETRY_LOGGER),
            metadata_locked_past_the_timeout(statement),
        ):
            assert enroll(student=student, course=course)[1] is True
        assert caplog.messages[0].startswith("Attempt 1 failed, retrying: ")

    def test_a_commit_that_times_out_is_rolled_back_and_retried(
        self, course: Course, student: User, short_lock_timeout: None
    ) -> None:
        send_mail = Mock()
        changes: list[bool] = []

        with ExitStack() as stack:

            @retry_transaction()
            def enroll_and_lock() -> None:
                transaction.on_commit(send_mail)
                changes.append(enroll(student=student, course=course)[1])
                if len(changes) == 1:
                    statement = "FLUSH TABLES WITH READ LOCK"
                    stack.enter_context(metadata_locked_past_the_timeout(statement))

            enroll_and_lock()
        assert changes == [True, True]
        assert send_mail.call_count == 1

    def test_all_statements_wait_for_a_lock_for_ten_seconds(self) -> None:
        connection.close()  # If it created the test database, it has migrated and waits longer.
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout")
            assert cursor.fetchone() == (10, 10)

    def test_migrate_waits_longer(self, tmp_path: Path) -> None:
        options = urlencode({"init_command": "SET lock_wait_timeout = 1"})
        with unmigrated_database(tmp_path) as url, connection.cursor() as cursor:
            env = {"DATABASE_URL": f"{url}?{options}"}
            migrate = ConcurrentThread(lambda: manage("migrate", "contenttypes", env=env))
            cursor.execute("FLUSH TABLES WITH READ LOCK")
            migrate.start()
            try:
                while migrate.is_alive() and not is_waiting_for_a_metadata_lock(seconds=1.5):
                    time.sleep(0.05)
            finally:
                cursor.execute("UNLOCK TABLES")
            result = migrate.finish()
        assert result.returncode == 0, result.stderr


def is_waiting_for_a_metadata_lock(*, seconds: float) -> bool:
    """Return whether a connection has waited for so long."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT COUNT(*) FROM information_schema.processlist "
            "WHERE state LIKE 'Waiting for %% lock' AND time_ms > %s",
            [seconds * 1_000],
        )
        return cursor.fetchone()[0] > 0


class TestOuterTransaction:
    """Only whoever began the transaction can repeat it."""

    def test_an_error_is_raised_at_once(self) -> None:
        function = Mock(side_effect=deadlock_error())
        with pytest.raises(OperationalError, match="1213"), transaction.atomic():
            retry_transaction()(function)()
        assert function.call_count == 1

    @pytest.mark.mariadb
    def test_a_lock_timeout_is_raised_at_once(
        self,
        course: Course,
        student: User,
        short_lock_timeout: None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with (
            caplog.at_level("INFO", RETRY_LOGGER),
            locked_past_the_timeout(course),
            pytest.raises(OperationalError, match="Lock wait timeout"),
            transaction.atomic(),
        ):
            enroll(student=student, course=course)
        assert caplog.messages == []
        assert not Enrollment.objects.exists()

    @pytest.mark.mariadb
    def test_the_transaction_is_the_callers_without_autocommit(
        self, course: Course, student: User
    ) -> None:
        function = Mock(side_effect=deadlock_error())
        transaction.set_autocommit(False)
        try:
            enroll(student=student, course=course)
            with pytest.raises(OperationalError):
                retry_transaction()(function)()
            transaction.rollback()
        finally:
            transaction.set_autocommit(True)
        assert function.call_count == 1
        assert not Enrollment.objects.exists()


class TestOnCommitCallbacks:
    def test_an_error_of_a_callback_is_raised_and_not_retried(
        self, course: Course, student: User
    ) -> None:
        send_mail = Mock()

        @retry_transaction()
        def enroll_and_send_mail() -> None:
            transaction.on_commit(send_mail)
            transaction.on_commit(Mock(side_effect=deadlock_error()))
            enroll(student=student, course=course)

        with pytest.raises(OperationalError, match="1213"):
            enroll_and_send_mail()
        assert send_mail.call_count == 1
        assert Enrollment.objects.count() == 1

    @pytest.mark.mariadb
    @pytest.mark.parametrize(
        "executes_commit", [False, True], ids=["COMMIT lost", "answer to COMMIT lost"]
    )
    def test_callbacks_run_once_if_the_connection_is_lost_at_commit(
        self, course: Course, student: User, database_proxy: TCPProxy, executes_commit: bool
    ) -> None:
        send_mail = Mock()

        @retry_transaction(is_own_result=lambda earlier, latest: not latest)
        def enroll_and_send_mail() -> bool:
            _, changed = enroll(student=student, course=course)
            if changed:
                transaction.on_commit(send_mail)
            return changed

        database_proxy.drop_once(b"COMMIT", executes_query=executes_commit)
        assert enroll_and_send_mail() is True
        assert database_proxy.dropped == 1
        assert send_mail.call_count == 1


@pytest.mark.mariadb
class TestLostConnection:
    @pytest.mark.parametrize("query", [b"autocommit", b"UPDATE", b"INSERT"])
    @pytest.mark.parametrize(
        "executes_query", [False, True], ids=["before the query", "after the query"]
    )
    def test_enroll_reconnects_after_losing_the_connection_at_any_query(
        self,
        course: Course,
        student: User,
        database_proxy: TCPProxy,
        query: bytes,
        executes_query: bool,
    ) -> None:
        connection.ensure_connection()
        database_proxy.drop_once(query, executes_query=executes_query)
        assert enroll(student=student, course=course)[1] is True
        assert database_proxy.dropped == 1
        assert Enrollment.objects.count() == 1

    def test_a_killed_connection_repeats_the_whole_transaction(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        first, second = make_students(2)
        killed_connections: list[int] = []

        @retry_transaction()
        def enroll_both() -> None:
            enroll(student=first, course=course)
            if not killed_connections:
                killed_connections.append(kill_own_connection())
            enroll(student=second, course=course)

        enroll_both()
        assert len(killed_connections) == 1
        assert Enrollment.objects.count() == 2

    @pytest.mark.parametrize("ssl_mode", ["DISABLED", "REQUIRED"])
    def test_a_query_timeout_is_retried(self, ssl_mode: str) -> None:
        calls: list[str] = []

        @retry_transaction()
        def sleep_once() -> None:
            calls.append("call")
            with connection.cursor() as cursor:
                cursor.execute("SELECT SLEEP(%s)", [3 if len(calls) == 1 else 0])

        with connection_options(ssl_mode=ssl_mode, read_timeout=1):
            sleep_once()
        assert len(calls) == 2

    def test_a_connection_that_died_before_the_call_is_replaced(
        self, course: Course, student: User, database_proxy: TCPProxy
    ) -> None:
        with suppress(OperationalError), transaction.atomic():
            Course.objects.filter(pk=course.pk).update(title="New")
            database_proxy.drop_once(b"autocommit", executes_query=False)
        # Leaving the block lost the connection.
        assert database_proxy.dropped == 1
        assert enroll(student=student, course=course)[1] is True


@pytest.mark.mariadb
@pytest.mark.parametrize("database_proxy", ["REQUIRED"], indirect=True)
class TestVerifiedCertificate:
    """The certificate is that of the proxy."""

    def test_a_trusted_certificate_is_accepted(
        self, course: Course, student: User, database_proxy: TCPProxy, tmp_path: Path
    ) -> None:
        with connection_trusting(database_proxy.certificate, tmp_path):
            assert enroll(student=student, course=course)[1] is True

    def test_a_rejected_certificate_is_not_retried(
        self,
        course: Course,
        student: User,
        database_proxy: TCPProxy,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        (tmp_path / "other").mkdir()
        certificate, _ = create_certificate(folder=tmp_path / "other")
        with (
            caplog.at_level("INFO", RETRY_LOGGER),
            connection_trusting(certificate, tmp_path),
            pytest.raises(OperationalError, match="certificate"),
        ):
            enroll(student=student, course=course)
        assert caplog.messages == []


def connection_trusting(certificate: Path, folder: Path) -> AbstractContextManager[None]:
    file = folder / "client.cnf"
    file.write_text(f"[client]\nssl-ca={certificate}\n")
    return connection_options(ssl_mode="VERIFY_IDENTITY", read_default_file=str(file))


def kill_own_connection() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        (connection_id,) = cursor.fetchone()
    ConcurrentThread(
        lambda: connection.cursor().execute(f"KILL {connection_id}")
    ).start_and_finish()
    return connection_id


def damage_and_rebuild(course: Course) -> list[int]:
    """Return the drift of the corrected courses."""
    Course.objects.filter(pk=course.pk).update(total_enrollments=F("total_enrollments") + 5)
    return [drifted_course.drift for drifted_course in rebuild()]


@pytest.mark.mariadb
class TestLostCommit:
    """The connection is lost at COMMIT, so the client cannot know whether it was executed."""

    @pytest.mark.parametrize(
        "executes_commit", [False, True], ids=["COMMIT lost", "answer to COMMIT lost"]
    )
    @pytest.mark.parametrize(
        ("number_enrolled", "call", "result", "repeated_result"),
        [
            pytest.param(
                0,
                lambda students, course, _: enroll(student=students[0], course=course)[1],
                True,
                False,
                id="enroll",
            ),
            pytest.param(
                1,
                lambda students, course, _: unenroll(student=students[0], course=course),
                True,
                False,
                id="unenroll",
            ),
            pytest.param(
                1,
                lambda students, course, _: set_status(
                    student=students[0], course=course, status="completed"
                ),
                True,
                False,
                id="set_status",
            ),
            pytest.param(
                1,
                lambda students, course, target: transfer(
                    student=students[0], source=course, target=target
                )[1],
                True,
                False,
                id="transfer",
            ),
            pytest.param(
                1,
                lambda students, course, _: enroll_many(course=course, students=students),
                BulkResult(created=2, unchanged=1),
                BulkResult(unchanged=3),
                id="enroll_many",
            ),
            pytest.param(
                2,
                lambda students, course, _: unenroll_many(course=course, students=students),
                BulkResult(withdrawn=2, unchanged=1),
                BulkResult(unchanged=3),
                id="unenroll_many",
            ),
            pytest.param(
                1,
                lambda students, course, _: erase_student(student=students[0]),
                1,
                0,
                id="erase_student",
            ),
            pytest.param(
                2,
                lambda students, course, _: damage_and_rebuild(course),
                [5],
                [5],
                id="rebuild",
            ),
        ],
    )
    def test_the_call_returns_what_its_committed_attempt_did(
        self,
        make_course: MakeCourse,
        make_students: MakeStudents,
        database_proxy: TCPProxy,
        executes_commit: bool,
        number_enrolled: int,
        call: Callable[[list[User], Course, Course], Any],
        result: Any,
        repeated_result: Any,
    ) -> None:
        course, target = make_course(), make_course()
        students = make_students(3)
        enroll_many(course=course, students=students[:number_enrolled])
        database_proxy.drop_once(b"COMMIT", executes_query=executes_commit)
        assert call(students, course, target) == result
        assert database_proxy.dropped == 1
        assert drift_by_title() == {}
        assert call(students, course, target) == repeated_result

    def test_a_committed_reenrollment_returns_changed_true(
        self, course: Course, student: User, database_proxy: TCPProxy
    ) -> None:
        enroll(student=student, course=course)
        unenroll(student=student, course=course)
        database_proxy.drop_once(b"COMMIT", executes_query=True)
        assert enroll(student=student, course=course)[1] is True
        assert database_proxy.dropped == 1

    def test_a_connection_lost_again_while_the_commit_is_looked_up(
        self, course: Course, student: User, database_proxy: TCPProxy
    ) -> None:
        database_proxy.drop_in_turn((b"\x03COMMIT", True), (b"SELECT 1 AS", False))
        assert enroll(student=student, course=course)[1] is True
        assert database_proxy.dropped == 2

    def test_an_enrollment_during_the_retry_of_a_committed_erasure_is_erased_too(
        self,
        make_course: MakeCourse,
        student: User,
        database_proxy: TCPProxy,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        course, other_course = make_course(), make_course()
        enroll(student=student, course=course)
        lock_courses, calls = writing._lock_courses, []

        def enroll_before_locking(course_ids: Any) -> Any:
            calls.append(course_ids)
            if len(calls) == 2:
                ConcurrentThread(
                    lambda: enroll(student=student, course=other_course)
                ).start_and_finish()
            return lock_courses(course_ids)

        monkeypatch.setattr(writing, "_lock_courses", enroll_before_locking)
        database_proxy.drop_once(b"\x03COMMIT", executes_query=True)
        assert erase_student(student=student) == 1
        assert not Enrollment.objects.exists()

    @pytest.mark.parametrize(
        "executes_commit",
        [
            pytest.param([True, False], id="first attempt committed"),
            pytest.param([False, True], id="second attempt committed"),
        ],
    )
    def test_two_connections_lost_at_commit_in_one_call(
        self,
        course: Course,
        student: User,
        database_proxy: TCPProxy,
        executes_commit: list[bool],
    ) -> None:
        # The command byte tells COMMIT from READ COMMITTED, which each new connection sends.
        database_proxy.drop_in_turn(*((b"\x03COMMIT", executes) for executes in executes_commit))
        enrollment, changed = enroll(student=student, course=course)
        assert database_proxy.dropped == 2
        assert changed is True
        assert enrollment.pk == Enrollment.objects.get().pk

    @pytest.mark.parametrize(
        ("is_enrolled", "call"),
        [
            pytest.param(
                False,
                lambda student, course: enroll(student=student, course=course)[1],
                id="enroll",
            ),
            pytest.param(
                True,
                lambda student, course: unenroll(student=student, course=course),
                id="unenroll",
            ),
            pytest.param(
                True,
                lambda student, course: set_status(
                    student=student, course=course, status="completed"
                ),
                id="set_status, which changes no date",
            ),
        ],
    )
    def test_a_change_by_another_call_between_two_attempts_is_not_claimed(
        self,
        course: Course,
        student: User,
        database_proxy: TCPProxy,
        monkeypatch: pytest.MonkeyPatch,
        is_enrolled: bool,
        call: Callable[[User, Course], bool],
    ) -> None:
        if is_enrolled:
            enroll(student=student, course=course)
        results_of_other_call: list[bool] = []
        prepare_next_attempt = transactions._prepare_next_attempt

        def run_other_call_first(retry_state: Any) -> None:
            if not results_of_other_call:
                # The other call reads the patched attribute, too.
                monkeypatch.setattr(transactions, "_prepare_next_attempt", prepare_next_attempt)
                thread = ConcurrentThread(lambda: call(student, course))
                results_of_other_call.append(thread.start_and_finish())
            prepare_next_attempt(retry_state)

        monkeypatch.setattr(transactions, "_prepare_next_attempt", run_other_call_first)
        database_proxy.drop_once(b"COMMIT", executes_query=False)
        assert call(student, course) is False
        assert results_of_other_call == [True]
