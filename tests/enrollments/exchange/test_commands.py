import csv
import json
import os
import pty
import resource
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from courses.models import Course
from enrollments.exchange.importer import ImportSummary
from enrollments.models import Enrollment
from enrollments.services import enroll
from enrollments.signals import enrollments_changed
from tests.support.commands import (
    UNREACHABLE_ADDRESS,
    all_rows,
    assert_usage_error,
    manage,
    unmigrated_database,
)
from tests.support.exchange import (
    CANVAS_HEADER,
    OPEN_UNIVERSITY_HEADER,
    enrollment_rows,
    import_path,
    statuses,
)
from tests.support.threads import ConcurrentThread

LINES = ["AAA,2013J,11391,-159,", "AAA,2013J,28400,-53,12", "BBB,2014B,11391,?,"]

MakeCourse = Callable[..., Course]
WriteFile = Callable[..., Path]


class TestImportEnrollments:
    @pytest.fixture
    def run_import(
        self, capsys: pytest.CaptureFixture[str], db: None
    ) -> Callable[..., tuple[int, str, str]]:
        """Run the command in this process; return exit status, output and errors."""

        def run(*arguments: Any) -> tuple[int, str, str]:
            status: Any = 0
            try:
                call_command("import_enrollments", *map(str, arguments))
            except SystemExit as exit:
                status = exit.code
            captured = capsys.readouterr()
            return status, captured.out, captured.err

        return run

    def test_prints_a_summary_and_rejected_rows(
        self, run_import: Callable[..., Any], write_file: WriteFile
    ) -> None:
        summary = (
            "4 rows: 2 courses and 2 students created.\n"
            "Enrollments: 3 created, 0 re-enrolled, 0 withdrawn, 0 updated, 0 unchanged.\n"
            "Rows: 0 skipped, 1 rejected.\n"
        )
        rejected = "Line 5: expected 5 fields, found 1\n"
        path = write_file(OPEN_UNIVERSITY_HEADER, *LINES, "x")
        dry_run = "Dry run: nothing was changed. An import would do this:\n"
        assert run_import(path, "--dry-run") == (1, dry_run + summary, rejected)
        assert not any(all_rows().values())
        assert run_import(path) == (1, summary, rejected)
        assert len(enrollment_rows()) == 3

    def test_summary_uses_the_singular_for_one(
        self, run_import: Callable[..., Any], write_file: WriteFile
    ) -> None:
        path = write_file(CANVAS_HEADER, "C,u1,student,,active")
        assert run_import(path)[1].startswith("1 row: 1 course and 1 student created.\n")

    def test_verbosity_0_prints_nothing(
        self, run_import: Callable[..., Any], write_file: WriteFile
    ) -> None:
        path = write_file(OPEN_UNIVERSITY_HEADER, *LINES)
        assert run_import(path, "--verbosity", "0") == (0, "", "")

    def test_status_is_1_if_a_course_is_full(
        self, run_import: Callable[..., Any], make_course: MakeCourse, write_file: WriteFile
    ) -> None:
        make_course(slug="aaa-2013j", capacity=0)
        status, _, error = run_import(write_file(OPEN_UNIVERSITY_HEADER, *LINES))
        assert (status, error) == (1, "Line 2: AAA-2013J is full, no seat for 11391\n")

    def test_report_has_the_rejected_rows_unchanged(
        self, run_import: Callable[..., Any], write_file: WriteFile, tmp_path: Path
    ) -> None:
        report = tmp_path / "rejected.csv"
        path = write_file(
            CANVAS_HEADER,
            "C,u1,student,A,active",
            'C,"u,2",student,A,active',
            "C,u3",
            "C,t1,teacher,,active",
        )
        status, output, errors = run_import(path, "--report", report)
        assert (status, errors) == (1, "")
        assert output.endswith("Rows: 1 skipped, 2 rejected.\n")
        with report.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["line", "reason", *CANVAS_HEADER.split(",")]
        assert [[row[0], *row[2:]] for row in rows] == [
            ["3", "C", "u,2", "student", "A", "active"],
            ["4", "C", "u3"],
        ]
        assert "is not a username" in rows[0][1]

    def test_report_may_replace_the_imported_file(
        self, run_import: Callable[..., Any], write_file: WriteFile
    ) -> None:
        path = write_file(CANVAS_HEADER, "C,u1,student,A,active", "C,u2", "C,u3")
        status, output, _ = run_import(path, "--report", path)
        assert (status, output.endswith("Rows: 0 skipped, 2 rejected.\n")) == (1, True)
        assert len(path.read_text().splitlines()) == 3

    def test_report_without_rejected_rows_has_only_a_header(
        self, run_import: Callable[..., Any], write_file: WriteFile, tmp_path: Path
    ) -> None:
        report = tmp_path / "rejected.csv"
        path = write_file(CANVAS_HEADER, "C,u1,student,A,active")
        assert run_import(path, "--report", report)[0] == 0
        assert report.read_text().splitlines() == [f"line,reason,{CANVAS_HEADER}"]

    def test_report_that_cannot_be_written_changes_nothing(
        self, run_import: Callable[..., Any], write_file: WriteFile, tmp_path: Path
    ) -> None:
        path = write_file(OPEN_UNIVERSITY_HEADER, *LINES)
        with pytest.raises(CommandError, match="No such file") as error:
            run_import(path, "--report", tmp_path / "missing" / "report.csv")
        assert error.value.returncode == 2
        assert not any(all_rows().values())

    def test_encoding_is_used(self, run_import: Callable[..., Any], write_file: WriteFile) -> None:
        path = write_file(f"{CANVAS_HEADER}\nC,Jos\xe9,student,,active\n".encode("cp1252"))
        assert run_import(path)[0] == 1
        assert run_import(path, "--encoding", "cp1252")[0] == 0
        assert statuses() == {("c", "José"): "active"}

    @pytest.mark.parametrize("name", ["", "cp12521", "rot13"])
    def test_unknown_encoding_raises(
        self, run_import: Callable[..., Any], write_file: WriteFile, name: str
    ) -> None:
        path = write_file(CANVAS_HEADER, "C,u1,student,,active")
        with pytest.raises(CommandError, match=r"cannot be read: .*encoding"):
            run_import(path, "--encoding", name)

    def test_json_prints_the_summary_only(
        self, run_import: Callable[..., Any], write_file: WriteFile
    ) -> None:
        path = write_file(OPEN_UNIVERSITY_HEADER, *LINES, "x")
        for options in (["--dry-run"], []):
            status, output, errors = run_import(path, "--json", *options)
            assert (status, errors) == (1, "Line 5: expected 5 fields, found 1\n")
            assert ImportSummary(**json.loads(output)) == ImportSummary(
                rows=4, created=3, rejected=1, courses_created=2, students_created=2
            )

    def test_report_cannot_execute_formulas(
        self, run_import: Callable[..., Any], write_file: WriteFile, tmp_path: Path
    ) -> None:
        report = tmp_path / "rejected.csv"
        values = ["=1+1", "@SUM(A1)", "+1+1", "-1+1", '"\t=1"', "-159", "+1.5", "1-2"]
        path = write_file(f"{CANVAS_HEADER},=2,note,x", f"C,{','.join(values)},")
        run_import(path, "--report", report)
        with report.open(newline="") as file:
            header, row = csv.reader(file)
        assert header[-3:] == ["'=2", "note", "x"]
        escaped = ["'=1+1", "'@SUM(A1)", "'+1+1", "'-1+1", "'\t=1", "-159", "+1.5", "1-2"]
        assert row[2:] == ["C", *escaped, ""]

    def test_full_disk_exits_with_status_2(self, db: None, write_file: WriteFile) -> None:
        lines = [f"AAA,2013J,{n},0," for n in range(50_000)]
        _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        result = manage(
            *("import_enrollments", str(write_file(OPEN_UNIVERSITY_HEADER, *lines))),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard_limit)),
        )
        assert_usage_error(result, "The temporary file with the rows cannot be written")

    def test_unreachable_database_exits_with_status_2(self, write_file: WriteFile) -> None:
        url = f"mysql://user:secret@{UNREACHABLE_ADDRESS}/catalog"
        path = write_file(OPEN_UNIVERSITY_HEADER, *LINES)
        result = manage("import_enrollments", str(path), env={"DATABASE_URL": url})
        assert_usage_error(result, "Can't connect")


