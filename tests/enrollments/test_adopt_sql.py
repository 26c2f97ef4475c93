"""The way from an older system's tables, on a database that has nothing else."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import enroll, unenroll
from tests.conftest import drifts
from tests.support.commands import PROJECT, manage, mariadb, unmigrated_database
from tests.support.processes import run_in_processes
from tests.support.threads import ConcurrentThread, wait_for_lock_waits

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]

SCRIPT = (PROJECT / "enrollments" / "sql" / "adopt.sql").read_text()

OLD = """
INSERT INTO auth_user (id, username, password, first_name, last_name, email,
    is_staff, is_active, is_superuser, date_joined)
SELECT seq, CONCAT('student', seq), '!', '', '', '', 0, 1, 0, '2019-01-01' FROM seq_1_to_9;
CREATE TABLE core_course (
    id INT PRIMARY KEY, title VARCHAR(300), total_enrollments INT NULL
);
INSERT INTO core_course VALUES
    (1, 'Advanced Law', NULL), (2, 'Ärztliche Ethik', -4), (3, '   ', 7),
    (4, REPEAT('x', 250), 2), (5, '???', 99), (6, 'Nobody', 3);
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
ROWS = (
    "SELECT course_id, student_id, status, DATE(enrollment_date), DATE(withdrawal_date) "
    "FROM enrollments_enrollment ORDER BY 1, 2"
)
COURSES = "SELECT id, slug, CHAR_LENGTH(title), total_enrollments FROM courses_course ORDER BY id"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """The URL of an older system's database, into which the project has migrated."""
    with unmigrated_database(tmp_path) as url:
        env = {"DATABASE_URL": url}
        assert manage("migrate", "auth", env=env).returncode == 0
        sql(url, OLD)
        assert manage("migrate", env=env).returncode == 0
        yield url


def sql(url: str, script: str) -> list[list[str]]:
    done = mariadb(script, database=url.rsplit("/", 1)[-1])
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("\t") for line in done.stdout.splitlines()]


def adopt(url: str, script: str = SCRIPT) -> tuple[dict[tuple[str, str], int], list[int]]:
    """Run the script; return what it reports, and its totals."""
    *reasons, _, totals = sql(url, script)
    numbers = {(what, reason): int(number) for what, reason, number, _ in reasons[1:]}
    return numbers, [int(number) for number in totals]


def drift(url: str) -> tuple[int, list[dict[str, Any]]]:
    done = manage("rebuild_counts", "--check", "--json", env={"DATABASE_URL": url})
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_an_old_database_is_taken_over_and_its_counts_are_right(database: str) -> None:
    reported, totals = adopt(database)
    assert reported == {
        ("course", "no title"): 1,
        ("title", "cut to 200 characters"): 1,
        ("date", "none: taken with the date of the day, unless another row has one"): 1,
        ("enrollment", "unknown status"): 2,
        ("enrollment", "no such student"): 2,
        ("enrollment", "no such course, or it was not taken"): 3,
        ("enrollment", "one with another row of this student and course"): 2,
    }
    old_courses, courses_here, old_rows, refused, rows_here = totals
    assert (old_courses, courses_here) == (6, 5)
    assert old_rows == refused + rows_here == 15
    today = sql(database, "SELECT UTC_DATE() AS today")[1][0]
    assert sql(database, ROWS)[1:] == [
        ["1", "1", "active", "2020-01-01", "NULL"],
        ["1", "2", "completed", "2020-01-02", "NULL"],
        ["1", "3", "withdrawn", "2020-01-03", "2020-01-03"],
        ["2", "1", "active", "2020-02-01", "NULL"],
        ["2", "2", "active", today, "NULL"],
        ["4", "5", "active", "2020-01-01", "NULL"],
    ]
    assert sql(database, COURSES)[1:] == [
        ["1", "advanced-law-1", "12", "2"],
        ["2", "rztliche-ethik-2", "15", "2"],
        ["4", f"{'x' * 150}-4", "200", "1"],
        ["5", "course-5", "3", "0"],
        ["6", "nobody-6", "6", "0"],
    ]
    assert drift(database) == (0, [])


def test_run_again_it_changes_nothing_and_takes_what_came_since(database: str) -> None:
    before = adopt(database), sql(database, ROWS), sql(database, COURSES)
    assert (adopt(database), sql(database, ROWS), sql(database, COURSES)) == before
    sql(
        database,
        "INSERT INTO core_enrollments (student_id, course_id, status, created_at) "
        "VALUES (9, 6, 'active', '2021-01-01'); "
        "UPDATE enrollments_enrollment SET enrollment_date = '2022-02-02' WHERE student_id = 5;",
    )
    adopt(database)
    rows = sql(database, ROWS)
    assert ["6", "9", "active", "2021-01-01", "NULL"] in rows
    assert ["4", "5", "active", "2022-02-02", "NULL"] in rows  # what is there is left alone
    assert drift(database) == (0, [])


