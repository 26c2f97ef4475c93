"""Registration day with 150 students. `make registration-day` runs it with 2,000."""

import re
import subprocess
import sys

import pytest

from tests.support.commands import PROJECT

pytestmark = pytest.mark.mariadb


@pytest.mark.parametrize("stop_redis", [False, True], ids=["redis", "redis_stopped"])
def test_every_student_gets_the_right_response(stop_redis: bool) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tests.system.registration_day"),
            *("--students", "150", "--seats", "40", "--within", "1"),
            *(["--stop-redis"] if stop_redis else []),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^ +40 enrolled$", result.stdout, re.MULTILINE), result.stdout
    assert re.search(r"^ +110 full$", result.stdout, re.MULTILINE), result.stdout
    assert "stored 40, true 40, drift 0; log: 0 errors" in result.stdout
    assert ("Redis stopped when" in result.stdout) == stop_redis
