"""The SQL script, run by the real client."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.db.models import F

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import enroll, enroll_many, set_status, unenroll
from tests.conftest import drifts
from tests.support.commands import PROJECT, mariadb
from tests.support.processes import run_in_processes

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]

SCRIPT = (PROJECT / "enrollments" / "sql" / "rebuild_counts.sql").read_text()
LEVELS = ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
# stored − true, by title. "None" has no rows at all.
DRIFTS = {"High": 3, "Low": -1, "Zero": -2, "None": 5}

Make = Callable[..., Any]


def rebuild(script: str = SCRIPT, *, options: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Run the script; return what it says: number before, corrected courses, number after."""
    done = mariadb(script, *options, **more)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[0] == ["drifted_before"]
    assert lines[-2] == ["drifted_after"]
    corrected = lines[2:-2]
    assert not corrected or corrected[0] == ["corrected_course", "title", "stored", "true", "drift"]
    return {
        "before": int(lines[1][0]),
        "corrected": {title: tuple(map(int, counts)) for _, title, *counts in corrected[1:]},
        "after": int(lines[-1][0]),
    }


def put_drift(course: Course, by: int) -> None:
    Course.objects.filter(pk=course.pk).update(total_enrollments=F("total_enrollments") + by)


@pytest.fixture
def courses(make_course: Make, make_students: Make) -> dict[str, Course]:
    students = make_students(2)
    made = {title: make_course(title=title) for title in ["Right", *DRIFTS]}
    for title in ["Right", "High", "Low", "Zero"]:
        enroll_many(course=made[title], students=students)
    for title, drift in DRIFTS.items():
        put_drift(made[title], drift)
    assert drifts() == DRIFTS
    return made


@contextmanager
def trigger(body: str) -> Iterator[None]:
    """Something that the database does before it writes a course."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TRIGGER tests_trigger BEFORE UPDATE ON courses_course FOR EACH ROW {body}"
        )
        try:
            yield
        finally:
            cursor.execute("DROP TRIGGER tests_trigger")


def test_repairs_what_drifted_and_says_so(courses: dict[str, Course]) -> None:
    assert rebuild() == {
        "before": 4,
        "corrected": {"High": (5, 2, 3), "Low": (1, 2, -1), "Zero": (0, 2, -2), "None": (5, 0, 5)},
        "after": 0,
    }
    assert drifts() == {}
    assert rebuild() == {"before": 0, "corrected": {}, "after": 0}


def test_no_courses() -> None:
    assert rebuild() == {"before": 0, "corrected": {}, "after": 0}


def test_counts_by_the_same_rule_as_the_code(make_course: Make, make_students: Make) -> None:
    for status in Enrollment.Status.values:
        course = make_course(title=status)
        for student in make_students(3):
            enroll(student=student, course=course)
            if status != Enrollment.Status.ACTIVE:
                set_status(student=student, course=course, status=status)
    Course.objects.update(total_enrollments=9)
    rebuild()
    assert dict(Course.objects.values_list("title", "total_enrollments")) == {
        status: Enrollment.objects.filter(course__title=status).counted().count()
        for status in Enrollment.Status.values
    }


@pytest.mark.parametrize("level", LEVELS)
def test_works_under_any_isolation_level_and_leaves_it_alone(
    courses: dict[str, Course], level: str
) -> None:
    """Nor does it wait for a healthy course, which somebody else has locked."""
    level = level.replace(" ", "-")
    init = f"SET tx_isolation = '{level}', innodb_lock_wait_timeout = 2"
    with transaction.atomic():
        Course.objects.select_for_update().get(title="Right")
        Enrollment.objects.select_for_update().get(pk=courses["Right"].enrollments.first().pk)
        done = mariadb(f"{SCRIPT}\nSELECT @@SESSION.tx_isolation;", f"--init-command={init}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == level
    assert drifts() == {}


def test_works_without_autocommit(courses: dict[str, Course]) -> None:
    assert rebuild(options=("--init-command=SET autocommit = 0",))["after"] == 0
    assert drifts() == {}


def test_a_healthy_course_is_not_written(courses: dict[str, Course]) -> None:
    refuse = "BEGIN IF OLD.title = 'Right' THEN SIGNAL SQLSTATE '45000'; END IF; END"
    with trigger(refuse):
        assert rebuild()["after"] == 0


def test_least_privileges(courses: dict[str, Course]) -> None:
    """Those that the script's header names."""
    user, password = "rebuilder", "only for the tests"
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE USER {user} IDENTIFIED BY %s", [password])
        try:
            cursor.execute(f"GRANT SELECT, UPDATE ON `{name}`.courses_course TO {user}")
            cursor.execute(f"GRANT SELECT ON `{name}`.enrollments_enrollment TO {user}")
            cursor.execute(f"GRANT CREATE TEMPORARY TABLES ON `{name}`.* TO {user}")
            assert rebuild(user=(user, password))["after"] == 0
        finally:
            cursor.execute(f"DROP USER {user}")
    assert drifts() == {}