def test_another_course_with_the_same_id_is_left_alone(database: str) -> None:
    sql(database, "INSERT INTO courses_course (id, title, slug) VALUES (2, 'Mine', 'mine')")
    reported, _ = adopt(database)
    assert reported[("course", "another course has this id")] == 1
    assert ["2", "mine", "4", "0"] in sql(database, COURSES)
    assert not [row for row in sql(database, ROWS) if row[0] == "2"]
    assert drift(database) == (0, [])


def test_other_names_and_a_flag_instead_of_a_status(database: str) -> None:
    sql(
        database,
        "ALTER TABLE core_course DROP total_enrollments, CHANGE title name VARCHAR(300); "
        "ALTER TABLE core_enrollments DROP status, CHANGE student_id user_id INT;",
    )
    begins, ends = SCRIPT.index("    CASE LOWER"), SCRIPT.index("    END AS status")
    script = SCRIPT[:begins] + "    IF(is_active, 'active', 'withdrawn')" + SCRIPT[ends + 7 :]
    script = script.replace("    title  -- name", "    name AS title").replace(
        "    student_id,  -- user_id", "    user_id AS student_id,"
    )
    reported, _ = adopt(database, script)
    assert ("enrollment", "unknown status") not in reported
    statuses = [row[:3] for row in sql(database, ROWS)[1:]]
    assert statuses == [
        ["1", "1", "active"],
        ["1", "2", "active"],
        ["1", "3", "withdrawn"],
        ["1", "4", "active"],
        ["2", "1", "active"],
        ["2", "2", "active"],
        ["4", "5", "active"],
        ["5", "6", "active"],
    ]
    assert drift(database) == (0, [])


def test_broken_off_it_leaves_whole_courses_and_the_next_run_completes_it(database: str) -> None:
    # Between the rows of the fourth course and its counter.
    condition = "title NOT LIKE 'xxx%' OR total_enrollments = 0"
    sql(database, f"ALTER TABLE courses_course ADD CONSTRAINT broken CHECK ({condition})")
    done = mariadb(SCRIPT, database=database.rsplit("/", 1)[1])
    assert (done.returncode, "broken" in done.stderr) == (1, True)
    assert len(sql(database, ROWS)[1:]) == 5
    assert drift(database) == (0, [])
    sql(database, "ALTER TABLE courses_course DROP CONSTRAINT broken")
    adopt(database)
    assert len(sql(database, ROWS)[1:]) == 6
    assert drift(database) == (0, [])


@pytest.fixture
def many_old_rows(make_students: Callable[..., Any]) -> Iterator[list[int]]:
    """Students who are all in all eight old courses; here are the courses only, so far."""
    students = [student.pk for student in make_students(150)]
    here = connection.settings_dict["NAME"]
    try:
        sql(
            here,
            "CREATE TABLE core_course (id INT PRIMARY KEY, title VARCHAR(300)); "
            "INSERT INTO core_course SELECT seq, CONCAT('Old ', seq) FROM seq_1_to_8; "
            "CREATE TABLE core_enrollments (id INT AUTO_INCREMENT PRIMARY KEY, student_id INT, "
            "course_id INT, status VARCHAR(20), created_at DATETIME, KEY (course_id));" + SCRIPT,
        )
        sql(
            here,
            "INSERT INTO core_enrollments (student_id, course_id, status, created_at) "
            "SELECT auth_user.id, core_course.id, "
            "IF(auth_user.id % 3, 'active', 'dropped'), '2020-01-01' FROM auth_user, core_course",
        )
        yield students
    finally:
        sql(here, "DROP TABLE IF EXISTS core_enrollments, core_course, adopt_report")


def enrol_and_leave(students: list[int], seed: int) -> dict[tuple[int, int], str]:
    """Call services at random; return what rows must be from then on."""
    rng, rows = random.Random(seed), {}
    for course in [1, *rng.choices(range(1, 9), k=200)]:
        student = rng.choice(students)
        if not rows or rng.random() < 0.6:
            rows[student, course] = enroll(student=student, course=course)[0].status
        elif unenroll(student=student, course=course):
            rows[student, course] = "withdrawn"
    return rows


def test_counts_are_right_where_students_enrol_meanwhile(many_old_rows: list[int]) -> None:
    # Of its steps only the enrollments meet the writers here: what is before reads the courses.
    settings, enrollments = SCRIPT.index("-- 1."), SCRIPT.index("-- 3.")
    sql(connection.settings_dict["NAME"], SCRIPT[:enrollments])
    script = ConcurrentThread(lambda: mariadb(SCRIPT[:settings] + SCRIPT[enrollments:]))

    def meanwhile() -> None:
        with transaction.atomic():
            Course.objects.select_for_update().get(pk=1)
            wait_for_lock_waits(3)
            # The writers come before it: what it could see by now, it may not go by.
            script.start()
            wait_for_lock_waits(4)
        done = script.finish()
        assert (done.returncode, done.stderr) == (0, "")

    arguments = [(many_old_rows[number::3], number) for number in range(3)]
    told = run_in_processes(enrol_and_leave, arguments, meanwhile=meanwhile)
    assert drifts() == {}
    found = {(row.student_id, row.course_id): row.status for row in Enrollment.objects.all()}
    assert len(found) == len(many_old_rows) * 8
    for rows in told:
        assert {key: found[key] for key in rows} == rows
