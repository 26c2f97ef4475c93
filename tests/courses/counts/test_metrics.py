import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from courses.counts.audit import run_audit
from courses.models import CountRun, Course
from courses.transactions import retry_transaction
from enrollments.services import CourseFull, enroll, enroll_many
from tests.support.commands import PROJECT, environment, manage

Make = Callable[..., Any]
INCREASE = "from courses.counts.metrics import REJECTIONS; REJECTIONS.inc()"


def read(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counted(work: Callable[[], Any], name: str) -> float:
    """By how much the counter rises meanwhile."""
    before = REGISTRY.get_sample_value(f"courses_{name}_total")
    work()
    return REGISTRY.get_sample_value(f"courses_{name}_total") - before


def test_the_file_says_what_the_last_check_found(
    make_course: Make, make_students: Make, tmp_path: Path
) -> None:
    file = tmp_path / "courses.prom"
    call_command("write_metrics", output=file)
    assert read(file.read_text()) == {
        "courses_drifted": 0,
        "courses_absolute_drift": 0,
        "courses_last_check_timestamp_seconds": 0,
        "courses_enrollments": 0,
    }
    courses = [make_course() for _ in range(3)]
    enroll_many(course=courses[0], students=make_students(3))
    Course.objects.filter(pk__in=[courses[0].pk, courses[1].pk]).update(total_enrollments=1)
    list(run_audit(kind=CountRun.Kind.CHECK, actor="the tests"))
    call_command("write_metrics", output=file)
    checked_at = CountRun.objects.get().started_at.timestamp()
    assert read(file.read_text()) == {
        "courses_drifted": 2,
        "courses_absolute_drift": 3,
        "courses_last_check_timestamp_seconds": checked_at,
        "courses_enrollments": 2,
    }
    list(run_audit(kind=CountRun.Kind.REBUILD, actor="the tests"))
    call_command("write_metrics", output=file)
    assert read(file.read_text())["courses_drifted"] == 0
    assert [found.name for found in tmp_path.iterdir()] == ["courses.prom"]


def test_counters_is_full_processes_are_added_up(
    db: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "counters"
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", INCREASE],
            cwd=PROJECT,
            env=environment() | {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
            check=True,
        )
    call_command("write_metrics", counters=folder)
    values = read(capsys.readouterr().out)
    assert values["courses_refusals_total"] == 2
    assert values["courses_retries_total"] == values["courses_deadlocks_total"] == 0
    # A new start of the site begins anew.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    try:
        runpy.run_path(str(PROJECT / "gunicorn.conf.py"))["on_starting"](None)
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
    assert list(folder.iterdir()) == []


def test_the_counts_are_told_once_by_a_process_that_has_counters_of_its_own(
    make_course: Make, tmp_path: Path
) -> None:
    make_course(total_enrollments=0)
    folder, file = tmp_path / "counters", tmp_path / "courses.prom"
    env = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    for _ in range(2):
        done = manage("write_metrics", "--counters", str(folder), "--output", str(file), env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    families = list(text_string_to_metric_families(file.read_text()))
    assert len({family.name for family in families}) == len(families) == 7
    assert all(len(family.samples) == 1 and family.documentation for family in families)


def no_folder(folder: Path) -> None:
    folder.touch()


def just_begun(folder: Path) -> None:
    folder.mkdir()
    (folder / "counter_1.db").touch()


def cut_short(folder: Path) -> None:
    folder.mkdir()
    (folder / "counter_1.db").write_bytes(b"\xb0\0\0\0\0\0\0\0\x7e\0\0\0[")


@pytest.mark.parametrize("make", [no_folder, just_begun, cut_short])
def test_without_counters_the_counts_are_told_all_the_same(
    db: None, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder, file = tmp_path / "counters", tmp_path / "courses.prom"
    make(folder)
    with pytest.raises(CommandError, match=re.escape(f"{folder} can't be read")) as refused:
        call_command("write_metrics", counters=folder, output=file)
    assert refused.value.returncode == 2
    assert read(file.read_text())["courses_drifted"] == 0


def test_refusals_are_counted(make_course: Make, make_students: Make) -> None:
    full, students = make_course(capacity=1), make_students(4)
    enroll(student=students[0], course=full)

    def one_too_many() -> None:
        with pytest.raises(CourseFull):
            enroll(student=students[1], course=full)

    assert counted(one_too_many, "refusals") == 1
    assert counted(lambda: enroll_many(course=full, students=students), "refusals") == 3
    assert counted(lambda: enroll(student=students[0], course=full), "refusals") == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("code", "deadlocks"), [(1213, 2), (1205, 0)])
def test_retries_and_deadlocks_are_counted(code: int, deadlocks: int) -> None:
    def fail_twice() -> None:
        errors = [OperationalError(code, "conflict")] * 2

        def work() -> None:
            if errors:
                raise errors.pop()

        retry_transaction()(work)()

    assert counted(fail_twice, "retries") == 2
    assert counted(fail_twice, "deadlocks") == deadlocks
