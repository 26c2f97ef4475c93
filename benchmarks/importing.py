"""The Open University's registrations, from the file into empty tables."""

import csv
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import transaction
from django.db.models import F

from benchmarks.data import bare_driver, database, execute, table
from benchmarks.measuring import FLOOR, OURS, Run, Way, Work, timed
from benchmarks.memory import memory_of
from benchmarks.models import PlainCourse, PlainEnrollment
from benchmarks.sizes import Size
from courses.models import Course, Subject
from enrollments.models import Enrollment

COLUMNS = ["code_module", "code_presentation", "id_student"]
DAYS = ["date_registration", "date_unregistration"]
LINES, STUDENTS, PRESENTATIONS = 32_593, 28_785, 22  # as the real file has


def importing(size: Size, given: Path | None) -> Iterator[list[Work]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = given or generated(folder / "studentRegistration.csv")
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
        # Evenly taken, so that courses and students repeat as often as in the whole.
        some = lines[:: max(1, len(lines) // size.lines_by_row)]
        stack.enter_context(database("importing"))
        driver = stack.enter_context(bare_driver())
        ways = {
            f"{FLOOR}, LOAD DATA": partial(run, partial(load, driver, path), len(lines)),
            f"{OURS}, import_enrollments": partial(
                run, partial(call_command, "import_enrollments", path, verbosity=0), len(lines)
            ),
            f"row by row, get_or_create ({len(some):,} of the lines)": partial(
                run, partial(row_by_row, some), len(some)
            ),
        }
        which = "the Open University's file" if given else "a file like the Open University's"
        title = f"import {which}, {len(lines):,} lines (lines)"
        work = Work("import", title, [Way(name, call) for name, call in ways.items()])
        yield [work]
        empty()
        work.memory = memory_of("import_enrollments", str(path))


def generated(path: Path) -> Path:
    """Write a file of the same columns, numbers of lines, students and courses."""
    rng = random.Random(1)
    courses = [
        (module * 3, f"{year}{month}")
        for module in "ABCDEF"
        for year in (2013, 2014)
        for month in "BJ"
    ][:PRESENTATIONS]
    students = rng.sample(range(10_000, 3_000_000), k=STUDENTS)
    enrolled = {(rng.choice(courses), student) for student in students}
    while len(enrolled) < LINES:
        enrolled.add((rng.choice(courses), rng.choice(students)))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow([*COLUMNS, *DAYS])
        for course, student in sorted(enrolled):
            left = rng.randrange(250) if rng.random() < 0.31 else ""
            writer.writerow([*course, student, -rng.randrange(200), left])
    return path


def run(call: Callable[[], object], done: int) -> Run:
    empty()
    return timed(call, done=done)


def empty() -> None:
    emptied = [Enrollment, Course, Subject, PlainEnrollment, PlainCourse]
    execute(
        "SET foreign_key_checks = 0",
        *(f"TRUNCATE TABLE {table(model)}" for model in (*emptied, get_user_model())),
        "SET foreign_key_checks = 1",
    )


LOAD = """
    CREATE TEMPORARY TABLE line (
        module VARCHAR(50), presentation VARCHAR(50), student VARCHAR(20),
        registered VARCHAR(6), unregistered VARCHAR(6)
    );
    LOAD DATA LOCAL INFILE %s INTO TABLE line
        FIELDS TERMINATED BY ',' OPTIONALLY ENCLOSED BY '"' LINES TERMINATED BY '{ending}'
        IGNORE 1 LINES;
    INSERT INTO courses_subject (name, slug) SELECT DISTINCT module, LOWER(module) FROM line;
    INSERT INTO courses_course (title, slug, subject_id, total_enrollments)
        SELECT title, LOWER(title), subject.id, 0
        FROM (SELECT DISTINCT module, CONCAT(module, '-', presentation) AS title FROM line) AS found
        JOIN courses_subject AS subject ON subject.name = found.module;
    INSERT INTO auth_user (
            password, is_superuser, username, first_name, last_name, email, is_staff, is_active,
            date_joined
        )
        SELECT DISTINCT '!', 0, student, '', '', '', 0, 1, NOW(6) FROM line;
    INSERT INTO enrollments_enrollment (
            student_id, course_id, status, enrollment_date, withdrawal_date
        )
        SELECT
            user.id,
            course.id,
            IF(unregistered = '', 'active', 'withdrawn'),
            start + INTERVAL registered DAY,
            IF(unregistered = '', NULL, start + INTERVAL unregistered DAY)
        FROM (
            SELECT
                *,
                TIMESTAMP(CONCAT(
                    LEFT(presentation, 4), IF(RIGHT(presentation, 1) = 'J', '-10-01', '-02-01')
                )) AS start
            FROM line
        ) AS dated
        JOIN auth_user AS user ON user.username = student
        JOIN courses_course AS course ON course.slug = LOWER(CONCAT(module, '-', presentation));
    UPDATE courses_course AS course
        JOIN (
            SELECT course_id, COUNT(*) AS counted FROM enrollments_enrollment
            WHERE status IN ('active', 'completed') GROUP BY course_id
        ) AS found ON found.course_id = course.id
        SET total_enrollments = counted;
    DROP TEMPORARY TABLE line
"""


def load(driver: Any, path: Path) -> None:
    with path.open("rb") as file:
        ending = "\\r\\n" if file.readline().endswith(b"\r\n") else "\\n"
    with driver.cursor() as cursor:
        # Some lines have no day; LOAD DATA's own conversions would be errors in strict mode.
        cursor.execute("SET sql_mode = ''")
        for statement in LOAD.format(ending=ending).split(";"):
            cursor.execute(statement, (str(path),) if "%s" in statement else None)
    driver.commit()


def row_by_row(lines: list[dict[str, str]]) -> None:
    users = get_user_model()._default_manager
    for line in lines:
        module, presentation, student = (line[name] for name in COLUMNS)
        registered, unregistered = (line[name].replace("?", "") for name in DAYS)
        month = 10 if presentation.endswith("J") else 2
        start = datetime(int(presentation[:4]), month, 1, tzinfo=UTC)
        title = f"{module}-{presentation}"
        with transaction.atomic():
            user, _ = users.get_or_create(username=student, defaults={"password": "!"})
            course, _ = PlainCourse.objects.get_or_create(
                slug=title.lower(), defaults={"title": title}
            )
            row, created = PlainEnrollment.objects.get_or_create(
                student=user,
                course=course,
                defaults={
                    "status": "withdrawn" if unregistered else "active",
                    "enrollment_date": start + timedelta(days=int(registered or 0)),
                    "withdrawal_date": (
                        start + timedelta(days=int(unregistered)) if unregistered else None
                    ),
                },
            )
            if created and row.status == "active":
                PlainCourse.objects.filter(pk=course.pk).update(
                    total_enrollments=F("total_enrollments") + 1
                )
