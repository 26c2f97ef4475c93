import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from courses.counts import audit
from courses.counts.audit import CheckInProgress, prune, run_audit, timed_check
from courses.counts.drift import Batch, rebuild
from courses.models import CountDiscrepancy, CountRun, Course
from enrollments.services import enroll_many
from tests.support.audits import CHECK, REBUILD, add_drift, run_recorded
from tests.support.commands import manage, mariadb_client
from tests.support.counts import drift_by_title
from tests.support.databases import failing_first_insert
from tests.support.threads import ConcurrentThread

Make = Callable[..., Any]


@pytest.fixture
def courses(make_course: Make, make_students: Make) -> list[Course]:
    """Return twelve courses. The first two have three students each."""
    courses = [make_course(title=f"Course {number}") for number in range(12)]
    students = make_students(3)
    for course in courses[:2]:
        enroll_many(course=course, students=students)
    return courses


def numbers(run: CountRun) -> tuple[int, ...]:
    return run.courses_checked, run.drifted, run.corrected, run.absolute_drift


def open_drift() -> dict[str, int]:
    return dict(CountDiscrepancy.objects.open().values_list("course_title", "drift"))


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def during_check(*steps: Callable[[], Any], batch_size: int = 1, **options: Any) -> CountRun:
    """Run a check, and after each batch the next one of the steps."""
    remaining = iter(steps)

    def run_next_step(batch: Batch) -> None:
        next(remaining, lambda: None)()

    return run_recorded(CHECK, batch_size=batch_size, on_batch=run_next_step, **options)


@contextmanager
def inserts_rejected(table: str) -> Iterator[None]:
    trigger = {
        "mysql": "FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'rejected'",
        "sqlite": "BEGIN SELECT RAISE(ABORT, 'rejected'); END",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TRIGGER reject_inserts BEFORE INSERT ON {table} {trigger}")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER reject_inserts")


