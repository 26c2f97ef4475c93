import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.db.models import CheckConstraint, Q
from django.utils import timezone

from benchmarks import canvas_file
from courses.models import Course
from enrollments.exchange.base import make_slug
from enrollments.exchange.importer import ImportSummary, import_file
from enrollments.exchange.reader import open_enrollment_file
from enrollments.models import Enrollment, SelfRegistration
from enrollments.rows import CHUNK_SIZE
from enrollments.services import enroll, enroll_many, erase_student, unenroll
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
from tests.support.threads import ConcurrentThread

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
            "Line 3: course e-1 needs the slug e-1, but the course “Accent” has the slug é-1: "
            "change that slug in the admin"
        ]
        assert (summary.created, summary.courses_created) == (1, 0)
        assert counts_by_title() == {"Capital": 1, "Accent": 0}
    else:
        assert counts_by_title()["Accent"] == 0


# Each pair has the same slug if the digest has eight digits.
CHINESE_IDS = ("课程一四四七三六", "课程一九〇〇八九")
CHINESE_SLUG = "course-cf37881f"
PUNCTUATION_IDS = ("phys!^::`", "phys!&^{'")


def courses_of_students() -> dict[str, str]:
    """Return the ID of each student's course."""
    return dict(Enrollment.objects.values_list("student__username", "course__code"))


@pytest.mark.parametrize("ids", [CHINESE_IDS, PUNCTUATION_IDS, ("phys 1", "phys-1-032073de")])
def test_different_ids_are_different_courses(
    db: None, write_file: WriteFile, ids: tuple[str, str]
) -> None:
    path = write_file(CANVAS_HEADER, *(f"{each},u1,student,,active" for each in ids))
    summary = ImportSummary(rows=2, created=2, courses_created=2, students_created=1)
    assert import_path(path, dry_run=True) == (summary, [])
    assert import_path(path) == (summary, [])
    assert counts_by_title() == dict.fromkeys(ids, 1)
    assert import_path(path)[0].unchanged == 2


def test_ids_that_differ_in_case_are_one_course(db: None, write_file: WriteFile) -> None:
    lines = ["Phys 1,u1,student,,active", "PHYS 1,u2,student,,active", "É,u1,student,,active"]
    import_path(write_file(CANVAS_HEADER, *lines))
    lines = ["phys 1,u3,student,,active", "é,u2,student,,active", "E,u3,student,,active"]
    assert import_path(write_file(CANVAS_HEADER, *lines))[0].courses_created == 1
    assert counts_by_title() == {"Phys 1": 3, "É": 2, "E": 1}


@pytest.mark.parametrize("dry_run", [True, False])
def test_course_with_a_short_digest_belongs_to_the_first_id(
    make_course: MakeCourse, write_file: WriteFile, dry_run: bool
) -> None:
    """Staff may have edited the title of the course since a former version imported it."""
    make_course(title="Edited", slug=CHINESE_SLUG)
    path = write_file(CANVAS_HEADER, *(f"{each},u{each},student,,active" for each in CHINESE_IDS))
    summary, rejected = import_path(path, dry_run=dry_run)
    assert (summary.courses_created, summary.created, rejected) == (1, 2, [])
    if not dry_run:
        assert counts_by_title() == {"Edited": 1, max(CHINESE_IDS): 1}
        assert courses_of_students() == {f"u{each}": each for each in CHINESE_IDS}
        assert import_path(path)[0].unchanged == 2


def test_course_is_found_by_its_id_or_its_slug(
    make_course: MakeCourse, write_file: WriteFile
) -> None:
    make_course(title="ID", slug="databases", code="CS-101")
    make_course(title="Slug", slug="cs-102")
    make_course(title="Short digest", slug="phys-1-032073de")
    ids = ["cs-101", "CS-102", "phys 1"]
    path = write_file(CANVAS_HEADER, *(f"{each},u1,student,,active" for each in ids))
    assert import_path(path, existing_only=True)[0].rejected == 3
    get_user_model().objects.create_user("u1")
    assert import_path(path, existing_only=True)[0].created == 3
    assert dict(Course.objects.values_list("title", "code")) == {
        "ID": "CS-101",
        "Slug": "CS-102",
        "Short digest": "phys 1",
    }


