import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection

from benchmarks import canvas_file
from courses.models import Course
from enrollments.exchange.importer import ImportSummary, import_file
from enrollments.exchange.reader import open_enrollment_file
from enrollments.models import Enrollment
from enrollments.rows import CHUNK_SIZE
from enrollments.services import enroll, enroll_many, unenroll
from tests.support.commands import all_rows
from tests.support.counts import drift_by_title
from tests.support.exchange import (
    CANVAS_HEADER,
    OPEN_UNIVERSITY_HEADER,
    counts_by_title,
    import_path,
    statuses,
)
from tests.support.processes import run_in_processes

MakeCourse = Callable[..., Course]
MakeStudents = Callable[[int], list[Any]]
WriteFile = Callable[..., Path]


def test_students_without_a_seat_are_rejected(
    make_course: MakeCourse, write_file: WriteFile
) -> None:
    make_course(title="Full", slug="aaa-2013j", capacity=2)
    lines = [f"AAA,2013J,{n},0," for n in range(1, 5)]
    summary, rejected = import_path(write_file(OPEN_UNIVERSITY_HEADER, *lines))
    assert summary == ImportSummary(rows=4, students_created=4, created=2, rejected=2)
    assert rejected == [
        "Line 4: AAA-2013J is full, no seat for 3",
        "Line 5: AAA-2013J is full, no seat for 4",
    ]
    assert (counts_by_title(), drift_by_title()) == ({"Full": 2}, {})


def test_withdrawals_free_seats_for_enrollments_on_earlier_lines(
    make_course: MakeCourse, write_file: WriteFile
) -> None:
    make_course(title="Small", slug="aaa-2013j", capacity=1)
    import_path(write_file(OPEN_UNIVERSITY_HEADER, "AAA,2013J,1,0,"))
    path = write_file(OPEN_UNIVERSITY_HEADER, "AAA,2013J,2,0,", "AAA,2013J,1,0,5")
    summary = ImportSummary(rows=2, students_created=1, created=1, withdrawn=1)
    assert import_path(path) == (summary, [])
    before = all_rows()
    import_path(path)
    assert all_rows() == before


def test_seats_are_taken_in_the_order_of_the_file(
    make_course: MakeCourse, write_file: WriteFile
) -> None:
    make_course(slug="c", capacity=2)
    # A later row of the same student does not move the student to the end.
    lines = ["z,A", "y,A", "x,A", "z,A", "z,B"]
    rows = ["C,{},student,{},active".format(*line.split(",")) for line in lines]
    _, rejected = import_path(write_file(CANVAS_HEADER, *rows))
    assert rejected == ["Line 4: C is full, no seat for x"]
    assert {username for _, username in statuses()} == {"y", "z"}


def test_dry_run_changes_nothing_and_returns_the_summary_of_an_import(
    make_course: MakeCourse, write_file: WriteFile
) -> None:
    lines = ["AAA,2013J,11391,-159,", "AAA,2013J,28400,-53,12", "BBB,2014B,11391,?,"]
    more = ["CCC,2014B,5,0,", "CCC,2014B,7,0,1"]
    import_path(write_file(OPEN_UNIVERSITY_HEADER, *lines, *more))
    make_course(title="Small", slug="ddd-2014b", capacity=1)
    path = write_file(
        OPEN_UNIVERSITY_HEADER,
        *lines,
        *("CCC,2014B,5,0,9", "CCC,2014B,7,0,"),
        *("DDD,2014B,8,0,", "DDD,2014B,9,0,"),
        *("EEE,2014B,8,0,", "FFF,2014B,8,0,"),
        *("invalid", "AAA,2013J,11391,-150,"),
    )
    before = all_rows()
    simulated = import_path(path, dry_run=True)
    assert all_rows() == before
    assert simulated == import_path(path)
    assert simulated[0] == ImportSummary(
        rows=11,
        created=3,
        reenrolled=1,
        withdrawn=1,
        updated=1,
        unchanged=3,
        rejected=2,
        courses_created=2,
        students_created=2,
    )


