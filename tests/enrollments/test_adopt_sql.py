"""enrollments/sql/adopt.sql, run by MariaDB's own client on the tables of an older system.

The server is MariaDB or MySQL.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import enroll, unenroll
from tests.support.commands import PROJECT, manage, mariadb_client, unmigrated_database
from tests.support.counts import drift_by_title
from tests.support.enrollments import MakeStudents
from tests.support.processes import run_in_processes
from tests.support.threads import ConcurrentThread, wait_for_lock_waits

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]

SCRIPT = (PROJECT / "enrollments" / "sql" / "adopt.sql").read_text()

OLD_TABLES = """
INSERT INTO auth_user (id, username, password, first_name, last_name, email,
    is_staff, is_active, is_superuser, date_joined)
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 9)
SELECT n, CONCAT('student', n), '!', '', '', '', 0, 1, 0, '2019-01-01' FROM numbers;
CREATE TABLE core_course (
    id INT PRIMARY KEY, title VARCHAR(300), total_enrollments INT NULL
);
INSERT INTO core_course VALUES
    (1, 'Advanced Law', NULL), (2, 'Ärztliche Ethik', -4), (3, '   ', 7),
    (4, REPEAT('x', 250), 2), (5, '???', 99), (6, 'Empty', 3);
CREATE TABLE core_enrollments (
    id INT AUTO_INCREMENT PRIMARY KEY, student_id INT, course_id INT, status VARCHAR(20),
    is_active BOOLEAN, created_at DATETIME NULL, KEY (course_id)
);
INSERT INTO core_enrollments (student_id, course_id, status, is_active, created_at) VALUES
    (1, 1, 'active', 1, '2020-01-01 10:00'), (2, 1, 'completed', 1, '2020-01-02'),
    (3, 1, 'Dropped', 0, '2020-01-03'), (4, 1, 'on hold', 1, '2020-01-04'),
    (1, 2, 'dropped', 0, '2020-02-01'), (1, 2, 'active', 1, '2020-03-01'),
    (1, 2, 'active', 1, '2020-04-01'), (2, 2, 'active', 1, NULL),
    (77, 1, 'active', 1, '2020-01-01'), (NULL, 1, 'active', 1, '2020-01-01'),
    (1, 88, 'active', 1, '2020-01-01'), (1, NULL, 'active', 1, '2020-01-01'),
    (1, 3, 'active', 1, '2020-01-01'),
    (5, 4, ' enrolled ', 1, '2020-01-01'), (6, 5, NULL, 1, '2020-01-01');
"""

# Columns of the script's last result.
TOTALS = ["old_courses", "adopted_courses", "old_rows", "reported", "adopted_rows"]


class OldDatabase:
    """An older system's database, into which the project has been migrated."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = url.rsplit("/", 1)[-1]

    def query(self, sql: str) -> list[list[str]]:
        """Run SQL statements. Return the lines of their output without the first header."""
        return run_sql(self.name, sql)[1:]

    def adopt(self, script: str = SCRIPT) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
        """Run the script. Return the reported numbers by kind and reason, and the totals."""
        _, *reasons, header, totals = run_sql(self.name, script)
        assert header == TOTALS
        return (
            {(kind, reason): int(number) for kind, reason, number, _ in reasons},
            dict(zip(header, map(int, totals), strict=True)),
        )

    def courses(self) -> list[list[str]]:
        """Return id, slug, length of the title and stored count of all courses."""
        return self.query(
            "SELECT id, slug, CHAR_LENGTH(title), total_enrollments FROM courses_course ORDER BY id"
        )

    def enrollments(self) -> list[list[str]]:
        """Return course, student, status and both dates of all rows."""
        return self.query(
            "SELECT course_id, student_id, status, DATE(enrollment_date), DATE(withdrawal_date) "
            "FROM enrollments_enrollment ORDER BY 1, 2"
        )

    def drifted_courses(self) -> list[dict[str, Any]]:
        process = manage("rebuild_counts", "--check", "--json", env={"DATABASE_URL": self.url})
        drifted_courses = [json.loads(line) for line in process.stdout.splitlines()]
        assert process.returncode == (1 if drifted_courses else 0), process.stderr
        return drifted_courses


