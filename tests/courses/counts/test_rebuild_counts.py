import json
import os
import pty
import re
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from courses.models import Course
from enrollments.services import enroll_many
from tests.conftest import drifts
from tests.support.commands import (
    NOBODY,
    assert_usage_error,
    everything,
    manage,
    unmigrated_database,
)

DRIFTS = {"High": 3, "Low": -1, "Zero": -2, "“No rows”\n": 5}


@pytest.fixture
def drifted(
    make_course: Callable[..., Course], make_students: Callable[[int], list[Any]]
) -> dict[str, Course]:
    """Five courses, all but one with a count that is wrong."""
    students = make_students(2)
    courses = {title: make_course(title=title) for title in ["Right", *DRIFTS]}
    for title in ["Right", "High", "Low", "Zero"]:
        enroll_many(course=courses[title], students=students)
    for title, drift in DRIFTS.items():
        this = Course.objects.filter(title=title)
        this.update(total_enrollments=F("total_enrollments") + drift)
    assert drifts() == DRIFTS
    return courses


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    call_command("rebuild_counts", *arguments)
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_everything_right(capsys: pytest.CaptureFixture[str], course: Course) -> None:
    assert run(capsys) == "1 course looked at: all counts are right.\n"
    assert run(capsys, "--check") == "1 course looked at: all counts are right.\n"
    assert run(capsys, "--json") == ""
    assert run(capsys, "--verbosity", "0") == ""


def test_no_courses(capsys: pytest.CaptureFixture[str], db: None) -> None:
    assert run(capsys) == "0 courses looked at: all counts are right.\n"


@pytest.mark.parametrize("size", ["1", "2", "1000", str(2**63 - 1)])
def test_corrects_what_drifted_and_says_so(
    capsys: pytest.CaptureFixture[str], drifted: dict[str, Course], size: str
) -> None:
    said = run(capsys, "--batch-size", size)
    assert f"Course {drifted['High'].pk} “High”: stored 5, true 2, drift +3: corrected\n" in said
    assert f"Course {drifted['Zero'].pk} “Zero”: stored 0, true 2, drift -2: corrected\n" in said
    # A course a line, whatever its title.
    assert len(said.splitlines()) == 4 + 1
    assert "“No rows” ”: stored 5, true 0, drift +5: corrected\n" in said
    assert said.endswith("\n5 courses looked at: 4 drifted and corrected.\n")
    assert drifts() == {}
    assert run(capsys) == "5 courses looked at: all counts are right.\n"


