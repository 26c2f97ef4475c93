"""The storm, for a few seconds. For minutes: python -m tests.system.stress --help."""

import os
import subprocess
import sys

import pytest
from django.db import connection

from tests.system.stress import Report, stress


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("damaging", [False, True], ids=["calm", "damaged"])
def test_no_promise_is_broken(damaging: bool) -> None:
    many = connection.vendor == "mysql"
    report = stress(seconds=6 if many else 4, writers=6 if many else 3, seed=1, damaging=damaging)
    assert report.broken == []
    # It did storm.
    for outcome in ("acknowledged", "refused", "checks", "rebuilds", "edits"):
        assert report.outcomes[outcome] > 3, report.outcomes
    assert (report.outcomes["corrected"] > 0) == damaging


@pytest.mark.mariadb
def test_no_promise_is_broken_by_a_server_that_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.stress", "--seconds", "12", "--kill", "4"],
        env=os.environ | {"SECRET_KEY": "tests only"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "retries" in done.stdout


def test_a_broken_promise_is_seen() -> None:
    report = Report()
    report.expect(True, "kept")
    report.expect(False, "broken")
    assert report.broken == ["broken"]
