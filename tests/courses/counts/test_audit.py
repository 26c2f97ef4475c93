import json
import logging
import os
import pwd
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.db.models import F
from django.test import Client
from django.utils import timezone

from courses.counts import audit
from courses.counts.audit import CheckInProgress, prune, run_audit, timed_check
from courses.counts.drift import rebuild
from courses.management.base import AppCommand
from courses.models import CountDiscrepancy, CountRun, Course
from enrollments.services import enroll_many
from tests.conftest import drifts
from tests.support.commands import assert_usage_error, manage, mariadb
from tests.support.threads import ConcurrentThread

Make = Callable[..., Any]
CHECK, REBUILD = CountRun.Kind.CHECK, CountRun.Kind.REBUILD


@pytest.fixture
def courses(make_course: Make, make_students: Make) -> list[Course]:
    """Twelve courses, the first two with three students each."""
    made = [make_course(title=f"Course {number}") for number in range(12)]
    students = make_students(3)
    for course in made[:2]:
        enroll_many(course=course, students=students)
    return made


def damage(*courses: Course, by: int = 1) -> None:
    keys = [course.pk for course in courses]
    Course.objects.filter(pk__in=keys).update(total_enrollments=F("total_enrollments") + by)


def run(kind: CountRun.Kind = CHECK, **how: Any) -> CountRun:
    list(run_audit(kind=kind, actor="the tests", **how))
    return CountRun.objects.latest("pk")


def numbers(run: CountRun) -> tuple[int, ...]:
    return run.courses_checked, run.drifted, run.corrected, run.absolute_drift


def alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def sql_client(script: str) -> None:
    """What somebody does with the database's own client."""
    if connection.vendor == "mysql":
        done = mariadb(script)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        with closing(sqlite3.connect(connection.settings_dict["NAME"])) as database, database:
            database.executescript(script)


@contextmanager
def unwritable(table: str) -> Iterator[None]:
    """A ledger that takes no new rows."""
    refuse = {
        "mysql": "FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no ledger'",
        "sqlite": "BEGIN SELECT RAISE(ABORT, 'no ledger'); END",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TRIGGER tests_trigger BEFORE INSERT ON {table} {refuse}")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER tests_trigger")