def run_sql(database: str, sql: str) -> list[list[str]]:
    process = mariadb_client(sql, database=database)
    assert (process.returncode, process.stderr) == (0, "")
    return [line.split("\t") for line in process.stdout.splitlines()]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[OldDatabase]:
    with unmigrated_database(tmp_path) as url:
        database = OldDatabase(url)
        env = {"DATABASE_URL": url}
        assert manage("migrate", "auth", env=env).returncode == 0
        database.query(OLD_TABLES)
        assert manage("migrate", env=env).returncode == 0
        yield database


class TestAdoption:
    def test_adopts_valid_rows_with_correct_counts_and_reports_the_others(
        self, database: OldDatabase
    ) -> None:
        reasons, totals = database.adopt()
        ((today,),) = database.query("SELECT UTC_DATE()")
        assert database.courses() == [
            ["1", "advanced-law-1", "12", "2"],
            ["2", "rztliche-ethik-2", "15", "2"],
            ["4", f"{'x' * 150}-4", "200", "1"],
            ["5", "course-5", "3", "0"],
            ["6", "empty-6", "5", "0"],
        ]
        assert database.enrollments() == [
            ["1", "1", "active", "2020-01-01", "NULL"],
            ["1", "2", "completed", "2020-01-02", "NULL"],
            ["1", "3", "withdrawn", "2020-01-03", "2020-01-03"],
            ["2", "1", "active", "2020-02-01", "NULL"],
            ["2", "2", "active", today, "NULL"],
            ["4", "5", "active", "2020-01-01", "NULL"],
        ]
        assert database.drifted_courses() == []
        assert reasons == {
            ("course", "no title"): 1,
            ("title", "shortened to 200 characters"): 1,
            ("date", "missing: set to now, unless a merged row has a date"): 1,
            ("enrollment", "unknown status"): 2,
            ("enrollment", "student does not exist"): 2,
            ("enrollment", "course does not exist or was not adopted"): 3,
            ("enrollment", "merged with another row of the same student and course"): 2,
        }
        assert (totals["old_courses"], totals["adopted_courses"]) == (6, 5)
        assert totals["old_rows"] == totals["reported"] + totals["adopted_rows"] == 15

    def test_another_course_with_the_same_id_is_unchanged(self, database: OldDatabase) -> None:
        database.query("INSERT INTO courses_course (id, title, slug) VALUES (2, 'Mine', 'mine')")
        reasons, _ = database.adopt()
        assert reasons["course", "another course has this id"] == 1
        assert ["2", "mine", "4", "0"] in database.courses()
        assert not [row for row in database.enrollments() if row[0] == "2"]
        assert database.drifted_courses() == []

    def test_the_views_can_be_adapted_to_other_columns(self, database: OldDatabase) -> None:
        """The edits are those that the comments beside the columns suggest."""
        database.query(
            "ALTER TABLE core_course DROP total_enrollments, CHANGE title name VARCHAR(300); "
            "ALTER TABLE core_enrollments DROP status, CHANGE student_id user_id INT;"
        )
        case, as_status = SCRIPT.index("    CASE LOWER"), SCRIPT.index(" AS status,  -- NULL")
        script = SCRIPT[:case] + "    IF(is_active, 'active', 'withdrawn')" + SCRIPT[as_status:]
        script = script.replace("    title  -- name", "    name AS title")
        script = script.replace("    student_id,  -- user_id", "    user_id AS student_id,")
        reasons, _ = database.adopt(script)
        assert ("enrollment", "unknown status") not in reasons
        assert [row[:3] for row in database.enrollments()] == [
            ["1", "1", "active"],
            ["1", "2", "active"],
            ["1", "3", "withdrawn"],
            ["1", "4", "active"],
            ["2", "1", "active"],
            ["2", "2", "active"],
            ["4", "5", "active"],
            ["5", "6", "active"],
        ]
        assert database.drifted_courses() == []

    def test_the_privileges_in_its_header_are_sufficient(self, database: OldDatabase) -> None:
        user, password = "adopter", "only for the tests"
        privileges = (
            "CREATE, CREATE VIEW, CREATE ROUTINE, ALTER ROUTINE, DROP, SELECT, INSERT, DELETE"
        )
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE USER {user} IDENTIFIED BY %s", [password])
            try:
                cursor.execute(f"GRANT {privileges} ON `{database.name}`.* TO {user}")
                cursor.execute(f"GRANT UPDATE ON `{database.name}`.courses_course TO {user}")
                process = mariadb_client(SCRIPT, user=(user, password), database=database.name)
            finally:
                cursor.execute(f"DROP USER {user}")
        assert (process.returncode, process.stderr) == (0, "")
        assert len(database.enrollments()) == 6

    def test_works_in_other_sessions(self, database: OldDatabase) -> None:
        init_command = "--init-command=SET autocommit = 0, sql_mode = 'ANSI_QUOTES'"
        process = mariadb_client(SCRIPT, init_command, "--safe-updates", database=database.name)
        assert (process.returncode, process.stderr) == (0, "")
        assert len(database.enrollments()) == 6
        assert database.drifted_courses() == []

    def test_tables_may_have_other_collations(self, database: OldDatabase) -> None:
        database.query(
            "ALTER TABLE courses_course CONVERT TO CHARACTER SET utf8mb4 "
            "COLLATE utf8mb4_unicode_ci; "
            "ALTER TABLE core_enrollments CONVERT TO CHARACTER SET latin1; "
            "INSERT INTO core_course (id, title) VALUES (7, 'Meſſen in Kelvin')"
        )
        database.adopt()
        assert len(database.enrollments()) == 6
        assert database.courses()[-1] == ["7", "me-en-in-kelvin-7", "16", "0"]