def test_batch_size_is_the_number_looked_at_in_one_query(
    make_course: Callable[..., Course], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(6):
        make_course()
    run(capsys)  # the first one of an hour also counts the days
    queries = {}
    for size in ["1", "3", "1000"]:
        with CaptureQueriesContext(connection) as captured:
            run(capsys, "--batch-size", size)
        queries[size] = len(captured)
    assert queries["1"] - queries["3"] == 6 - 2
    assert queries["3"] - queries["1000"] == 2 - 1


def test_check_changes_nothing(
    capsys: pytest.CaptureFixture[str], drifted: dict[str, Course]
) -> None:
    before = everything()
    with pytest.raises(SystemExit) as ended:
        call_command("rebuild_counts", "--check")
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert f"Course {drifted['Low'].pk} “Low”: stored 1, true 2, drift -1\n" in said.out
    assert said.out.endswith("\n5 courses looked at: 4 drifted. Correct with: rebuild_counts\n")
    assert said.err == ""
    assert everything() == before


@pytest.mark.parametrize("check", [False, True])
def test_json(capsys: pytest.CaptureFixture[str], drifted: dict[str, Course], check: bool) -> None:
    if check:
        with pytest.raises(SystemExit) as ended:
            call_command("rebuild_counts", "--json", "--check")
        assert ended.value.code == 1
    else:
        call_command("rebuild_counts", "--json")
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == [
        {
            "course_id": drifted[title].pk,
            "title": title,
            "stored": true + drift,
            "true": true,
            "drift": drift,
        }
        for (title, drift), true in zip(DRIFTS.items(), [2, 2, 2, 0], strict=True)
    ]
    assert said.err == ""
    assert drifts() == (DRIFTS if check else {})


def test_course_id_keeps_to_these(
    capsys: pytest.CaptureFixture[str], drifted: dict[str, Course]
) -> None:
    high, low, zero = (str(drifted[title].pk) for title in ["High", "Low", "Zero"])
    said = run(capsys, "--course-id", high, low, "--course-id", zero, zero)
    assert said.endswith("\n3 courses looked at: 3 drifted and corrected.\n")
    assert list(drifts()) == ["“No rows”\n"]


def test_start_id_goes_on_from_there(
    capsys: pytest.CaptureFixture[str], drifted: dict[str, Course]
) -> None:
    said = run(capsys, "--start-id", str(drifted["Low"].pk), "--pause", "0.01")
    assert said.endswith("\n3 courses looked at: 3 drifted and corrected.\n")
    assert list(drifts()) == ["High"]


def test_verbose_tells_each_batch(
    capsys: pytest.CaptureFixture[str], drifted: dict[str, Course]
) -> None:
    keys = sorted(course.pk for course in drifted.values())
    with pytest.raises(SystemExit):
        call_command("rebuild_counts", "--check", "-v", "2", "--batch-size", "3")
    said = capsys.readouterr().out
    assert f"\nCourses {keys[0]} to {keys[2]}: 3 looked at, 2 drifted\n" in said
    said = run(capsys, "-v", "2", "--batch-size", "3")
    line = f"\nCourses {keys[3]} to {keys[4]}: 2 looked at, 2 corrected, locked for "
    assert re.search(re.escape(line) + r"\d\.\d{3} s at most\n", said)
    assert run(capsys, "-v", "2", "--json") == ""


def test_courses_are_not_counted_for_a_bar_that_nobody_sees(
    capsys: pytest.CaptureFixture[str], course: Course
) -> None:
    with CaptureQueriesContext(connection) as queries:
        run(capsys)
    counts = [query["sql"] for query in queries if "COUNT(*)" in query["sql"]]
    assert counts == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--pause", "-1"], "--pause takes seconds from 0 to 86400, not '-1'."),
        (["--pause", "nan"], "not 'nan'."),
        (["--pause", "long"], "not 'long'."),
        (["--start-id", "one"], "--start-id takes whole numbers from 1 on, not 'one'."),
        (["--course-id", "0"], "--course-id takes whole numbers from 1 on, not '0'."),
        (["--course-id", "1.5"], "not '1.5'."),
        (["--course-id", str(2**63)], f"not '{2**63}'."),
        (["--course-id", ""], "not ''."),
        (["--course-id"], "expected at least one argument"),
        (["--batch-size", "-1"], "--batch-size takes whole numbers from 1 on, not '-1'."),
        (["--batch-size", "many"], "not 'many'."),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input_is_refused(
    drifted: dict[str, Course], arguments: list[str], reason: str
) -> None:
    with pytest.raises(CommandError) as refused:
        call_command("rebuild_counts", *arguments)
    assert refused.value.returncode == 2
    assert reason in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert drifts() == DRIFTS


@pytest.mark.django_db(transaction=True)
class TestProcess:
    """As it is called: by name, in a process of its own."""

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--course-id", "{known}", "987654321"], "There is no course with the id 987654321."),
            (["--course-id", "one"], "--course-id takes whole numbers from 1 on, not 'one'."),
            (["--batch-size", "0"], "--batch-size takes whole numbers from 1 on, not '0'."),
            (["--nonsense"], "unrecognized arguments: --nonsense"),
        ],
    )
    def test_bad_input_is_one_line_and_status_2(
        self, drifted: dict[str, Course], arguments: list[str], reason: str
    ) -> None:
        known = str(drifted["High"].pk)
        done = manage("rebuild_counts", *(text.format(known=known) for text in arguments))
        assert_usage_error(done, reason)
        assert drifts() == DRIFTS

    def test_status_of_check(self, drifted: dict[str, Course]) -> None:
        assert manage("rebuild_counts", "--check").returncode == 1
        call_command("rebuild_counts")
        assert manage("rebuild_counts", "--check").returncode == 0

    def test_the_bar_is_on_standard_error_and_only_on_a_terminal(
        self, drifted: dict[str, Course]
    ) -> None:
        piped = manage("rebuild_counts", "--json", "--check")
        assert piped.stderr == ""
        by_a_timer = manage("rebuild_counts", "--json", "--check", "--verbosity", "0")
        (alarm,) = by_a_timer.stderr.splitlines()
        assert "ERROR courses.counts.audit: 4 courses drifted" in alarm
        terminal, its_end = pty.openpty()
        termios.tcsetwinsize(its_end, (24, 80))
        shown = manage("rebuild_counts", "--json", "--check", stderr=its_end)
        os.close(its_end)
        bar = os.read(terminal, 65_536).decode()
        os.close(terminal)
        assert "0/5" in bar
        assert shown.stdout == piped.stdout
        assert len(shown.stdout.splitlines()) == len(DRIFTS)


def test_database_away() -> None:
    url = f"mysql://user:secret@{NOBODY}/catalog"
    done = manage("rebuild_counts", "--course-id", "1", env={"DATABASE_URL": url})
    assert_usage_error(done, "The database does not answer as it should (Can't connect")
    assert "secret" not in done.stderr


@pytest.mark.django_db(transaction=True)
def test_no_tables(tmp_path: Path) -> None:
    with unmigrated_database(tmp_path) as url:
        done = manage("rebuild_counts", env={"DATABASE_URL": url})
    assert_usage_error(done, "run manage.py migrate")