@pytest.mark.django_db(transaction=True)
class TestImportProcess:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "is empty"),
            (b"a,b,c\n1,2,3\n", "is in no known format"),
            (b"\x89PNG\r\n\x1a\n\x00\xff", "is not a CSV file in UTF-8"),
        ],
    )
    def test_unreadable_file_exits_with_status_2(
        self, write_file: WriteFile, content: bytes, reason: str
    ) -> None:
        assert_usage_error(manage("import_enrollments", str(write_file(content))), reason)
        assert not any(all_rows().values())

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["missing.csv"], "missing.csv cannot be read: No such file or directory."),
            (["."], "cannot be read: Is a directory."),
            ([], "the following arguments are required: FILE"),
        ],
    )
    def test_missing_file_exits_with_status_2(self, arguments: list[str], reason: str) -> None:
        assert_usage_error(manage("import_enrollments", *arguments), reason)

    def test_missing_tables_exit_with_status_2(self, write_file: WriteFile, tmp_path: Path) -> None:
        path = write_file(OPEN_UNIVERSITY_HEADER, *LINES)
        with unmigrated_database(tmp_path) as url:
            result = manage("import_enrollments", str(path), env={"DATABASE_URL": url})
        assert_usage_error(result, "manage.py migrate")

    def test_rejected_rows_exit_with_status_1(self, write_file: WriteFile) -> None:
        path = write_file(OPEN_UNIVERSITY_HEADER, *LINES, "x")
        result = manage("import_enrollments", str(path))
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
        assert len(enrollment_rows()) == 3

    def test_disk_that_fails_changes_nothing(self) -> None:
        """A terminal is readable like a disk, and fails when its other end is closed."""
        terminal, other_end = pty.openpty()
        for line in (OPEN_UNIVERSITY_HEADER, *LINES):
            os.write(other_end, f"{line}\n".encode())
        os.close(other_end)
        result = manage("import_enrollments", "-", stdin=terminal)
        os.close(terminal)
        assert_usage_error(result, "- cannot be read: Input/output error. Nothing was imported.")
        assert not any(all_rows().values())

    def test_reads_device_files(self, write_file: WriteFile) -> None:
        with write_file(OPEN_UNIVERSITY_HEADER, *LINES).open() as file:
            result = manage("import_enrollments", "/dev/stdin", stdin=file)
        assert (result.returncode, result.stderr) == (0, "")
        assert len(enrollment_rows()) == 3

    def test_reads_named_pipes(self, write_file: WriteFile, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        content = write_file(OPEN_UNIVERSITY_HEADER, *LINES).read_text()
        threading.Thread(target=pipe.write_text, args=[content], daemon=True).start()
        result = manage("import_enrollments", str(pipe))
        assert (result.returncode, result.stderr) == (0, "")
        assert len(enrollment_rows()) == 3

    def test_reads_standard_input(self, write_file: WriteFile) -> None:
        with write_file(OPEN_UNIVERSITY_HEADER, *LINES).open() as file:
            result = manage("import_enrollments", "-", stdin=file)
        assert (result.returncode, result.stderr) == (0, "")
        assert len(enrollment_rows()) == 3


class TestExports:
    def test_replaces_a_file_but_keeps_its_mode_and_links(self, db: None, tmp_path: Path) -> None:
        target, link = tmp_path / "target", tmp_path / "link"
        target.touch(mode=0o600)
        link.symlink_to(target)
        call_command("export_courses", output=link, verbosity=0)
        assert link.is_symlink()
        assert (target.stat().st_mode & 0o777, bool(target.read_text())) == (0o600, True)

    def test_new_file_is_readable_by_others(self, db: None, tmp_path: Path) -> None:
        path = tmp_path / "courses.csv"
        call_command("export_courses", output=path, verbosity=0)
        assert path.stat().st_mode & 0o044 == 0o044

    def test_writes_to_named_pipes(self, db: None, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = ConcurrentThread(pipe.read_text)
        reader.start()
        call_command("export_courses", output=pipe, verbosity=0)
        assert reader.finish().startswith("course_id,")
        assert pipe.is_fifo()

    @pytest.mark.parametrize("command", ["export_courses", "export_enrollments"])
    def test_missing_folder_raises(self, db: None, tmp_path: Path, command: str) -> None:
        with pytest.raises(CommandError, match="No such file") as error:
            call_command(command, output=tmp_path / "missing" / "file.csv")
        assert error.value.returncode == 2

    def test_record_that_the_format_cannot_represent_keeps_the_old_file(
        self, make_course: MakeCourse, student: Any, tmp_path: Path
    ) -> None:
        enroll(student=student, course=make_course(slug="other"))
        path = tmp_path / "export.csv"
        path.write_text("before")
        with pytest.raises(CommandError, match="open-university format cannot represent") as error:
            call_command("export_enrollments", format="open-university", output=path)
        assert error.value.returncode == 2
        assert [each.name for each in tmp_path.iterdir()] == ["export.csv"]
        assert path.read_text() == "before"


@pytest.mark.django_db(transaction=True)
class TestExportProcess:
    @pytest.fixture(autouse=True)
    def enrollment(self, make_course: MakeCourse, student: Any) -> None:
        enroll(student=student, course=make_course(title="A", slug="aaa-2013j", code="AAA-2013J"))

    @pytest.mark.parametrize("arguments", [[], ["--output", "-"]])
    def test_writes_only_the_rows_to_standard_output(
        self, tmp_path: Path, arguments: list[str]
    ) -> None:
        result = manage("export_enrollments", *arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines() == [CANVAS_HEADER, "AAA-2013J,student1,student,,active"]
        path = tmp_path / "export.csv"
        path.write_text(result.stdout)
        assert import_path(path)[0].unchanged == 1

    def test_writes_only_the_courses_to_standard_output(self) -> None:
        result = manage("export_courses")
        assert result.stdout.splitlines()[1].endswith(",aaa-2013j,A,,1,1,0")

    @pytest.mark.parametrize("command", ["export_courses", "export_enrollments"])
    def test_shows_a_progress_bar_unless_rows_are_on_the_terminal(
        self, tmp_path: Path, command: str
    ) -> None:
        path = tmp_path / "export.csv"
        assert "0/1" in run_on_terminal(command, "--output", str(path))
        assert run_on_terminal(command).replace("\r", "").splitlines() == (
            path.read_text().splitlines()
        )


def run_on_terminal(*arguments: str) -> str:
    """Return everything that a command writes to a terminal."""
    terminal, output = pty.openpty()
    termios.tcsetwinsize(output, (24, 200))
    manage(*arguments, stdout=output, stderr=output)
    os.close(output)
    text = os.read(terminal, 65_536).decode()
    os.close(terminal)
    return text


class TestEraseStudent:
    def test_erases_all_enrollments(
        self,
        make_course: MakeCourse,
        student: Any,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for _ in range(2):
            enroll(student=student, course=make_course())
        call_command("erase_student", "student1", "--dry-run")
        assert Enrollment.objects.count() == 2
        assert capsys.readouterr().out == (
            "Dry run: nothing was erased. Student student1 "
            f"(user {student.pk}) has 2 enrollments with 2 history events.\n"
        )
        call_command("erase_student", "student1", "--no-input")
        assert not Enrollment.objects.exists()
        assert capsys.readouterr().out == (
            "Erased 2 enrollments of student1. The user can be deleted in the admin now.\n"
        )

    @pytest.mark.django_db(transaction=True)
    def test_delete_user_keeps_a_user_who_enrolls_during_the_deletion(
        self, course: Course, student: Any
    ) -> None:
        def enroll_again(**kwargs: Any) -> None:
            enrollments_changed.disconnect(enroll_again)
            enroll(student=student, course=course)

        enroll(student=student, course=course)
        enrollments_changed.connect(enroll_again)
        with pytest.raises(CommandError, match=r"was not deleted\. Run the command again"):
            call_command("erase_student", "student1", "--delete-user", "--no-input")
        assert Enrollment.objects.get().student == student
        call_command("erase_student", "student1", "--delete-user", "--no-input")
        assert not get_user_model().objects.exists()

    def test_name_must_be_spelled_exactly(self, student: Any) -> None:
        with pytest.raises(CommandError, match="User 'Student1' does not exist") as error:
            call_command("erase_student", "Student1")
        assert error.value.returncode == 2

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize(
        ("answer", "reason"),
        [("no\n", "Canceled. Nothing was erased."), ("", "add --no-input")],
    )
    def test_erases_nothing_without_a_confirmation(
        self, course: Course, student: Any, answer: str, reason: str
    ) -> None:
        enroll(student=student, course=course)
        result = manage("erase_student", "student1", input=answer)
        assert (result.returncode, Enrollment.objects.count()) == (2, 1)
        assert reason in result.stderr
        question = "has 1 enrollment with 1 history event.\nThis cannot be undone."
        assert question in result.stdout

    @pytest.mark.django_db(transaction=True)
    def test_asks_for_confirmation(self, course: Course, student: Any) -> None:
        enroll(student=student, course=course)
        result = manage("erase_student", "student1", input="yes\n")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.endswith(
            "Erased 1 enrollment of student1. The user can be deleted in the admin now.\n"
        )
        assert not Enrollment.objects.exists()
