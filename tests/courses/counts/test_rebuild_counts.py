import json
import os
import pty
import pwd
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from courses.management.base import describe_database_error
from courses.models import CountRun, Course
from enrollments.services import enroll_many
from tests.support.commands import (
    UNREACHABLE_ADDRESS,
    all_rows,
    assert_usage_error,
    manage,
    unmigrated_database,
)
from tests.support.counts import drift_by_title

DRIFT_BY_TITLE = {"High": 3, "Low": -1, "Zero": -2, "“No rows”\n": 5}


@pytest.fixture
def drifted(
    make_course: Callable[..., Course], make_students: Callable[[int], list[Any]]
) -> dict[str, Course]:
    """Return five courses by title. All but the first have drifted."""
    students = make_students(2)
    courses = {title: make_course(title=title) for title in ["Correct", *DRIFT_BY_TITLE]}
    for title in ["Correct", "High", "Low", "Zero"]:
        enroll_many(course=courses[title], students=students)
    for title, drift in DRIFT_BY_TITLE.items():
        course = Course.objects.filter(title=title)
        course.update(total_enrollments=F("total_enrollments") + drift)
    assert drift_by_title() == DRIFT_BY_TITLE
    return courses


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    call_command("rebuild_counts", *arguments)
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def test_correct_counts_are_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], course: Course
) -> None:
    assert run(capsys) == "1 course checked: all counts are correct.\n"
    assert run(capsys, "--check") == "1 course checked: all counts are correct.\n"
    assert run(capsys, "--json") == ""
    assert run(capsys, "--verbosity", "0") == ""


@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_an_empty_catalog_is_not_reported_as_correct(
    capsys: pytest.CaptureFixture[str], db: None, arguments: list[str]
) -> None:
    assert run(capsys, *arguments) == "No courses were checked, because there are none.\n"


@pytest.mark.parametrize("size", ["1", "2", "1000", str(2**63 - 1)])
def test_each_corrected_course_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], drifted: dict[str, Course], size: str
) -> None:
    output = run(capsys, "--batch-size", size)
    assert f"Course {drifted['High'].pk} “High”: stored 5, true 2, drift +3: corrected\n" in output
    assert f"Course {drifted['Zero'].pk} “Zero”: stored 0, true 2, drift -2: corrected\n" in output
    assert len(output.splitlines()) == 4 + 1
    assert "“No rows” ”: stored 5, true 0, drift +5: corrected\n" in output
    assert output.endswith("\n5 courses checked: 4 drifted and corrected.\n")
    assert drift_by_title() == {}
    assert run(capsys) == "5 courses checked: all counts are correct.\n"