class TestRepeatedRun:
    def test_changes_nothing(self, database: OldDatabase) -> None:
        first_run = database.adopt(), database.enrollments(), database.courses()
        assert (database.adopt(), database.enrollments(), database.courses()) == first_run

    def test_adopts_new_rows_and_keeps_adopted_ones(self, database: OldDatabase) -> None:
        database.adopt()
        database.query(
            "INSERT INTO core_enrollments (student_id, course_id, status, created_at) "
            "VALUES (9, 6, 'active', '2021-01-01'); "
            "UPDATE enrollments_enrollment SET enrollment_date = '2022-02-02' WHERE student_id = 5;"
        )
        database.adopt()
        rows = database.enrollments()
        assert ["6", "9", "active", "2021-01-01", "NULL"] in rows
        assert ["4", "5", "active", "2022-02-02", "NULL"] in rows
        assert database.drifted_courses() == []

    def test_completes_a_run_that_failed_between_rows_and_counter(
        self, database: OldDatabase
    ) -> None:
        # The fourth course accepts rows, but no other count than 0.
        condition = "title NOT LIKE 'xxx%' OR total_enrollments = 0"
        database.query(f"ALTER TABLE courses_course ADD CONSTRAINT broken CHECK ({condition})")
        process = mariadb_client(SCRIPT, database=database.name)
        assert process.returncode == 1
        assert "broken" in process.stderr
        assert len(database.enrollments()) == 5
        assert database.drifted_courses() == []
        database.query("ALTER TABLE courses_course DROP CONSTRAINT broken")
        database.adopt()
        assert len(database.enrollments()) == 6
        assert database.drifted_courses() == []