def test_slug_as_id_does_not_become_the_id(make_course: MakeCourse, write_file: WriteFile) -> None:
    """Exports write the slug of a course without an ID."""
    make_course(title="Edited", slug="phys-1-032073de")
    import_path(write_file(CANVAS_HEADER, "phys-1-032073de,u1,student,,active"))
    import_path(write_file(CANVAS_HEADER, "phys 1,u2,student,,active"))
    assert counts_by_title() == {"Edited": 2}
    assert Course.objects.get().code == "phys 1"


def test_slug_of_a_course_with_another_id_is_rejected(
    make_course: MakeCourse, write_file: WriteFile
) -> None:
    make_course(slug="databases", code="CS-101")
    _, rejected = import_path(write_file(CANVAS_HEADER, "Databases,u1,student,,active"))
    assert rejected == [
        "Line 2: course Databases needs the slug databases, but course CS-101 has the slug "
        "databases: change that slug in the admin"
    ]
    assert not statuses()


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
class TestConcurrentChanges:
    """Another transaction commits after the import has read what it changes."""

    @pytest.fixture
    def path(self, write_file: WriteFile) -> Path:
        return write_file(CANVAS_HEADER, f"{CHINESE_IDS[0]},u1,student,,active")

    @pytest.fixture
    def imported(self, path: Path) -> Course:
        user = get_user_model().objects.create_user("u1")
        import_path(path)
        erase_student(student=user)
        return Course.objects.get()

    def import_while(
        self, path: Path, change: Callable[[], object], **options: Any
    ) -> tuple[ImportSummary, list[str]]:
        """Import while an uncommitted change locks the course."""
        importing = ConcurrentThread(lambda: import_path(path, **options))
        with transaction.atomic():
            change()
            importing.start_and_wait_until_blocked()
        return importing.finish()

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_deleted_user_is_created_again(
        self, path: Path, imported: Course, dry_run: bool
    ) -> None:
        def change() -> None:
            Course.objects.select_for_update().get()
            get_user_model().objects.filter(username="u1").delete()

        summary, rejected = self.import_while(path, change, dry_run=dry_run)
        assert (summary.created, summary.students_created, rejected) == (1, 1, [])
        assert get_user_model().objects.count() == Enrollment.objects.count() == 1 - dry_run

    def test_deleted_user_is_rejected_if_none_may_be_created(
        self, path: Path, imported: Course
    ) -> None:
        def change() -> None:
            Course.objects.select_for_update().get()
            get_user_model().objects.filter(username="u1").delete()

        _, rejected = self.import_while(path, change, existing_only=True)
        assert rejected == ["Line 2: user u1 does not exist"]

    def test_deleted_course_is_created_again(self, path: Path, imported: Course) -> None:
        summary, rejected = self.import_while(path, lambda: imported.delete())
        assert (summary.created, summary.courses_created, rejected) == (1, 1, [])
        assert counts_by_title() == {CHINESE_IDS[0]: 1}

    @pytest.mark.parametrize("code", CHINESE_IDS)
    def test_course_that_is_created_by_others_is_used_if_it_has_the_id(
        self, db: None, path: Path, code: str
    ) -> None:
        slug = make_slug(CHINESE_IDS[0])
        create = lambda: Course.objects.create(title="Theirs", slug=slug, code=code)  # noqa: E731
        summary, rejected = self.import_while(path, create)
        assert summary.courses_created == 0
        assert counts_by_title() == {"Theirs": 1 - len(rejected)}
        assert [f"but course {CHINESE_IDS[1]} has the slug" in line for line in rejected] == (
            [] if code == CHINESE_IDS[0] else [True]
        )

    def test_course_that_got_another_id_is_not_used(
        self, make_course: MakeCourse, path: Path
    ) -> None:
        make_course(title="Theirs", slug=CHINESE_SLUG)
        summary, _ = self.import_while(path, lambda: Course.objects.update(code=CHINESE_IDS[1]))
        assert summary.courses_created == 1
        assert counts_by_title() == {"Theirs": 0, CHINESE_IDS[0]: 1}


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_rows_that_fail_at_every_attempt_are_rejected(write_file: WriteFile) -> None:
    constraint = CheckConstraint(condition=~Q(status="active"), name="nobody_is_active")
    with connection.schema_editor() as editor:
        editor.add_constraint(Enrollment, constraint)
    try:
        path = write_file(CANVAS_HEADER, "A,u1,student,,active", "B,u1,student,,completed")
        summary, (rejected,) = import_path(path)
    finally:
        with connection.schema_editor() as editor:
            editor.remove_constraint(Enrollment, constraint)
    assert summary == ImportSummary(
        rows=2, created=1, rejected=1, courses_created=1, students_created=1
    )
    assert rejected.startswith("Line 2: not imported after 5 attempts, the last error was: ")


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


