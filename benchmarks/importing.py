"""Import the registrations of the Open University from their file into empty tables."""

import csv
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import transaction
from django.db.models import F

from benchmarks.databases import execute, table_name, temporary_database
from benchmarks.measuring import (
    PROJECT,
    Benchmark,
    Size,
    command_memory,
    run_rounds,
    timed_approach,
)
from benchmarks.models import PlainCourse, PlainEnrollment
from courses.models import Course, Subject
from enrollments.models import Enrollment

ROW_BY_ROW = "row by row"
COLUMNS = ["code_module", "code_presentation", "id_student"]
DAYS = ["date_registration", "date_unregistration"]
LINES, STUDENTS, PRESENTATIONS = 32_593, 28_785, 22  # as in the real file


def measure_import(size: Size, path: Path | None) -> list[Benchmark]:
    """Measure the import of `path`, or of a generated file of the same size."""
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            generated = Path(folder, "studentRegistration.csv")
            write_registrations(generated)
            return [_measure_file(size, generated, "a file like the Open University's")]
    return [_measure_file(size, path, "the Open University's file")]


def _measure_file(size: Size, path: Path, description: str) -> Benchmark:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    # Every n-th line, so that courses and students repeat as often as in the whole file.
    sample = lines[:: max(1, len(lines) // size.row_by_row_lines)]
    command = partial(call_command, "import_enrollments", path, verbosity=0)
    approaches = [
        timed_approach(
            f"{PROJECT}: import_enrollments", command, items=len(lines), context=emptied_tables
        ),
        timed_approach(
            f"{ROW_BY_ROW}: get_or_create ({len(sample):,} of the lines)",
            partial(row_by_row, sample),
            items=len(sample),
            context=emptied_tables,
        ),
    ]
    title = f"import {description}, {len(lines):,} lines (lines)"
    benchmark = Benchmark("import", title, approaches)
    with temporary_database("import"):
        run_rounds(benchmark, rounds=size.rounds)
        with emptied_tables():
            benchmark.memory = command_memory("import_enrollments", str(path))
    return benchmark


@contextmanager
def emptied_tables() -> Iterator[None]:
    models = [Enrollment, Course, Subject, PlainEnrollment, PlainCourse, get_user_model()]
    execute(
        "SET foreign_key_checks = 0",
        *(f"TRUNCATE TABLE {table_name(model)}" for model in models),
        "SET foreign_key_checks = 1",
    )
    yield


def write_registrations(path: Path) -> None:
    """Write a file with as many lines, students and presentations as the real one."""
    rng = random.Random(1)
    presentations = [
        (module * 3, f"{year}{month}")
        for module in "ABCDEF"
        for year in (2013, 2014)
        for month in "BJ"
    ][:PRESENTATIONS]
    students = rng.sample(range(10_000, 3_000_000), k=STUDENTS)
    registrations = {(rng.choice(presentations), student) for student in students}
    while len(registrations) < LINES:
        registrations.add((rng.choice(presentations), rng.choice(students)))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow([*COLUMNS, *DAYS])
        for presentation, student in sorted(registrations):
            unregistered = rng.randrange(250) if rng.random() < 0.31 else ""
            writer.writerow([*presentation, student, -rng.randrange(200), unregistered])


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
