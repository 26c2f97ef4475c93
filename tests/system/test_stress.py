"""A few seconds of the stress test. `make stress` runs it for minutes."""

import subprocess
import sys

import pytest
from django.db import connection

from tests.support.commands import PROJECT
from tests.system.stress import Report, stress


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("condition", [None, "damages_counts", "has_replica"])
def test_concurrent_services_keep_all_guarantees(condition: str | None) -> None:
    seconds, writers = (6, 6) if connection.vendor == "mysql" else (4, 3)
    options = {condition: True} if condition else {}
    report = stress(seconds=seconds, writers=writers, seed=1, **options)
    assert report.violations == []
    # Every kind of work was done.
    for outcome in ("changes", "rejected", "checks", "rebuilds", "edits"):
        assert report.outcomes[outcome] > 3, report.outcomes
    assert (report.outcomes["corrected"] > 0) == (condition == "damages_counts")


@pytest.mark.mariadb
@pytest.mark.parametrize("options", [[], ["--tls"]], ids=["plain", "TLS"])
def test_a_killed_server_violates_no_guarantee(options: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.system.stress", "--seconds=8", "--kill=3", *options],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "retries" in result.stdout


def test_report_collects_violations() -> None:
    report = Report()
    report.expect(True, "kept")
    report.expect(False, "violated")
    assert report.violations == ["violated"]