def test_batch_size_is_the_number_of_courses_per_query(
    make_course: Callable[..., Course], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(7):
        make_course()
    queries = {}
    for size in ["1", "3", "1000"]:
        with CaptureQueriesContext(connection) as captured:
            run(capsys, "--batch-size", size)
        queries[size] = sum("true_count" in query["sql"] for query in captured)
    assert queries == {"1": 8, "3": 3, "1000": 1}


def test_check_changes_nothing_and_exits_with_status_1(
    capsys: pytest.CaptureFixture[str], drifted: dict[str, Course]
) -> None:
    rows = all_rows()
    with pytest.raises(SystemExit) as exit_info:
        call_command("rebuild_counts", "--check")
    assert exit_info.value.code == 1
    output = capsys.readouterr()
    assert f"Course {drifted['Low'].pk} “Low”: stored 1, true 2, drift -1\n" in output.out
    assert output.out.endswith(
        "\n5 courses checked: 4 drifted. Correct them with: manage.py rebuild_counts\n"
    )
    assert output.err == ""
    assert all_rows() == rows


@pytest.mark.parametrize("check", [False, True])
def test_json_prints_one_object_per_drifted_course(
    capsys: pytest.CaptureFixture[str], drifted: dict[str, Course], check: bool
) -> None:
    if check:
        with pytest.raises(SystemExit) as exit_info:
            call_command("rebuild_counts", "--json", "--check")
        assert exit_info.value.code == 1
    else:
        call_command("rebuild_counts", "--json")
    output = capsys.readouterr()
    assert [json.loads(line) for line in output.out.splitlines()] == [
        {
            "course_id": drifted[title].pk,
            "title": title,
            "stored": true + drift,
            "true": true,
            "drift": drift,
        }
        for (title, drift), true in zip(DRIFT_BY_TITLE.items(), [2, 2, 2, 0], strict=True)
    ]
    assert output.err == ""
    assert drift_by_title() == (DRIFT_BY_TITLE if check else {})


def test_course_id_selects_courses(
    capsys: pytest.CaptureFixture[str], drifted: dict[str, Course]
) -> None:
    high, low, zero = (str(drifted[title].pk) for title in ["High", "Low", "Zero"])
    arguments = ["--course-id", high, low, "--course-id", zero, zero, "--pause", "0.01"]
    output = run(capsys, *arguments)
    assert output.endswith("\n3 courses checked: 3 drifted and corrected.\n")
    assert list(drift_by_title()) == ["“No rows”\n"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--pause", "-1"], "--pause: must be between 0 and 86400 seconds, not '-1'"),
        (["--pause", "nan"], "not 'nan'"),
        (["--pause", "long"], "--pause: invalid seconds value: 'long'"),
        (["--course-id", "one"], "--course-id: must be a whole number of at least 1, not 'one'"),
        (["--course-id", "0"], "--course-id: must be a whole number of at least 1"),
        (["--course-id", "1.5"], "must be a whole number of at least 1, not '1.5'"),
        (["--course-id", str(2**63)], f"not '{2**63}'"),
        (["--course-id", ""], "must be a whole number of at least 1, not ''"),
        (["--course-id"], "expected at least one argument"),
        (["--batch-size", "-1"], "--batch-size: must be a whole number of at least 1"),
        (["--batch-size", "many"], "must be a whole number of at least 1, not 'many'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_invalid_arguments_raise_command_error_and_change_nothing(
    drifted: dict[str, Course], arguments: list[str], reason: str
) -> None:
    with pytest.raises(CommandError) as error:
        call_command("rebuild_counts", *arguments)
    assert reason in str(error.value)
    assert drift_by_title() == DRIFT_BY_TITLE


@pytest.mark.parametrize(
    ("course_ids", "message"),
    [
        ([1], "Course 9000001 does not exist."),
        ([1, 2], "Courses 9000001, 9000002 do not exist."),
    ],
)
def test_unknown_course_ids_are_listed(
    drifted: dict[str, Course], course_ids: list[int], message: str
) -> None:
    known = drifted["High"].pk
    unknown = [9_000_000 + number for number in course_ids]
    with pytest.raises(CommandError) as error:
        call_command("rebuild_counts", "--course-id", *map(str, [known, *unknown]))
    assert error.value.returncode == 2
    assert message in str(error.value)
    assert "List all courses with: manage.py export_courses" in str(error.value)
    assert drift_by_title() == DRIFT_BY_TITLE


def test_the_actor_is_the_operating_system_user(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def actor() -> str:
        call_command("rebuild_counts", verbosity=0)
        return CountRun.objects.latest("pk").actor

    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("USER", "another")
    name = pwd.getpwuid(os.getuid()).pw_name
    assert actor() == f"rebuild_counts: {name}"
    monkeypatch.setenv("SUDO_USER", "anna")
    assert actor() == f"rebuild_counts: anna as {name}"
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.setattr(os, "geteuid", lambda: 2_000_000_001)
    assert actor() == "rebuild_counts: user 2000000001"


@pytest.mark.django_db(transaction=True)
class TestProcess:
    """Run the command as a process of its own."""

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--course-id", "{known}", "987654321"], "Course 987654321 does not exist."),
            (
                ["--course-id", "one"],
                "--course-id: must be a whole number of at least 1, not 'one'",
            ),
            (["--batch-size", "0"], "--batch-size: must be a whole number of at least 1"),
            (["--nonsense"], "unrecognized arguments: --nonsense"),
        ],
    )
    def test_usage_errors_exit_with_status_2(
        self, drifted: dict[str, Course], arguments: list[str], reason: str
    ) -> None:
        known = str(drifted["High"].pk)
        result = manage("rebuild_counts", *(text.format(known=known) for text in arguments))
        assert_usage_error(result, reason)
        assert drift_by_title() == DRIFT_BY_TITLE

    def test_check_exits_with_status_1_only_if_a_course_drifted(
        self, drifted: dict[str, Course]
    ) -> None:
        assert manage("rebuild_counts", "--check").returncode == 1
        call_command("rebuild_counts")
        assert manage("rebuild_counts", "--check").returncode == 0

    def test_verbosity_0_logs_drift_on_standard_error(self, drifted: dict[str, Course]) -> None:
        assert manage("rebuild_counts", "--json", "--check").stderr == ""
        quiet = manage("rebuild_counts", "--json", "--check", "--verbosity", "0")
        (line,) = quiet.stderr.splitlines()
        assert "ERROR courses.counts.audit: 5 courses checked: 4 drifted" in line

    def test_the_progress_bar_is_shown_only_on_a_terminal(self, drifted: dict[str, Course]) -> None:
        piped = manage("rebuild_counts", "--json", "--check")
        assert piped.stderr == ""
        terminal, standard_error = pty.openpty()
        termios.tcsetwinsize(standard_error, (24, 80))
        shown = manage("rebuild_counts", "--json", "--check", stderr=standard_error)
        os.close(standard_error)
        bar = os.read(terminal, 65_536).decode()
        os.close(terminal)
        assert "0/5" in bar
        assert shown.stdout == piped.stdout
        assert len(shown.stdout.splitlines()) == len(DRIFT_BY_TITLE)


def test_an_unreachable_database_is_one_line_without_the_password() -> None:
    url = f"mysql://user:secret@{UNREACHABLE_ADDRESS}/catalog"
    result = manage("rebuild_counts", "--course-id", "1", env={"DATABASE_URL": url})
    assert_usage_error(result, "The database failed (Can't connect")
    assert "secret" not in result.stderr


@pytest.mark.django_db(transaction=True)
def test_missing_tables_are_one_line_that_names_migrate(tmp_path: Path) -> None:
    with unmigrated_database(tmp_path) as url:
        result = manage("rebuild_counts", env={"DATABASE_URL": url})
    assert_usage_error(result, "run manage.py migrate")


def test_outdated_tables_are_reported_with_the_command_that_updates_them(db: None) -> None:
    with connection.cursor() as cursor, pytest.raises(DatabaseError) as error:
        cursor.execute("SELECT no_column FROM courses_course")
    assert "run manage.py migrate" in describe_database_error(error.value)