def test_an_error_in_the_middle_leaves_nothing_half_done(courses: dict[str, Course]) -> None:
    """After the correction, before it is committed."""
    start, report, end = SCRIPT.partition("SELECT\n    course.id AS corrected_course")
    assert report
    done = mariadb(f"{start}SELECT no_such_column;\n{report}{end}")
    assert (done.returncode, "no_such_column" in done.stderr) == (1, True)
    assert drifts() == DRIFTS


def test_an_error_in_the_last_course_undoes_the_others(courses: dict[str, Course]) -> None:
    refuse = "BEGIN IF OLD.title = 'None' THEN SIGNAL SQLSTATE '45000'; END IF; END"
    with trigger(refuse):
        done = mariadb(SCRIPT)
    assert done.returncode == 1
    assert drifts() == DRIFTS


def test_without_the_locks_nothing_is_corrected(courses: dict[str, Course]) -> None:
    """Even when the client was told to go on after errors."""
    assert SCRIPT.count("FOR UPDATE;") == 1
    done = mariadb(SCRIPT.replace("FOR UPDATE;", "FOR NOBODY;"), "--force")
    assert "You have an error in your SQL syntax" in done.stderr
    assert drifts() == DRIFTS


# While others write ----------------------------------------------------------

SECONDS = 3.0
WRITERS = 5


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_every_run_leaves_right_counts_while_writers_write(
    make_course: Make, make_students: Make, level: str
) -> None:
    """Two outsiders put drift into courses of theirs, and run the script at once.

    After each run all of theirs are right, and so are those that nobody damages.
    """
    keys = [make_course().pk for _ in range(12)]
    make_students(40)
    until = time.monotonic() + SECONDS
    theirs, others, healthy = keys[:4], keys[4:8], keys[8:]
    did = run_in_processes(
        do,
        [
            *((damage_and_rebuild, level, mine, healthy, until) for mine in (theirs, others)),
            *((enroll_and_unenroll, seed, keys, until) for seed in range(WRITERS)),
        ],
    )
    assert rebuild() == {"before": 0, "corrected": {}, "after": 0}
    assert drifts() == {}
    corrected, changed = sum(did[:2]), sum(did[2:])
    # Low, for machines with much else to do.
    assert corrected >= 8
    assert changed >= 50


def do(work: Callable[..., int], *arguments: Any) -> int:
    return work(*arguments)


def enroll_and_unenroll(seed: int, course_keys: list[int], until: float) -> int:
    rng, changed = random.Random(seed), 0
    students = list(get_user_model().objects.values_list("pk", flat=True))
    while time.monotonic() < until:
        student, course = rng.choice(students), rng.choice(course_keys)
        _, new = enroll(student=student, course=course)
        changed += new or unenroll(student=student, course=course)
    return changed


def damage_and_rebuild(level: str, mine: list[int], healthy: list[int], until: float) -> int:
    init = f"--init-command=SET SESSION TRANSACTION ISOLATION LEVEL {level}"
    ids = ", ".join(map(str, mine))
    damage = "UPDATE courses_course SET total_enrollments = total_enrollments + 7 WHERE id IN"
    corrected = 0
    while time.monotonic() < until:
        assert mariadb(f"{damage} ({ids});").returncode == 0
        corrected += len(rebuild(options=(init,))["corrected"])
        wrong = Course.objects.filter(pk__in=mine + healthy).drifted()
        assert dict(wrong.values_list("pk", "drift")) == {}
    return corrected
