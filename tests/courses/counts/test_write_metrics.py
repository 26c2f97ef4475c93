import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from prometheus_client.parser import text_string_to_metric_families

from courses.models import Course
from enrollments.services import enroll_many
from tests.support.audits import CHECK, REBUILD, run_recorded
from tests.support.commands import PROJECT, command_environment, manage

Make = Callable[..., Any]
INCREASE = "from courses.counts.metrics import REJECTIONS; REJECTIONS.inc()"


def parse_metrics(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_file_reports_the_result_of_the_last_check(
    make_course: Make, make_students: Make, tmp_path: Path
) -> None:
    file = tmp_path / "courses.prom"
    call_command("write_metrics", output=file)
    assert parse_metrics(file.read_text()) == {
        "courses_drifted": 0,
        "courses_absolute_drift": 0,
        "courses_last_check_timestamp_seconds": 0,
        "courses_enrollments": 0,
    }
    courses = [make_course() for _ in range(3)]
    enroll_many(course=courses[0], students=make_students(3))
    Course.objects.filter(pk__in=[courses[0].pk, courses[1].pk]).update(total_enrollments=1)
    run = run_recorded(CHECK)
    call_command("write_metrics", output=file)
    assert parse_metrics(file.read_text()) == {
        "courses_drifted": 2,
        "courses_absolute_drift": 3,
        "courses_last_check_timestamp_seconds": run.finished_at.timestamp(),
        "courses_enrollments": 2,
    }
    run_recorded(REBUILD)
    call_command("write_metrics", output=file)
    assert parse_metrics(file.read_text())["courses_drifted"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["courses.prom"]


@pytest.mark.sqlite
def test_counts_may_have_a_sum_beyond_64_bits(make_course: Make, tmp_path: Path) -> None:
    courses = [make_course() for _ in range(2)]
    Course.objects.update(total_enrollments=2**63 - 1)
    run_recorded(CHECK, courses[0])
    run_recorded(CHECK, courses[1])
    call_command("write_metrics", output=tmp_path / "courses.prom")
    metrics = parse_metrics((tmp_path / "courses.prom").read_text())
    assert metrics["courses_absolute_drift"] == metrics["courses_enrollments"] == 2**64


def test_the_counters_of_all_processes_are_added_up(
    db: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "counters"
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", INCREASE],
            cwd=PROJECT,
            env=command_environment() | {"PROMETHEUS_MULTIPROC_DIR": str(directory)},
            check=True,
        )
    call_command("write_metrics", counters=directory)
    values = parse_metrics(capsys.readouterr().out)
    assert values["courses_rejections_total"] == 2
    assert values["courses_retries_total"] == values["courses_deadlocks_total"] == 0
    # Starting the site again resets the counters.
    for name, value in command_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    runpy.run_path(str(PROJECT / "gunicorn.conf.py"))["on_starting"](None)
    assert list(directory.iterdir()) == []


def test_a_process_with_counters_of_its_own_reports_each_metric_once(
    make_course: Make, tmp_path: Path
) -> None:
    make_course(total_enrollments=0)
    directory, file = tmp_path / "counters", tmp_path / "courses.prom"
    env = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    for _ in range(2):
        result = manage(
            "write_metrics", "--counters", str(directory), "--output", str(file), env=env
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    families = list(text_string_to_metric_families(file.read_text()))
    assert len({family.name for family in families}) == len(families) == 7
    assert all(len(family.samples) == 1 and family.documentation for family in families)


def no_directory(directory: Path) -> None:
    directory.touch()


def empty_file(directory: Path) -> None:
    directory.mkdir()
    (directory / "counter_1.db").touch()


def truncated_file(directory: Path) -> None:
    directory.mkdir()
    (directory / "counter_1.db").write_bytes(b"\xb0\0\0\0\0\0\0\0\x7e\0\0\0[")


@pytest.mark.parametrize("make", [no_directory, empty_file, truncated_file])
def test_unreadable_counters_do_not_hide_the_counts(
    db: None, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    directory, file = tmp_path / "counters", tmp_path / "courses.prom"
    make(directory)
    with pytest.raises(CommandError, match=re.escape(f"{directory} can't be read")) as error:
        call_command("write_metrics", counters=directory, output=file)
    assert error.value.returncode == 2
    assert parse_metrics(file.read_text())["courses_drifted"] == 0
