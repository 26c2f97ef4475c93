"""Registration day in small: `make registration-day` is the real one."""

import re
import subprocess
import sys

import pytest

from tests.support.commands import PROJECT

pytestmark = pytest.mark.mariadb


@pytest.mark.parametrize("redis", ["with_redis", "redis_stopped"])
def test_all_seats_are_given_and_nobody_is_told_wrong(redis: str) -> None:
    stopped = redis == "redis_stopped"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.system.registration_day"),
            *("--students", "150", "--seats", "40", "--within", "1"),
            *(["--stop-redis"] if stopped else []),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^ +40 enrolled$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^ +110 full$", done.stdout, re.MULTILINE), done.stdout
    assert "stored 40, true 40, drift 0; log: 0 errors" in done.stdout
    assert ("Redis stopped when" in done.stdout) == stopped