@pytest.mark.django_db(transaction=True)
def test_ten_drifts_by_an_sql_client_are_found_alarmed_shown_repaired_and_entered(
    courses: list[Course], staff_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    who = f"rebuild_counts by {AppCommand.account()}"
    call_command("rebuild_counts", "--check", verbosity=0)
    assert alarms(caplog) == []
    put = {course.pk: number for number, course in enumerate(courses[:10], start=1)}
    sql_client(
        "".join(
            f"UPDATE courses_course SET total_enrollments = total_enrollments + {drift} "
            f"WHERE id = {key};"
            for key, drift in put.items()
        )
    )

    with pytest.raises(SystemExit) as ended:
        call_command("rebuild_counts", "--check", verbosity=0)
    assert ended.value.code == 1
    assert alarms(caplog) == [
        f"10 courses drifted, by 55 enrollments in all; 12 looked at by {who}. "
        "Correct with: manage.py rebuild_counts"
    ]
    check = CountRun.objects.latest("pk")
    assert numbers(check) == (12, 10, 0, 55)
    assert (check.kind, check.actor, check.is_full) == ("check", who, True)
    assert (check.stored_sum, check.true_sum) == (6 + 55, 6)

    page = staff_client.get("/admin/courses/course/health/")
    said = page.content.decode()
    assert "10 courses with a wrong count" in said
    assert [(found.course_id, found.drift) for found in page.context["health"].largest] == [
        *sorted(put.items(), reverse=True)
    ]
    today = timezone.localdate()
    drifted, corrected = page.context["plots"][:2]
    assert (drifted.numbers[today], corrected.numbers[today]) == (10, 0)
    assert f"<title>{today:%-d %b}: 10</title>" in said

    caplog.clear()
    call_command("rebuild_counts", verbosity=0)
    assert drifts() == {}
    assert alarms(caplog) == [
        f"10 courses drifted, by 55 enrollments in all; 12 looked at by {who}. "
        "Corrected. Look for what writes to the tables past the services."
    ]
    rebuilt = CountRun.objects.latest("pk")
    assert numbers(rebuilt) == (12, 10, 10, 55)
    assert (rebuilt.stored_sum, rebuilt.true_sum) == (6, 6)
    true = {course.pk: 3 for course in courses[:2]}
    entered = rebuilt.discrepancies.order_by("pk")
    assert list(entered.values_list("course", "stored", "true", "drift", "corrected")) == [
        (key, true.get(key, 0) + drift, true.get(key, 0), drift, True) for key, drift in put.items()
    ]
    assert all(rebuilt.started_at <= one.found_at <= rebuilt.finished_at for one in entered)
    page = staff_client.get("/admin/courses/course/health/")
    assert "All counts are right" in page.content.decode()
    assert page.context["plots"][1].numbers[today] == 10


def test_a_run_of_a_part_does_not_speak_for_all(courses: list[Course]) -> None:
    part = Course.objects.filter(pk=courses[0].pk)
    assert (run(courses=part).is_full, run().is_full) == (False, True)
    call_command("rebuild_counts", "--course-id", str(courses[0].pk), verbosity=0)
    call_command("rebuild_counts", "--start-id", str(courses[1].pk), verbosity=0)
    assert list(CountRun.objects.order_by("-pk").values_list("courses_checked", "is_full")[:2]) == [
        (11, False),
        (1, False),
    ]


def test_a_check_enters_its_largest_drifts_and_the_number_is_full(
    courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST_FOUND", 3)
    for drift, course in enumerate(courses):
        damage(course, by=drift)
    check = run(batch_size=2)
    assert numbers(check) == (12, 11, 0, sum(range(12)))
    largest = check.discrepancies.order_by("pk").values_list("drift", "corrected")
    assert list(largest) == [(11, False), (10, False), (9, False)]
    rebuilt = run(REBUILD)
    assert rebuilt.discrepancies.count() == 11


def test_drift_down_is_as_large_as_up(courses: list[Course]) -> None:
    damage(courses[0], by=-3)
    damage(courses[2], by=2)
    check = run()
    assert numbers(check) == (12, 2, 0, 5)
    assert list(check.discrepancies.order_by("pk").values_list("drift", flat=True)) == [-3, 2]


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_of_two_rebuilds_at_once_both_say_what_the_counts_are_then(courses: list[Course]) -> None:
    damage(*courses[:2])
    rival = ConcurrentThread(lambda: run(REBUILD))
    with transaction.atomic():
        list(rebuild())
        rival.start_and_wait_until_blocked()
    second = rival.finish()
    assert (*numbers(second), second.stored_sum, second.true_sum) == (12, 0, 0, 0, 6, 6)


def test_the_action_says_whose_it_is(staff_client: Client, courses: list[Course]) -> None:
    damage(courses[0])
    data = {"action": "rebuild_counts", "_selected_action": [courses[0].pk]}
    staff_client.post("/admin/courses/course/", data)
    done = CountRun.objects.get()
    assert (done.kind, done.actor, done.is_full) == ("rebuild", "admin: staff", False)
    assert numbers(done) == (1, 1, 1, 1)


def test_the_alarm_is_one_line_whatever_the_name(
    courses: list[Course], caplog: pytest.LogCaptureFixture
) -> None:
    damage(courses[0])
    list(run_audit(kind=CHECK, actor="admin: a\n2026-11-22 INFO all is well"))
    assert CountRun.objects.get().actor == "admin: a 2026-11-22 INFO all is well"
    assert [len(said.splitlines()) for said in alarms(caplog)] == [1]


def test_the_command_says_who_called_it(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def by() -> str:
        call_command("rebuild_counts", verbosity=0)
        return CountRun.objects.latest("pk").actor

    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("USER", "somebody_else")
    name = pwd.getpwuid(os.getuid()).pw_name
    assert by() == f"rebuild_counts by {name}"
    monkeypatch.setenv("SUDO_USER", "anna")
    assert by() == f"rebuild_counts by anna as {name}"
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.setattr(os, "geteuid", lambda: 2_000_000_001)
    assert by() == "rebuild_counts by user 2000000001"


def test_a_run_that_breaks_off_is_entered_as_far_as_it_came(
    courses: list[Course], caplog: pytest.LogCaptureFixture
) -> None:
    damage(*courses)
    for drift in run_audit(kind=REBUILD, actor="the tests", batch_size=5):
        assert CountDiscrepancy.objects.filter(course=drift.course_id).exists()
        if drift.course_id == courses[6].pk:
            break
    broken = CountRun.objects.get()
    assert (broken.finished_at, broken.is_full) == (None, False)
    # The second five were corrected at once, before they were told.
    assert numbers(broken) == (5, 10, 10, 10)
    assert broken.discrepancies.count() == 10
    assert len(drifts()) == 2
    assert len(alarms(caplog)) == 1


def test_a_run_that_could_not_even_read_leaves_nothing(courses: list[Course]) -> None:
    with transaction.atomic(), pytest.raises(DatabaseError):
        run(courses=Course.objects.extra(where=["no_such_column"]))
    assert CountRun.objects.count() == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("table", ["courses_countrun", "courses_countdiscrepancy"])
def test_what_the_ledger_refuses_is_corrected_all_the_same(
    courses: list[Course], caplog: pytest.LogCaptureFixture, table: str
) -> None:
    damage(*courses[:3])
    with unwritable(table):
        assert len(list(run_audit(kind=REBUILD, actor="the tests", batch_size=1))) == 3
    assert drifts() == {}
    warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert warnings == ["This run is not, or not wholly, in the ledger: no ledger"]
    assert CountDiscrepancy.objects.count() == 0


@pytest.mark.sqlite
@pytest.mark.django_db(transaction=True)
def test_what_is_too_much_for_the_ledger_is_corrected_all_the_same(courses: list[Course]) -> None:
    Course.objects.filter(pk__in=[courses[4].pk, courses[7].pk]).update(total_enrollments=2**63 - 1)
    assert len(list(run_audit(kind=CHECK, actor="the tests"))) == 2
    assert len(list(run_audit(kind=REBUILD, actor="the tests"))) == 2
    assert drifts() == {}


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_who_may_only_read_can_check(courses: list[Course]) -> None:
    damage(courses[0])
    user, password = "reader", "only_for_the_tests"
    settings = connection.settings_dict
    where = f"{settings['HOST']}:{settings['PORT']}/{settings['NAME']}"
    url = {"DATABASE_URL": f"mysql://{user}:{password}@{where}"}
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE USER {user} IDENTIFIED BY %s", [password])
        try:
            cursor.execute(f"GRANT SELECT ON `{settings['NAME']}`.* TO {user}")
            wrong = manage("rebuild_counts", "--check", env=url)
            list(rebuild())
            right = manage("rebuild_counts", "--check", env=url)
        finally:
            cursor.execute(f"DROP USER {user}")
    assert (wrong.returncode, "1 drifted" in wrong.stdout) == (1, True)
    assert right.returncode == 0
    for check in (wrong, right):
        (line,) = check.stderr.splitlines()
        assert "not, or not wholly, in the ledger: INSERT command denied" in line


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_entering_a_drift_waits_for_no_course(courses: list[Course]) -> None:
    damage(*courses)
    with transaction.atomic():
        list(Course.objects.select_for_update())
        ConcurrentThread(run).start_and_finish()
    # Had it waited in vain, they would be missing.
    assert CountDiscrepancy.objects.count() == 12


def test_entries_outlive_their_course(courses: list[Course], staff_client: Client) -> None:
    damage(courses[5])
    run(REBUILD)
    courses[5].delete()
    entry = CountDiscrepancy.objects.get()
    assert (entry.course_id, entry.course_title) == (None, "Course 5")
    page = staff_client.get(f"/admin/courses/countdiscrepancy/{entry.pk}/change/")
    assert "Course 5" in page.content.decode()


def test_days_are_counted_by_runs_over_all_and_once_an_hour(courses: list[Course]) -> None:
    today = timezone.localdate().isoformat()
    assert run(courses=Course.objects.filter(pk=courses[0].pk)).enrolled_by_day == ""
    first = run()
    assert first.enrolled_by_day == json.dumps({today: 6})
    assert run().enrolled_by_day == ""
    CountRun.objects.filter(pk=first.pk).update(started_at=timezone.now() - timedelta(hours=1))
    assert run(count_days_within=0).enrolled_by_day == ""
    assert run().enrolled_by_day == json.dumps({today: 6})
    first.refresh_from_db()
    assert first.enrolled_by_day == ""
    # By a clock that was ahead.
    CountRun.objects.update(started_at=timezone.now() + timedelta(days=9_000))
    assert run().enrolled_by_day == json.dumps({today: 6})


# For whoever can't wait ------------------------------------------------------------


def test_a_check_for_a_while_sees_all_where_there_is_time(courses: list[Course]) -> None:
    damage(courses[0])
    checked = timed_check(actor="the tests")
    assert (checked.courses_checked, checked.drifted, checked.is_whole) == (12, 1, True)
    assert CountRun.objects.get().is_full


def test_a_check_for_a_while_ends_when_time_is_up(
    courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "CHECK_BATCH", 5)
    damage(courses[1], courses[11])
    checked = timed_check(actor="the tests", seconds=0)
    assert (checked.courses_checked, checked.drifted) == (5, 1)
    assert (checked.last_id, checked.is_whole) == (courses[4].pk, False)
    entered = CountRun.objects.get()
    assert (entered.is_full, entered.finished_at is None) == (False, False)
    assert numbers(entered) == (5, 1, 0, 1)
    # The last batch is no longer full: that was all.
    assert timed_check(actor="the tests", seconds=60).is_whole


def test_one_check_for_a_while_at_a_time(courses: list[Course]) -> None:
    going_on = CountRun.objects.create(kind=CHECK, actor="somebody", started_at=timezone.now())
    with pytest.raises(CheckInProgress):
        timed_check(actor="the tests")
    # One that was killed doesn't stand in the way for long.
    going_on.started_at -= timedelta(seconds=audit.CHECK_TIME_LIMIT)
    going_on.save()
    assert timed_check(actor="the tests").is_whole
    # Nor one of a clock that was ahead.
    going_on.started_at += timedelta(days=9_000)
    going_on.save()
    assert timed_check(actor="the tests").is_whole


@pytest.mark.django_db(transaction=True)
def test_a_check_that_has_seen_nothing_yet_goes_on_too(courses: list[Course]) -> None:
    met: list[Any] = []

    def look(execute: Callable[..., Any], sql: str, *context: Any) -> Any:
        if "true_count" in sql and not met:
            met.append("an impatient one")
            with pytest.raises(CheckInProgress):
                ConcurrentThread(lambda: timed_check(actor="the tests")).start_and_finish()
        return execute(sql, *context)

    with connection.execute_wrapper(look):
        assert timed_check(actor="the tests").is_whole
    assert (len(met), CountRun.objects.count()) == (1, 1)


# Pruning ---------------------------------------------------------------------------


@pytest.fixture
def years(courses: list[Course]) -> list[CountRun]:
    """Runs of 500, 450, and 1 days ago, each with two drifts found."""
    damage(*courses[:2])
    runs = [run() for _ in range(3)]
    for done, days in zip(runs, (500, 450, 1), strict=True):
        done.started_at = at = timezone.now() - timedelta(days=days)
        done.save()
        done.discrepancies.update(found_at=at)
    return runs


def test_what_is_old_is_pruned(
    years: list[CountRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "PRUNED_AT_ONCE", 1)
    call_command("prune_count_runs", "--keep-days", "470")
    assert capsys.readouterr().out == "Deleted from the ledger: runs 1, drifts 2.\n"
    call_command("prune_count_runs")
    assert capsys.readouterr().out == "Deleted from the ledger: runs 1, drifts 2.\n"
    assert CountRun.objects.get() == years[2]
    assert CountDiscrepancy.objects.count() == 2
    call_command("prune_count_runs", verbosity=0)
    assert capsys.readouterr().out == ""


def test_a_run_stays_as_long_as_its_drifts(years: list[CountRun]) -> None:
    years[0].discrepancies.update(found_at=timezone.now())
    assert prune(before=timezone.now() - timedelta(days=400)) == (1, 2)
    assert list(CountRun.objects.order_by("pk")) == [years[0], years[2]]


def test_what_a_clock_that_was_ahead_left_keeps_nothing_else(
    years: list[CountRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PRUNED_AT_ONCE", 1)
    then = timezone.now() + timedelta(days=9_000)
    CountRun.objects.filter(pk=years[0].pk).update(started_at=then)
    years[0].discrepancies.update(found_at=then)
    assert prune(before=timezone.now() - timedelta(days=400)) == (1, 2)
    assert list(CountRun.objects.order_by("pk")) == [years[0], years[2]]


@pytest.mark.parametrize("days", ["0", "-1", "many", "36501"])
def test_prune_refuses_other_days(db: None, days: str) -> None:
    with pytest.raises(CommandError, match=f"takes 1 to 36500 days, not '{days}'"):
        call_command("prune_count_runs", "--keep-days", days)


@pytest.mark.django_db(transaction=True)
def test_prune_is_called_by_name(db: None) -> None:
    assert_usage_error(
        manage("prune_count_runs", "--keep-days", "0"), "--keep-days takes 1 to 36500"
    )
    assert manage("prune_count_runs").stdout == "Deleted from the ledger: runs 0, drifts 0.\n"