@pytest.fixture
def sign_up(db: None) -> Callable[[str], Any]:
    def save(username: str) -> Any:
        with transaction.atomic():
            user = get_user_model().objects.create_user(username)
            SelfRegistration.objects.create(user=user, created_at=timezone.now())
        return user

    return save


@pytest.mark.parametrize("existing_only", [True, False])
def test_self_registered_students_are_rejected_until_confirmed(
    sign_up: Callable[[str], Any],
    make_course: MakeCourse,
    write_file: WriteFile,
    existing_only: bool,
) -> None:
    course = make_course(title="Law", slug="law")
    squatter = sign_up("s1")
    enroll(student=squatter, course=course)
    get_user_model().objects.create_user("s2")
    lines = ["law,s1,student,,deleted", "law,s2,student,,active"]
    path = write_file(CANVAS_HEADER, *lines)
    summary, rejected = import_path(path, existing_only=existing_only)
    assert summary == ImportSummary(rows=2, created=1, rejected=1)
    assert rejected == [
        "Line 2: user s1 signed up and may be somebody else: confirm or delete the account in "
        "the admin, or use --allow-self-registered"
    ]
    assert statuses() == {("law", "s1"): "active", ("law", "s2"): "active"}
    squatter.self_registration.delete()
    assert import_path(path) == (ImportSummary(rows=2, withdrawn=1, unchanged=1), [])


def test_self_registered_students_can_be_allowed(
    sign_up: Callable[[str], Any], write_file: WriteFile
) -> None:
    sign_up("s1")
    path = write_file(CANVAS_HEADER, "law,s1,student,,active")
    summary = ImportSummary(rows=1, created=1, courses_created=1)
    assert import_path(path, allow_self_registered=True) == (summary, [])


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_a_name_that_is_taken_by_sign_up_during_the_import_is_rejected(
    sign_up: Callable[[str], Any], write_file: WriteFile
) -> None:
    path = write_file(CANVAS_HEADER, "law,s1,student,,active")

    def sign_up_before_insert(execute: Any, sql: str, *arguments: Any) -> Any:
        if (
            f"INTO `{get_user_model()._meta.db_table}`" in sql
            and not get_user_model().objects.exists()
        ):
            ConcurrentThread(lambda: sign_up("s1")).start_and_finish()
        return execute(sql, *arguments)

    with connection.execute_wrapper(sign_up_before_insert):
        summary, (rejected,) = import_path(path)
    assert "user s1 signed up" in rejected
    assert summary == ImportSummary(rows=1, courses_created=1, rejected=1)
    assert not Enrollment.objects.exists()
