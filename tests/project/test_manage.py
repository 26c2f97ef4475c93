"""How manage.py ends: errors, signals, and standard streams that are closed or not UTF-8."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from courses.models import CountRun, Course
from enrollments.services import enroll
from tests.support.commands import (
    PROJECT,
    assert_usage_error,
    command_environment,
    manage,
    unmigrated_database,
)
from tests.support.counts import drift_by_title
from tests.support.exchange import CANVAS_HEADER

MakeCourse = Callable[..., Course]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

pytestmark = [pytest.mark.sqlite, pytest.mark.django_db(transaction=True)]


def _restore_signals() -> None:
    # A shell that runs the tests in the background ignores SIGINT, nohup ignores SIGHUP.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def running(
    *arguments: str, preexec_fn: Callable[[], None] = _restore_signals
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "manage.py", *arguments],
        cwd=PROJECT,
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )
    with process:
        yield process
        process.kill()


def _ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which $manage is manage.py."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=PROJECT,
        env=command_environment()
        | {"manage": f"{sys.executable} manage.py", "PYTHONUNBUFFERED": ""}
        | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestSignals:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_temporary_files_are_removed(self, tmp_path: Path, number: signal.Signals) -> None:
        pipe, folder = tmp_path / "pipe", tmp_path / "reports"
        os.mkfifo(pipe)
        folder.mkdir()
        report = folder / "report.csv"
        arguments = ["import_enrollments", str(pipe), "--report", str(report)]
        with running(*arguments) as process, pipe.open("w") as rows:
            rows.write(f"{CANVAS_HEADER}\n")
            rows.flush()
            wait_until(lambda: list(folder.iterdir()))
            process.send_signal(number)
            output, error = process.communicate(timeout=30)
        assert list(folder.iterdir()) == []
        assert (output, error) == ("", f"Ended by {number.name}. Committed changes are kept.\n")
        assert process.returncode == -number

    def test_committed_corrections_are_kept_and_recorded(self, make_course: MakeCourse) -> None:
        for title in ("First", "Second"):
            make_course(title=title)
        Course.objects.update(total_enrollments=1)
        with running("rebuild_counts", "--batch-size", "1", "--pause", "60") as process:
            wait_until(lambda: CountRun.objects.filter(corrected=1).exists())
            process.terminate()
            process.communicate(timeout=30)
        assert drift_by_title() == {"Second": 1}
        assert CountRun.objects.get().finished_at is None

    def test_nohup_is_respected(self, make_course: MakeCourse) -> None:
        for _ in range(2):
            make_course()
        Course.objects.update(total_enrollments=1)
        arguments = ["rebuild_counts", "--batch-size", "1", "--pause", "1"]
        with running(*arguments, preexec_fn=_ignore_hangup) as process:
            wait_until(CountRun.objects.exists)
            assert process.poll() is None
            process.send_signal(signal.SIGHUP)
            process.communicate(timeout=30)
        assert process.returncode == 0
        assert drift_by_title() == {}

    def test_ctrl_c_on_a_terminal_is_one_line(self, student: Any) -> None:
        terminal = pexpect.spawn(
            f"{sys.executable} manage.py erase_student student1",
            cwd=PROJECT,
            env=command_environment(),
            encoding="utf-8",
            timeout=30,
            preexec_fn=_restore_signals,
        )
        terminal.expect("Type 'yes' to erase them: ")
        terminal.sendintr()
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.before.split("\r\n") == [
            "^C",
            "Ended by SIGINT. Committed changes are kept.",
            "",
        ]
        assert terminal.signalstatus == signal.SIGINT


class TestClosedStreams:
    @pytest.fixture(autouse=True)
    def course(self, make_course: MakeCourse) -> Course:
        return make_course(title="Física")

    @pytest.mark.parametrize(
        "command",
        [
            "rebuild_counts --check",
            "rebuild_counts --check --json",
            "rebuild_counts --check 2>&1",
            "export_courses",
            "export_courses --help",
            "showmigrations",
        ],
    )
    def test_closed_pipe_ends_like_sigpipe(self, command: str) -> None:
        Course.objects.update(total_enrollments=1)
        result = shell(f"$manage {command} | true")
        assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")

    def test_an_export_without_standard_output_is_an_error(self) -> None:
        result = shell("$manage export_courses >&-")
        assert result.returncode == 2
        assert result.stderr == "CommandError: Standard output is closed. Use --output FILE.\n"

    def test_output_can_be_a_device(self, course: Any) -> None:
        result = shell("$manage export_courses --output /dev/stdout | head -1")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("course_id,slug,title")

    @pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
    def test_closed_streams_change_no_exit_status(self, closed: str) -> None:
        assert shell(f"$manage rebuild_counts --check {closed}").returncode == 0
        Course.objects.update(total_enrollments=1)
        result = shell(f"$manage rebuild_counts --check {closed}")
        assert (result.returncode, result.stderr) == (1, "")

    def test_closed_standard_input_is_empty(self) -> None:
        assert_usage_error(shell("$manage import_enrollments - <&-"), "is empty")

    @pytest.mark.parametrize("command", ["rebuild_counts --check", "export_courses", "check"])
    def test_full_disk_is_one_line_and_status_2(self, command: str) -> None:
        result = shell(f"$manage {command} > /dev/full")
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
        assert "No space left on device" in result.stderr
        assert shell(f"$manage {command} > /dev/full 2>&1").returncode == 2


class TestEncodings:
    @pytest.fixture(autouse=True)
    def course(self, make_course: MakeCourse, student: Any) -> Course:
        course = make_course(title="Física “1”", slug="física")
        enroll(student=student, course=course)
        Course.objects.update(total_enrollments=0)
        return course

    @pytest.mark.parametrize(
        "environment",
        [
            {"PYTHONIOENCODING": "ascii"},
            {"LC_ALL": "C"},
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        ],
    )
    def test_files_and_pipes_are_utf_8(self, environment: dict[str, str]) -> None:
        for command, text in [
            ("rebuild_counts --check", "“Física “1””: stored 0"),
            ("rebuild_counts --check --json", '"title": "Física “1”"'),
            ("export_courses", "física"),
            ("export_enrollments", "física"),
        ]:
            result = shell(f"$manage {command}", **environment)
            assert text in result.stdout
            assert result.stderr == ""

    def test_terminal_shows_escapes_for_letters_it_does_not_have(self) -> None:
        output, status = pexpect.run(
            f"{sys.executable} manage.py rebuild_counts --check",
            cwd=str(PROJECT),
            env=command_environment() | {"PYTHONIOENCODING": "ascii"},
            withexitstatus=True,
        )
        assert rb"F\xedsica" in output
        assert b"Traceback" not in output
        assert status == 1

    @pytest.mark.parametrize(
        ("name", "actor"),
        [
            (b"anna\nroot", "anna root as "),
            (b"\xff\xfe", "as "),
            ("\udc80".encode(errors="surrogatepass"), "as "),
            ("Zoë".encode(), "Zoë as "),
            (b"a" * 1_000, "a" * 100),
        ],
    )
    def test_odd_names_of_sudo_users_are_recorded(self, name: bytes, actor: str) -> None:
        env = {"SUDO_USER": os.fsdecode(name)}
        assert manage("rebuild_counts", env=env).returncode == 0
        assert CountRun.objects.get().actor.startswith(f"rebuild_counts: {actor}")
        result = manage("erase_student", "student1", "--no-input", env=env)
        assert (result.returncode, result.stderr) == (0, "")

    def test_arguments_that_are_not_utf_8_are_usage_errors(self) -> None:
        odd = os.fsdecode(b"\xff\n")
        assert_usage_error(manage("erase_student", odd), "is not valid text")
        assert_usage_error(manage("import_enrollments", odd), "No such file")
        assert_usage_error(
            manage("export_courses", "--output", f"/none/{odd}"), "cannot be written"
        )


class TestErrors:
    def test_failed_system_check_is_status_2(self) -> None:
        code = (
            "from django.core import checks; import manage;"
            "checks.register(lambda **_: [checks.Error('Wrong.')]); manage.main()"
        )
        result = shell(f'{sys.executable} -c "{code}" rebuild_counts --check')
        assert "ERRORS:\n?: Wrong." in result.stderr
        assert result.returncode == 2

    def test_unexpected_error_is_a_traceback_and_status_2(self) -> None:
        result = manage("shell", "--no-imports", "-c", "1 / 0")
        assert "ZeroDivisionError" in result.stderr
        assert result.returncode == 2

    @pytest.mark.parametrize(
        ("command", "path"),
        [
            ("migrate", "/etc/passwd"),
            ("rebuild_counts", "/etc/passwd"),
            ("createsuperuser", "/tmp"),
        ],
    )
    def test_file_that_is_no_database_is_one_line(self, command: str, path: str) -> None:
        result = manage(command, env={"DATABASE_URL": f"sqlite:///{path}"})
        (line,) = result.stderr.splitlines()
        assert "Check that it is running and that DATABASE_URL is correct" in line
        assert (result.returncode, result.stdout) == (2, "")

    def test_missing_tables_are_one_line_in_djangos_commands(self, tmp_path: Path) -> None:
        with unmigrated_database(tmp_path) as url:
            result = manage("clearsessions", env={"DATABASE_URL": url})
        (line,) = result.stderr.splitlines()
        assert line.endswith("To create all tables, run manage.py migrate.")
        assert result.returncode == 2