class TestRuns:
    def test_a_check_records_what_it_found(self, courses: list[Course]) -> None:
        add_drift(courses[0], by=-3)
        add_drift(courses[2], by=2)
        run = run_recorded(CHECK)
        assert numbers(run) == (12, 2, 0, 5)
        assert (run.kind, run.actor, run.is_full) == (CHECK, "the tests", True)
        assert run.started_at <= run.finished_at <= timezone.now()
        discrepancies = run.discrepancies.order_by("pk")
        assert list(
            discrepancies.values_list("course", "stored", "true", "drift", "corrected")
        ) == [(courses[0].pk, 0, 3, -3, False), (courses[2].pk, 2, 0, 2, False)]
        for discrepancy in discrepancies:
            assert run.started_at <= discrepancy.found_at <= run.finished_at
            assert discrepancy.last_seen_at == discrepancy.found_at
            assert discrepancy.resolved_at is None

    def test_a_rebuild_records_courses_that_no_check_had_found_as_resolved(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0], by=4)
        run = run_recorded(REBUILD)
        assert numbers(run) == (12, 1, 1, 4)
        discrepancy = run.discrepancies.get()
        assert (discrepancy.stored, discrepancy.true, discrepancy.corrected) == (7, 3, True)
        assert discrepancy.resolved_at == discrepancy.found_at
        assert open_drift() == {}

    def test_a_run_of_selected_courses_is_not_full(self, courses: list[Course]) -> None:
        assert not run_recorded(CHECK, courses[0]).is_full
        assert run_recorded(CHECK).is_full
        call_command("rebuild_counts", "--course-id", str(courses[0].pk), verbosity=0)
        run = CountRun.objects.latest("pk")
        assert (run.courses_checked, run.is_full) == (1, False)

    def test_an_interrupted_rebuild_records_its_corrections(
        self, courses: list[Course], caplog: pytest.LogCaptureFixture
    ) -> None:
        add_drift(*courses)
        for course in run_audit(kind=REBUILD, actor="the tests", batch_size=5):
            # The corrections are recorded before they are yielded.
            assert CountDiscrepancy.objects.filter(course=course.course_id).exists()
            if course.course_id == courses[6].pk:
                break
        run = CountRun.objects.get()
        assert (run.finished_at, run.is_full) == (None, False)
        # The second batch of five was corrected, but not all of it was yielded.
        assert numbers(run) == (10, 10, 10, 10)
        assert run.discrepancies.count() == 10
        assert len(drift_by_title()) == 2
        assert len(messages(caplog, logging.ERROR)) == 1

    def test_an_interrupted_check_records_its_complete_batches(self, courses: list[Course]) -> None:
        add_drift(*courses)
        for course in run_audit(kind=CHECK, actor="the tests", batch_size=5):
            if course.course_id == courses[6].pk:
                break
        assert numbers(CountRun.objects.get()) == (5, 5, 0, 5)
        assert len(open_drift()) == 5

    def test_a_run_that_cannot_read_the_courses_records_nothing(
        self, courses: list[Course]
    ) -> None:
        unreadable = Course.objects.extra(where=["no_such_column"])
        with transaction.atomic(), pytest.raises(DatabaseError):
            run_recorded(CHECK, courses=unreadable)
        assert CountRun.objects.count() == 0

    def test_the_admin_action_records_the_user(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        data = {"action": "rebuild_counts", "_selected_action": [courses[0].pk]}
        staff_client.post("/admin/courses/course/", data)
        run = CountRun.objects.get()
        assert (run.kind, run.actor, run.is_full) == (REBUILD, "admin: staff", False)
        assert numbers(run) == (1, 1, 1, 1)

    @pytest.mark.mariadb
    @pytest.mark.django_db(transaction=True)
    def test_a_rebuild_that_waited_for_another_one_corrects_nothing(
        self, courses: list[Course]
    ) -> None:
        add_drift(*courses[:2])
        run_recorded(CHECK)
        thread = ConcurrentThread(lambda: run_recorded(REBUILD))
        with transaction.atomic():
            list(rebuild())
            thread.start_and_wait_until_blocked()
        assert numbers(thread.finish()) == (12, 0, 0, 0)
        assert open_drift() == {}


class TestLog:
    def test_a_check_that_finds_drift_logs_one_error(
        self, courses: list[Course], caplog: pytest.LogCaptureFixture
    ) -> None:
        run_recorded(CHECK)
        assert messages(caplog, logging.ERROR) == []
        add_drift(*courses[:10], by=3)
        run_recorded(CHECK, batch_size=4)
        assert messages(caplog, logging.ERROR) == [
            "12 courses checked: 10 drifted, by 30 enrollments in total (the tests). "
            "Correct them with: manage.py rebuild_counts"
        ]

    def test_a_rebuild_that_corrects_drift_logs_one_error(
        self, courses: list[Course], caplog: pytest.LogCaptureFixture
    ) -> None:
        add_drift(courses[0])
        run_recorded(REBUILD, courses[0])
        assert messages(caplog, logging.ERROR) == [
            "1 course checked: 1 drifted, by 1 enrollment in total (the tests). The stored counts "
            "are corrected. Find out what writes to the tables without the services."
        ]

    def test_log_drift_false_logs_nothing(
        self, courses: list[Course], caplog: pytest.LogCaptureFixture
    ) -> None:
        add_drift(courses[0])
        run_recorded(CHECK, log_drift=False)
        assert messages(caplog, logging.ERROR) == []

    def test_a_line_break_in_the_actor_does_not_start_a_new_line(
        self, courses: list[Course], caplog: pytest.LogCaptureFixture
    ) -> None:
        add_drift(courses[0])
        run = run_recorded(CHECK, actor="admin: a\n2026-11-22 INFO forged")
        assert run.actor == "admin: a 2026-11-22 INFO forged"
        (message,) = messages(caplog, logging.ERROR)
        assert len(message.splitlines()) == 1


class TestDiscrepancies:
    def test_a_check_updates_the_open_row_of_a_course(self, courses: list[Course]) -> None:
        add_drift(courses[0], by=2)
        run_recorded(CHECK)
        first = CountDiscrepancy.objects.get()
        add_drift(courses[0], by=3)
        run = run_recorded(CHECK)
        second = CountDiscrepancy.objects.get()
        assert (second.pk, second.found_at) == (first.pk, first.found_at)
        assert second.last_seen_at > first.last_seen_at
        assert second.run == run
        assert (second.stored, second.true, second.drift) == (8, 3, 5)
        assert open_drift() == {"Course 0": 5}

    def test_a_check_resolves_the_row_of_a_correct_course(self, courses: list[Course]) -> None:
        add_drift(*courses[:2])
        run_recorded(CHECK)
        add_drift(courses[0], by=-1)
        run = run_recorded(CHECK, courses[0])
        resolved = CountDiscrepancy.objects.get(course=courses[0])
        assert run.started_at <= resolved.resolved_at <= run.finished_at
        assert not resolved.corrected
        assert open_drift() == {"Course 1": 1}

    def test_a_rebuild_resolves_the_row_that_a_check_opened(self, courses: list[Course]) -> None:
        add_drift(*courses[:2])
        run_recorded(CHECK)
        run = run_recorded(REBUILD, courses[0])
        resolved = run.discrepancies.get()
        assert (resolved.course, resolved.corrected) == (courses[0], True)
        assert run.started_at <= resolved.resolved_at <= run.finished_at
        assert open_drift() == {"Course 1": 1}
        assert CountDiscrepancy.objects.count() == 2

    def test_a_rebuild_resolves_the_row_of_a_course_that_is_already_correct(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        run_recorded(CHECK)
        list(rebuild())
        run_recorded(REBUILD, courses[0])
        resolved = CountDiscrepancy.objects.get()
        assert resolved.resolved_at is not None
        assert not resolved.corrected

    def test_a_course_that_drifts_again_gets_a_new_row(self, courses: list[Course]) -> None:
        for _ in range(2):
            add_drift(courses[0])
            run_recorded(CHECK)
            run_recorded(REBUILD)
        add_drift(courses[0])
        run_recorded(CHECK)
        assert CountDiscrepancy.objects.count() == 3
        assert open_drift() == {"Course 0": 1}

    @pytest.mark.parametrize("batch_size", [1, 5, 1000])
    def test_every_batch_size_records_the_same(
        self, courses: list[Course], batch_size: int
    ) -> None:
        add_drift(*courses[1:6])
        run_recorded(CHECK, batch_size=batch_size)
        assert len(open_drift()) == 5
        add_drift(courses[6])
        # A course between the selected ones stays as it is.
        run_recorded(REBUILD, courses[1], courses[3], batch_size=batch_size)
        assert sorted(open_drift()) == ["Course 2", "Course 4", "Course 5"]
        run_recorded(CHECK, batch_size=batch_size)
        assert sorted(open_drift()) == ["Course 2", "Course 4", "Course 5", "Course 6"]

    def test_a_check_without_drift_writes_only_its_run(self, courses: list[Course]) -> None:
        with CaptureQueriesContext(connection) as queries:
            run_recorded(CHECK, batch_size=2)
        statements = [query["sql"] for query in queries]
        writes = [sql for sql in statements if sql.startswith(("INSERT", "UPDATE", "DELETE"))]
        assert ["countrun" in sql for sql in writes] == [True, True, False]
        # Only the first batch, which is recorded with the run, looks for rows to update.
        assert sum("FOR UPDATE" in sql for sql in statements) <= 1
        lookups = [
            sql for sql in statements if sql.startswith("SELECT 1") and "countdiscrepancy" in sql
        ]
        assert len(lookups) == 5

    def test_a_full_check_resolves_rows_of_deleted_courses(self, courses: list[Course]) -> None:
        add_drift(*courses[5:7])
        run_recorded(CHECK)
        courses[5].delete()
        assert open_drift() == {"Course 6": 1}
        run_recorded(CHECK, courses[6])
        assert CountDiscrepancy.objects.filter(resolved_at=None).count() == 2
        run = run_recorded(CHECK)
        of_deleted = CountDiscrepancy.objects.get(course=None)
        assert (of_deleted.course_title, of_deleted.resolved_at) == ("Course 5", run.finished_at)
        assert open_drift() == {"Course 6": 1}


class TestConcurrentRuns:
    def test_a_check_does_not_resolve_a_row_that_was_opened_after_it_read_the_course(
        self, courses: list[Course]
    ) -> None:
        def drift_and_check() -> None:
            add_drift(courses[0], by=7)
            run_recorded(CHECK, courses[0])

        # The pause between reading a batch and recording it is where other runs happen.
        slow_check = run_audit(kind=CHECK, actor="slow", on_batch=lambda batch: None)
        add_drift(courses[5])
        next(slow_check)  # It has read all courses and recorded none.
        drift_and_check()
        list(slow_check)
        assert open_drift() == {"Course 0": 7, "Course 5": 1}

    def test_a_check_does_not_overwrite_newer_counts_with_older_ones(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0], by=2)
        slow_check = run_audit(kind=CHECK, actor="slow")
        next(slow_check)
        add_drift(courses[0], by=5)
        run_recorded(CHECK)
        list(slow_check)
        assert open_drift() == {"Course 0": 7}
        assert CountDiscrepancy.objects.count() == 1

    def test_duplicate_rows_of_two_checks_are_merged_by_the_next_check(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        run_recorded(CHECK)
        row = CountDiscrepancy.objects.get()
        row.pk = None
        row.save()
        assert open_drift() == {"Course 0": 1}
        run_recorded(CHECK)
        assert CountDiscrepancy.objects.filter(resolved_at=None).count() == 1
        run_recorded(REBUILD)
        assert CountDiscrepancy.objects.filter(resolved_at=None).count() == 0

    def test_a_course_that_is_corrected_during_a_check_is_not_open_afterwards(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        during_check(lambda: None, lambda: run_recorded(REBUILD, courses[0]))
        assert open_drift() == {}
        add_drift(courses[0])
        during_check(lambda: None, lambda: run_recorded(REBUILD))
        assert open_drift() == {}

    def test_a_course_corrected_after_a_check_has_read_it_is_not_opened(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        slow_check = run_audit(kind=CHECK, actor="the tests")
        next(slow_check)  # has read the courses, and recorded nothing
        run_recorded(REBUILD)
        list(slow_check)
        assert open_drift() == {}

    def test_a_course_found_correct_by_a_newer_full_check_is_not_opened(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        slow_check = run_audit(kind=CHECK, actor="the tests")
        next(slow_check)
        add_drift(courses[0], by=-1)
        run_recorded(CHECK)
        list(slow_check)
        assert open_drift() == {}

    def test_a_correction_recorded_after_a_check_that_was_read_before_it_resolves(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        slow_check = run_audit(kind=CHECK, actor="the tests")
        next(slow_check)
        corrections: list[Batch] = []
        list(rebuild(courses=Course.objects.filter(pk=courses[0].pk), on_batch=corrections.append))
        list(slow_check)
        assert open_drift() == {"Course 0": 1}
        run = CountRun(kind=REBUILD, actor="the tests", started_at=timezone.now())
        for correction in corrections:
            audit._save(run, correction, is_new=True)  # as run_audit() does, but later
        assert open_drift() == {}

    @pytest.mark.mariadb
    @pytest.mark.django_db(transaction=True)
    def test_a_check_between_recount_and_commit_of_a_rebuild_leaves_nothing_open(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        locking_reads: list[str] = []

        def check_after_the_recount(execute: Any, sql: str, *args: Any) -> Any:
            result = execute(sql, *args)
            if "courses_course" in sql and "FOR UPDATE" in sql:
                locking_reads.append(sql)
                if len(locking_reads) == 2:  # the first locks, the second reads the new counts
                    ConcurrentThread(lambda: run_recorded(CHECK)).start_and_finish()
            return result

        with connection.execute_wrapper(check_after_the_recount):
            run_recorded(REBUILD)
        assert drift_by_title() == {}
        assert open_drift() == {}

    def test_drift_that_a_slow_check_finds_after_a_faster_one_stays_open(
        self, courses: list[Course]
    ) -> None:
        def check_and_drift() -> None:
            run_recorded(CHECK)
            add_drift(courses[3], by=7)

        during_check(lambda: None, check_and_drift)
        assert open_drift() == {"Course 3": 7}

    @pytest.mark.mariadb
    @pytest.mark.django_db(transaction=True)
    def test_recording_drift_waits_for_no_course(self, courses: list[Course]) -> None:
        add_drift(*courses)
        with transaction.atomic():
            list(Course.objects.select_for_update())
            ConcurrentThread(lambda: run_recorded(CHECK)).start_and_finish()
        # A check that had waited in vain would have recorded nothing.
        assert len(open_drift()) == 12
        list(rebuild())
        with transaction.atomic():
            list(Course.objects.select_for_update())
            ConcurrentThread(lambda: run_recorded(CHECK)).start_and_finish()
        assert open_drift() == {}

    @pytest.mark.django_db(transaction=True)
    def test_simultaneous_checks_leave_each_course_open_once(self, courses: list[Course]) -> None:
        add_drift(*courses)
        threads = [ConcurrentThread(lambda: run_recorded(CHECK, batch_size=3)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.finish()
        assert len(open_drift()) == CountDiscrepancy.objects.open().count() == 12
        run_recorded(REBUILD)
        assert CountDiscrepancy.objects.filter(resolved_at=None).count() == 0


@pytest.mark.django_db(transaction=True)
def test_a_retried_record_changes_no_other_run(course: Course) -> None:
    with failing_first_insert(CountRun, kind=CHECK, actor="other", started_at=timezone.now()):
        list(run_audit(kind=CHECK, actor="test"))
    assert [run.actor for run in CountRun.objects.order_by("pk")] == ["other", "test"]


class TestUnwritableRecords:
    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("table", ["courses_countrun", "courses_countdiscrepancy"])
    def test_a_rebuild_corrects_courses_that_it_cannot_record(
        self, courses: list[Course], caplog: pytest.LogCaptureFixture, table: str
    ) -> None:
        add_drift(*courses[:3])
        with inserts_rejected(table):
            assert len(list(run_audit(kind=REBUILD, actor="the tests", batch_size=1))) == 3
        assert drift_by_title() == {}
        assert messages(caplog, logging.WARNING) == [
            "This run could not be recorded completely: rejected"
        ]
        assert CountDiscrepancy.objects.count() == 0

    @pytest.mark.sqlite
    @pytest.mark.django_db(transaction=True)
    def test_a_rebuild_corrects_counts_whose_sum_is_too_large_to_record(
        self, courses: list[Course]
    ) -> None:
        too_large = Course.objects.filter(pk__in=[courses[4].pk, courses[7].pk])
        too_large.update(total_enrollments=2**63 - 1)
        assert len(list(run_audit(kind=CHECK, actor="the tests"))) == 2
        assert len(list(run_audit(kind=REBUILD, actor="the tests"))) == 2
        assert drift_by_title() == {}

    @pytest.mark.mariadb
    @pytest.mark.django_db(transaction=True)
    def test_a_database_user_with_only_the_select_privilege_can_check(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        user, password = "reader", "only_for_the_tests"
        settings = connection.settings_dict
        address = f"{settings['HOST']}:{settings['PORT']}/{settings['NAME']}"
        environment = {"DATABASE_URL": f"mysql://{user}:{password}@{address}"}
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE USER {user} IDENTIFIED BY %s", [password])
            try:
                cursor.execute(f"GRANT SELECT ON `{settings['NAME']}`.* TO {user}")
                drifted = manage("rebuild_counts", "--check", env=environment)
                list(rebuild())
                correct = manage("rebuild_counts", "--check", env=environment)
            finally:
                cursor.execute(f"DROP USER {user}")
        assert (drifted.returncode, "1 drifted" in drifted.stdout) == (1, True)
        assert correct.returncode == 0
        for check in (drifted, correct):
            (line,) = check.stderr.splitlines()
            assert "could not be recorded completely: INSERT command denied" in line

    def test_discrepancies_outlive_their_course(
        self, courses: list[Course], staff_client: Client
    ) -> None:
        add_drift(courses[5])
        run_recorded(REBUILD)
        courses[5].delete()
        discrepancy = CountDiscrepancy.objects.get()
        assert (discrepancy.course_id, discrepancy.course_title) == (None, "Course 5")
        page = staff_client.get(f"/admin/courses/countdiscrepancy/{discrepancy.pk}/change/")
        assert "Course 5" in page.content.decode()


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_drift_caused_by_an_sql_client_is_found_logged_and_corrected(
    courses: list[Course], caplog: pytest.LogCaptureFixture
) -> None:
    script = (
        "UPDATE courses_course SET total_enrollments = total_enrollments + 4 ORDER BY id LIMIT 10"
    )
    assert mariadb_client(script).returncode == 0
    with pytest.raises(SystemExit) as exit_info:
        call_command("rebuild_counts", "--check", verbosity=0)
    assert exit_info.value.code == 1
    (message,) = messages(caplog, logging.ERROR)
    assert message.startswith("12 courses checked: 10 drifted, by 40 enrollments in total")
    assert len(open_drift()) == 10
    call_command("rebuild_counts", verbosity=0)
    assert (drift_by_title(), open_drift()) == ({}, {})
    assert CountDiscrepancy.objects.filter(corrected=True).count() == 10


class TestTimedCheck:
    def test_it_checks_all_courses_if_there_is_time(self, courses: list[Course]) -> None:
        add_drift(courses[0])
        result = timed_check(actor="the tests")
        assert (result.courses_checked, result.drifted, result.is_complete) == (12, 1, True)
        assert CountRun.objects.get().is_full

    def test_it_stops_at_the_time_limit(
        self, courses: list[Course], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit, "CHECK_BATCH_SIZE", 5)
        add_drift(courses[1], courses[11])
        result = timed_check(actor="the tests", seconds=0)
        assert (result.courses_checked, result.drifted) == (5, 1)
        assert (result.last_id, result.is_complete) == (courses[4].pk, False)
        run = CountRun.objects.get()
        assert (run.is_full, run.finished_at is None) == (False, False)
        assert numbers(run) == (5, 1, 0, 1)

    def test_it_is_complete_if_the_last_batch_is_not_full(
        self, courses: list[Course], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit, "CHECK_BATCH_SIZE", 20)
        assert timed_check(actor="the tests", seconds=0).is_complete

    def test_it_raises_check_in_progress_while_another_run_is_recent_and_unfinished(
        self, courses: list[Course]
    ) -> None:
        other = CountRun.objects.create(kind=CHECK, actor="another", started_at=timezone.now())
        with pytest.raises(CheckInProgress):
            timed_check(actor="the tests")
        # A run that was killed blocks others only until the time limit.
        other.started_at -= timedelta(seconds=audit.CHECK_TIME_LIMIT)
        other.save()
        assert timed_check(actor="the tests").is_complete
        # A run recorded by a clock that was wrong blocks no other.
        other.started_at += timedelta(days=9_000)
        other.save()
        assert timed_check(actor="the tests").is_complete

    @pytest.mark.django_db(transaction=True)
    def test_a_check_is_visible_to_others_before_it_has_read_anything(
        self, courses: list[Course]
    ) -> None:
        attempts: list[str] = []

        def try_to_check(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
            if "true_count" in sql and not attempts:
                attempts.append(sql)
                with pytest.raises(CheckInProgress):
                    ConcurrentThread(lambda: timed_check(actor="the tests")).start_and_finish()
            return execute(sql, *arguments)

        with connection.execute_wrapper(try_to_check):
            assert timed_check(actor="the tests").is_complete
        assert (len(attempts), CountRun.objects.count()) == (1, 1)

    @pytest.mark.django_db(transaction=True)
    def test_of_simultaneous_checks_exactly_one_runs(self, courses: list[Course]) -> None:
        number = 6
        barrier = threading.Barrier(number, timeout=20)

        def wait_while_counting(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
            if "true_count" in sql:
                barrier.wait()
            return execute(sql, *arguments)

        def check() -> bool:
            with connection.execute_wrapper(wait_while_counting):
                barrier.wait()
                try:
                    return timed_check(actor="the tests").is_complete
                except CheckInProgress:
                    # The check that runs continues when all others have ended.
                    barrier.wait()
                    return False

        threads = [ConcurrentThread(check) for _ in range(number)]
        for thread in threads:
            thread.start()
        assert [thread.finish() for thread in threads].count(True) == 1
        assert CountRun.objects.count() == 1


class TestPrune:
    @pytest.fixture
    def runs(self, courses: list[Course]) -> list[CountRun]:
        """Return rebuilds of 500, 450 and 1 days ago, each with two discrepancies."""
        runs = []
        for days in (500, 450, 1):
            add_drift(*courses[:2])
            run = run_recorded(REBUILD)
            run.started_at = timezone.now() - timedelta(days=days)
            run.save()
            run.discrepancies.update(
                found_at=run.started_at, last_seen_at=run.started_at, resolved_at=run.started_at
            )
            runs.append(run)
        return runs

    def prune(self, *, days: int = 400) -> tuple[int, int]:
        return prune(before=timezone.now() - timedelta(days=days))

    def test_it_deletes_old_runs_and_resolved_discrepancies(self, runs: list[CountRun]) -> None:
        assert self.prune(days=470) == (1, 2)
        assert self.prune() == (1, 2)
        assert CountRun.objects.get() == runs[2]
        assert CountDiscrepancy.objects.count() == 2
        assert self.prune() == (0, 0)

    def test_it_keeps_open_discrepancies_and_their_run(self, runs: list[CountRun]) -> None:
        runs[0].discrepancies.update(resolved_at=None)
        assert self.prune() == (1, 2)
        assert list(CountRun.objects.order_by("pk")) == [runs[0], runs[2]]
        assert runs[0].discrepancies.count() == 2

    def test_it_keeps_discrepancies_that_were_resolved_lately(self, runs: list[CountRun]) -> None:
        runs[0].discrepancies.update(resolved_at=timezone.now())
        assert self.prune() == (1, 2)
        assert runs[0].discrepancies.count() == 2

    def test_records_with_a_time_in_the_future_keep_no_others(self, runs: list[CountRun]) -> None:
        future = timezone.now() + timedelta(days=9_000)
        CountRun.objects.filter(pk=runs[0].pk).update(started_at=future)
        runs[0].discrepancies.update(found_at=future, last_seen_at=future, resolved_at=future)
        assert self.prune() == (1, 2)
        assert list(CountRun.objects.order_by("pk")) == [runs[0], runs[2]]
