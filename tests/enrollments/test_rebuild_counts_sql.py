"""enrollments/sql/rebuild_counts.sql, run by MariaDB's own client on MariaDB or MySQL."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import call
from typing import Any, NamedTuple

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import F

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import enroll, enroll_many, set_status, unenroll
from tests.support.commands import PROJECT, mariadb_client
from tests.support.counts import drift_by_title
from tests.support.enrollments import MakeCourse, MakeStudents
from tests.support.processes import run_in_processes

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]

SCRIPT = (PROJECT / "enrollments" / "sql" / "rebuild_counts.sql").read_text()
ISOLATION_LEVELS = ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
# The drift of each course in `courses`. "Empty" has no enrollments.
DRIFT = {"High": 3, "Low": -1, "Zero": -2, "Empty": 5}


class Report(NamedTuple):
    """The output of the script."""

    drifted_before: int
    corrected: dict[str, tuple[int, ...]]  # stored count, true count and drift by title
    drifted_after: int


NO_DRIFT = Report(drifted_before=0, corrected={}, drifted_after=0)


def run_script(*options: str, **client_options: Any) -> Report:
    process = mariadb_client(SCRIPT, *options, **client_options)
    assert (process.returncode, process.stderr) == (0, "")
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    before_header, (drifted_before,), *corrected, after_header, (drifted_after,) = lines
    assert before_header == ["drifted_before"]
    assert after_header == ["drifted_after"]
    if corrected:
        header = corrected.pop(0)
        assert header == ["corrected_course", "title", "stored", "true", "drift"]
    return Report(
        drifted_before=int(drifted_before),
        corrected={title: tuple(map(int, counts)) for _, title, *counts in corrected},
        drifted_after=int(drifted_after),
    )


@pytest.fixture
def courses(make_course: MakeCourse, make_students: MakeStudents) -> dict[str, Course]:
    """The courses of DRIFT, and "Correct", by title."""
    students = make_students(2)
    courses = {title: make_course(title=title) for title in ["Correct", *DRIFT]}
    for title in ["Correct", "High", "Low", "Zero"]:
        enroll_many(course=courses[title], students=students)
    for title, drift in DRIFT.items():
        Course.objects.filter(title=title).update(total_enrollments=F("total_enrollments") + drift)
    assert drift_by_title() == DRIFT
    return courses


@contextmanager
def failing_update_of(title: str) -> Iterator[None]:
    """Let the database reject any UPDATE of one course."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER tests_trigger BEFORE UPDATE ON courses_course FOR EACH ROW "
            f"BEGIN IF OLD.title = '{title}' THEN SIGNAL SQLSTATE '45000'; END IF; END"
        )
        try:
            yield
        finally:
            cursor.execute("DROP TRIGGER tests_trigger")