class TestConcurrentWriters:
    NUMBER_OF_COURSES = 8
    NUMBER_OF_WRITERS = 3

    @pytest.fixture
    def students_of_all_old_courses(self, make_students: MakeStudents) -> Iterator[list[int]]:
        """Adopt eight old courses, then add a row for each student and course."""
        student_ids = [student.pk for student in make_students(150)]
        database = connection.settings_dict["NAME"]
        try:
            run_sql(
                database,
                "CREATE TABLE core_course (id INT PRIMARY KEY, title VARCHAR(300)); "
                "INSERT INTO core_course WITH RECURSIVE numbers (n) AS "
                "(SELECT 1 UNION ALL SELECT n + 1 FROM numbers "
                f"WHERE n < {self.NUMBER_OF_COURSES}) SELECT n, CONCAT('Old ', n) FROM numbers; "
                "CREATE TABLE core_enrollments (id INT AUTO_INCREMENT PRIMARY KEY, "
                "student_id INT, course_id INT, status VARCHAR(20), created_at DATETIME, "
                f"KEY (course_id));{SCRIPT}",
            )
            run_sql(
                database,
                "INSERT INTO core_enrollments (student_id, course_id, status, created_at) "
                "SELECT auth_user.id, core_course.id, "
                "IF(auth_user.id % 3, 'active', 'dropped'), '2020-01-01' "
                "FROM auth_user, core_course",
            )
            yield student_ids
        finally:
            run_sql(database, "DROP TABLE IF EXISTS core_enrollments, core_course, adopt_report")

    def test_counts_are_correct_while_students_enroll(
        self, students_of_all_old_courses: list[int]
    ) -> None:
        student_ids = students_of_all_old_courses
        # Step 2 is run beforehand: only step 3 competes with the writers for locks.
        step_1, step_3 = SCRIPT.index("-- 1."), SCRIPT.index("-- 3.")
        run_sql(connection.settings_dict["NAME"], SCRIPT[:step_3])
        enrollments_script = SCRIPT[:step_1] + SCRIPT[step_3:]
        thread = ConcurrentThread(lambda: mariadb_client(enrollments_script))

        def start_script_behind_the_writers() -> None:
            """Let the writers commit between the start of the script's wait and its lock."""
            with transaction.atomic():
                Course.objects.select_for_update().get(pk=1)
                wait_for_lock_waits(self.NUMBER_OF_WRITERS)
                thread.start()
                wait_for_lock_waits(self.NUMBER_OF_WRITERS + 1)
            process = thread.finish()
            assert (process.returncode, process.stderr) == (0, "")

        expected_statuses = run_in_processes(
            enroll_and_unenroll_at_random,
            [
                (student_ids[number :: self.NUMBER_OF_WRITERS], number)
                for number in range(self.NUMBER_OF_WRITERS)
            ],
            meanwhile=start_script_behind_the_writers,
        )
        assert drift_by_title() == {}
        statuses = {
            (student_id, course_id): status
            for student_id, course_id, status in Enrollment.objects.values_list(
                "student", "course", "status"
            )
        }
        assert len(statuses) == len(student_ids) * self.NUMBER_OF_COURSES
        for expected in expected_statuses:
            assert expected.items() <= statuses.items()


def enroll_and_unenroll_at_random(student_ids: list[int], seed: int) -> dict[tuple[int, int], str]:
    """Return the status of each written row by (student, course)."""
    rng, statuses = random.Random(seed), {}
    # All writers begin with course 1, which the test holds locked.
    for course_id in [1, *rng.choices(range(1, 9), k=200)]:
        student_id = rng.choice(student_ids)
        if not statuses or rng.random() < 0.6:
            enrollment, _ = enroll(student=student_id, course=course_id)
            statuses[student_id, course_id] = enrollment.status
        elif unenroll(student=student_id, course=course_id):
            statuses[student_id, course_id] = "withdrawn"
    return statuses