def test_dry_run_counts_seats_across_chunks(
    make_course: MakeCourse, make_students: MakeStudents, write_file: WriteFile
) -> None:
    course = make_course(title="Large", slug="large", capacity=CHUNK_SIZE + 100)
    enroll_many(course=course, students=make_students(150))
    enrollments = [f"large,u{n},student,,active" for n in range(2 * CHUNK_SIZE)]
    withdrawals = [f"large,student{n},student,,deleted" for n in range(1, 101)]
    path = write_file(CANVAS_HEADER, *enrollments, *withdrawals)
    before = all_rows()
    simulated = import_path(path, dry_run=True)
    assert all_rows() == before
    assert simulated[0].created == CHUNK_SIZE + 50
    assert simulated == import_path(path)
    assert (counts_by_title(), drift_by_title()) == ({"Large": CHUNK_SIZE + 100}, {})


def test_existing_user_becomes_the_student_unchanged(db: None, write_file: WriteFile) -> None:
    users = get_user_model().objects
    users.create_user("u1", email="a@example.org", password="secret", is_staff=True)
    user = users.values().get()
    path = write_file(CANVAS_HEADER, "C,u1,student,,active", "C,u2,student,,active")
    assert import_path(path)[0].students_created == 1
    assert users.values().get(username="u1") == user
    assert (len(statuses()), drift_by_title()) == (2, {})


def test_existing_courses_are_used_unchanged(
    make_course: MakeCourse, write_file: WriteFile
) -> None:
    make_course(title="Databases", slug="aaa-2013j")
    import_path(write_file(OPEN_UNIVERSITY_HEADER, "AAA,2013J,1,0,", "BBB,2014B,1,0,"))
    assert counts_by_title() == {"Databases": 1, "BBB-2014B": 1}


def test_existing_only_creates_neither_courses_nor_users(
    make_course: MakeCourse, make_students: MakeStudents, write_file: WriteFile
) -> None:
    make_course(slug="cs-1")
    make_students(1)
    path = write_file(
        CANVAS_HEADER,
        "CS-1,student1,student,,active",
        "CS-1,u2,student,,active",
        "CS-2,student1,student,,active",
    )
    users, courses = get_user_model().objects.count(), Course.objects.count()
    summary, rejected = import_path(path, existing_only=True)
    assert summary == ImportSummary(rows=3, created=1, rejected=2)
    assert rejected == [
        "Line 3: user u2 does not exist",
        "Line 4: course CS-2 does not exist (slug cs-2)",
    ]
    assert (get_user_model().objects.count(), Course.objects.count()) == (users, courses)


SIMILAR_NAMES = ["anna", "Anna", "José", "Jose", "josé"]


@pytest.mark.parametrize("existing", ["ANNA", "Jose"])
def test_students_with_similar_names_are_not_mixed_up(
    db: None, write_file: WriteFile, existing: str
) -> None:
    """MariaDB's comparison ignores case and accents."""
    get_user_model().objects.create_user(existing)
    path = write_file(CANVAS_HEADER, *(f"C,{name},student,,active" for name in SIMILAR_NAMES))
    summary, rejected = import_path(path)
    assert summary.created + summary.rejected == len(SIMILAR_NAMES)
    enrolled = {username for _, username in statuses()}
    assert enrolled <= set(SIMILAR_NAMES)
    if connection.vendor == "mysql":
        assert len(enrolled) == {"ANNA": 1, "Jose": 2}[existing]
        assert all("differs only in case or accents from an existing" in line for line in rejected)
    else:
        assert enrolled == set(SIMILAR_NAMES)
    assert drift_by_title() == {}
    assert import_path(path)[0].unchanged == len(enrolled)


def test_courses_with_similar_slugs_are_not_mixed_up(
    make_course: MakeCourse, write_file: WriteFile
) -> None:
    make_course(title="Capital", slug="CS-1")
    make_course(title="Accent", slug="é-1")
    path = write_file(CANVAS_HEADER, "cs-1,u1,student,,active", "e-1,u1,student,,active")
    summary, rejected = import_path(path)
    if connection.vendor == "mysql":
        assert rejected == [
            "Line 3: course e-1 differs only in accents from the course “Accent” (slug é-1)"
        ]
        assert (summary.created, summary.courses_created) == (1, 0)
        assert counts_by_title() == {"Capital": 1, "Accent": 0}
    else:
        assert counts_by_title()["Accent"] == 0