class TestCorrection:
    def test_corrects_and_reports_drifted_courses(self, courses: dict[str, Course]) -> None:
        assert run_script() == Report(
            drifted_before=4,
            corrected={
                "High": (5, 2, 3),
                "Low": (1, 2, -1),
                "Zero": (0, 2, -2),
                "Empty": (5, 0, 5),
            },
            drifted_after=0,
        )
        assert drift_by_title() == {}

    def test_a_second_run_corrects_nothing(self, courses: dict[str, Course]) -> None:
        run_script()
        assert run_script() == NO_DRIFT

    def test_an_empty_table_is_no_error(self) -> None:
        assert run_script() == NO_DRIFT

    def test_counts_the_same_statuses_as_the_orm(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        for status in Enrollment.Status.values:
            course = make_course(title=status)
            for student in make_students(3):
                enroll(student=student, course=course)
                if status != Enrollment.Status.ACTIVE:
                    set_status(student=student, course=course, status=status)
        Course.objects.update(total_enrollments=9)
        run_script()
        assert dict(Course.objects.values_list("title", "total_enrollments")) == {
            status: Enrollment.objects.filter(course__title=status).counted().count()
            for status in Enrollment.Status.values
        }

    def test_does_not_write_correct_courses(self, courses: dict[str, Course]) -> None:
        with failing_update_of("Correct"):
            assert run_script().drifted_after == 0


class TestSession:
    @pytest.mark.parametrize("level", ISOLATION_LEVELS)
    def test_keeps_the_isolation_level_and_does_not_wait_for_correct_courses(
        self, courses: dict[str, Course], level: str
    ) -> None:
        with transaction.atomic():
            Course.objects.select_for_update().get(title="Correct")
            row = Enrollment.objects.filter(course=courses["Correct"]).first()
            Enrollment.objects.select_for_update().get(pk=row.pk)
            process = mariadb_client(
                f"SET SESSION TRANSACTION ISOLATION LEVEL {level};"
                # Its name on MariaDB is tx_isolation, on MySQL transaction_isolation.
                f"{SCRIPT}\nSHOW SESSION VARIABLES LIKE 't%\\_isolation';",
                "--init-command=SET innodb_lock_wait_timeout = 2",
            )
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.split()[-1] == level.replace(" ", "-")
        assert drift_by_title() == {}

    @pytest.mark.parametrize(
        "option",
        [
            "--init-command=SET autocommit = 0",
            "--init-command=SET sql_mode = 'ANSI_QUOTES'",
            "--safe-updates",
        ],
    )
    def test_works_in_other_sessions(self, courses: dict[str, Course], option: str) -> None:
        assert run_script(option).drifted_after == 0
        assert drift_by_title() == {}

    def test_keeps_the_limits_of_safe_updates(self) -> None:
        variables = "@@sql_safe_updates, @@sql_big_selects, @@sql_select_limit"
        process = mariadb_client(f"{SCRIPT}\nSELECT {variables};", "--safe-updates")
        assert process.stdout.splitlines()[-1] == "1\t0\t1000"

    def test_the_privileges_in_its_header_are_sufficient(self, courses: dict[str, Course]) -> None:
        user, password = "rebuilder", "only for the tests"
        database = connection.settings_dict["NAME"]
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE USER {user} IDENTIFIED BY %s", [password])
            try:
                cursor.execute(f"GRANT SELECT, UPDATE ON `{database}`.courses_course TO {user}")
                cursor.execute(f"GRANT SELECT ON `{database}`.enrollments_enrollment TO {user}")
                cursor.execute(f"GRANT CREATE TEMPORARY TABLES ON `{database}`.* TO {user}")
                assert run_script(user=(user, password)).drifted_after == 0
            finally:
                cursor.execute(f"DROP USER {user}")
        assert drift_by_title() == {}


class TestErrors:
    def test_an_error_before_commit_rolls_back(self, courses: dict[str, Course]) -> None:
        start, report, end = SCRIPT.partition("SELECT\n    course.id AS corrected_course")
        assert report
        process = mariadb_client(f"{start}SELECT no_such_column;\n{report}{end}")
        assert process.returncode == 1
        assert "no_such_column" in process.stderr
        assert drift_by_title() == DRIFT

    def test_an_error_in_one_course_rolls_back_the_others(self, courses: dict[str, Course]) -> None:
        with failing_update_of("Empty"):
            process = mariadb_client(SCRIPT)
        assert process.returncode == 1
        assert drift_by_title() == DRIFT

    def test_corrects_nothing_if_locking_fails_and_the_client_continues(
        self, courses: dict[str, Course]
    ) -> None:
        assert SCRIPT.count("FOR UPDATE;") == 1
        process = mariadb_client(SCRIPT.replace("FOR UPDATE;", "FOR NOBODY;"), "--force")
        assert "You have an error in your SQL syntax" in process.stderr
        assert drift_by_title() == DRIFT


class TestConcurrentWriters:
    SECONDS = 3.0
    NUMBER_OF_WRITERS = 5

    @pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
    def test_every_run_leaves_correct_counts(
        self, make_course: MakeCourse, make_students: MakeStudents, level: str
    ) -> None:
        """Two processes damage courses of their own and run the script. Five enroll students."""
        course_ids = [make_course().pk for _ in range(12)]
        make_students(40)
        first_damaged, second_damaged, never_damaged = (
            course_ids[:4],
            course_ids[4:8],
            course_ids[8:],
        )
        end = time.monotonic() + self.SECONDS
        results = run_in_processes(
            call,
            [
                *(
                    (damage_and_run_script, level, damaged, never_damaged, end)
                    for damaged in (first_damaged, second_damaged)
                ),
                *(
                    (enroll_and_unenroll_at_random, seed, course_ids, end)
                    for seed in range(self.NUMBER_OF_WRITERS)
                ),
            ],
        )
        assert run_script() == NO_DRIFT
        assert drift_by_title() == {}
        # Much more is usual. The bounds are low so that the test passes on a busy machine.
        corrected, changed = sum(results[:2]), sum(results[2:])
        assert corrected >= 8
        assert changed >= 50


def enroll_and_unenroll_at_random(seed: int, course_ids: list[int], end: float) -> int:
    """Return the number of changed rows."""
    rng, changed = random.Random(seed), 0
    student_ids = list(User.objects.values_list("pk", flat=True))
    while time.monotonic() < end:
        arguments = {"student": rng.choice(student_ids), "course": rng.choice(course_ids)}
        _, is_new = enroll(**arguments)
        changed += is_new or unenroll(**arguments)
    return changed


def damage_and_run_script(
    level: str, damaged: list[int], never_damaged: list[int], end: float
) -> int:
    """Return the number of corrected courses."""
    init_command = f"--init-command=SET SESSION TRANSACTION ISOLATION LEVEL {level}"
    ids = ", ".join(map(str, damaged))
    damage = (
        f"UPDATE courses_course SET total_enrollments = total_enrollments + 7 WHERE id IN ({ids});"
    )
    corrected = 0
    while time.monotonic() < end:
        assert mariadb_client(damage).returncode == 0
        corrected += len(run_script(init_command).corrected)
        courses = Course.objects.filter(pk__in=damaged + never_damaged)
        assert not courses.drifted().exists()
    return corrected