def test_course_with_more_students_than_a_chunk(db: None, write_file: WriteFile) -> None:
    number = CHUNK_SIZE + 500
    lines = [f"AAA,2013J,{n},0,{'' if n % 2 else n % 9}" for n in range(number)]
    path = write_file(OPEN_UNIVERSITY_HEADER, *lines)
    summary, _ = import_path(path)
    assert (summary.created, summary.courses_created) == (number, 1)
    assert (counts_by_title(), drift_by_title()) == ({"AAA-2013J": number // 2}, {})
    assert import_path(path)[0].unchanged == number


@pytest.mark.django_db(transaction=True)
def test_next_import_finishes_an_interrupted_one(write_file: WriteFile) -> None:
    lines = [f"{'ABC'[n % 3]},u{n},student,,active" for n in range(3 * CHUNK_SIZE + 3)]
    path = write_file(CANVAS_HEADER, *lines)
    chunks = []

    def interrupt_third_chunk(number: int) -> None:
        chunks.append(number)
        if len(chunks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_enrollment_file(path=path) as file:
        import_file(file=file, on_reject=pytest.fail, on_progress=interrupt_third_chunk)
    assert chunks == [CHUNK_SIZE, 1, CHUNK_SIZE]
    assert (counts_by_title(), drift_by_title()) == ({"A": CHUNK_SIZE + 1, "B": CHUNK_SIZE}, {})
    summary, _ = import_path(path)
    assert (summary.unchanged, summary.created) == (2 * CHUNK_SIZE + 1, CHUNK_SIZE + 2)
    assert counts_by_title() == dict.fromkeys("ABC", CHUNK_SIZE + 1)


def test_other_enrollments_are_possible_between_chunks(
    make_course: MakeCourse, student: Any, write_file: WriteFile
) -> None:
    course = make_course(slug="c")
    lines = [f"C,u{n},student,,active" for n in range(2 * CHUNK_SIZE)]
    counts = []

    def enroll_student(number: int) -> None:
        if number:
            counts.append(counts_by_title()[course.title])
            enroll(student=student, course=course)

    with open_enrollment_file(path=write_file(CANVAS_HEADER, *lines)) as file:
        import_file(file=file, on_reject=pytest.fail, on_progress=enroll_student)
    assert counts == [CHUNK_SIZE, 2 * CHUNK_SIZE + 1]


def test_large_file_has_exact_totals_and_is_not_kept_in_memory(db: None, tmp_path: Path) -> None:
    path = tmp_path / "canvas.csv"
    with path.open("wb") as file:
        expected = canvas_file.write(file, rows=20_000)
    counted = expected.pop("counted")
    rejected = Counter()
    with open_enrollment_file(path=path) as opened:
        tracemalloc.start()
        try:
            summary = import_file(
                file=opened, on_reject=lambda row: rejected.update([row.line_number])
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert {name: getattr(summary, name) for name in expected} == expected
    assert len(rejected) == rejected.total() == expected["rejected"]
    assert (sum(counts_by_title().values()), drift_by_title()) == (counted, {})
    # The rows alone would need three times as much.
    assert peak < 5 * 2**20


@pytest.mark.django_db(transaction=True)
def test_concurrent_imports_and_services_keep_counts_correct(
    make_course: MakeCourse, make_students: MakeStudents, write_file: WriteFile
) -> None:
    course = make_course(title="AAA-2013J", slug="aaa-2013j")
    lines = [
        f"{letter}AA,2013J,{n},0,{'' if n % 3 else 9}" for letter in "ABCD" for n in range(300)
    ]
    path = write_file(OPEN_UNIVERSITY_HEADER, *lines)
    calls: list[Any] = [(import_path, path)] * 3
    calls += [(enroll_and_unenroll, student.pk, course.pk) for student in make_students(2)]
    run_in_processes(call, calls)
    assert counts_by_title() == {f"{letter}AA-2013J": 200 for letter in "ABCD"}
    assert drift_by_title() == {}
    assert import_path(path)[0].unchanged == Enrollment.objects.count() - 2 == 1200


def call(function: Callable[..., object], *arguments: Any) -> None:
    function(*arguments)


def enroll_and_unenroll(student: int, course: int) -> None:
    for _ in range(20):
        assert enroll(student=student, course=course)[1]
        assert unenroll(student=student, course=course)
