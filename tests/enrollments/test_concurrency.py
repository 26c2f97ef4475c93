"""Many processes at once, on connections of their own, where they collide most."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import F
from django.forms import modelform_factory

from courses.counts.drift import find_drift, rebuild
from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import (
    CourseFull,
    NotEnrolled,
    enroll,
    enroll_many,
    erase_student,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from tests.conftest import drifts
from tests.support.history import history_mismatches
from tests.support.processes import run_in_processes
from tests.support.threads import ConcurrentThread, deadlocks

Make = Callable[..., Any]
pytestmark = pytest.mark.django_db(transaction=True)

# SQLite has one writer at a time, so that more processes show nothing more.
WRITERS, EACH = (16, 100) if connection.vendor == "mysql" else (4, 25)
SOME = EACH // 4


@pytest.fixture(autouse=True)
def no_deadlocks() -> Any:
    before = deadlocks() if connection.vendor == "mysql" else 0
    yield
    if connection.vendor == "mysql":
        assert deadlocks() == before
    assert (drifts(), history_mismatches()) == ({}, set())


def enrol_each(course: int, students: list[int]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for student in students:
        try:
            outcomes["moved" if enroll(student=student, course=course)[1] else "was in"] += 1
        except CourseFull:
            outcomes["full"] += 1
    return outcomes


def divided(students: list[Any]) -> list[list[int]]:
    return [[s.pk for s in students[n::WRITERS]] for n in range(WRITERS)]


def test_writers_of_one_course_all_get_in(course: Course, make_students: Make) -> None:
    students = make_students(WRITERS * EACH)
    results = run_in_processes(enrol_each, [(course.pk, part) for part in divided(students)])
    assert sum(results, Counter()) == {"moved": WRITERS * EACH}
    course.refresh_from_db()
    assert course.total_enrollments == Enrollment.objects.count() == WRITERS * EACH


def test_a_course_can_not_be_oversold(make_course: Make, make_students: Make) -> None:
    everybody = WRITERS * EACH
    seats = everybody * 5 // 16
    course = make_course(capacity=seats)
    students = make_students(everybody)
    results = run_in_processes(enrol_each, [(course.pk, part) for part in divided(students)])
    assert sum(results, Counter()) == {"moved": seats, "full": everybody - seats}
    course.refresh_from_db()
    assert course.total_enrollments == Enrollment.objects.counted().count() == seats


def test_the_same_student_from_everywhere_is_enrolled_once(
    course: Course, make_students: Make
) -> None:
    students = [student.pk for student in make_students(SOME)]
    results = run_in_processes(enrol_each, [(course.pk, students)] * WRITERS)
    assert sum(results, Counter()) == {"moved": SOME, "was in": SOME * (WRITERS - 1)}


def come_and_go(courses: list[int], students: list[int], seed: int) -> int:
    """Enroll and withdraw single students at random; return by how much the counters moved."""
    rng = random.Random(seed)
    moved = 0
    for _ in range(SOME):
        student, course = rng.choice(students), rng.choice(courses)
        if rng.random() < 0.5:
            moved += enroll(student=student, course=course)[1]
        else:
            moved -= unenroll(student=student, course=course)
    return moved


def test_what_was_acknowledged_adds_up(make_course: Make, make_students: Make) -> None:
    courses = [make_course().pk for _ in range(3)]
    students = [student.pk for student in make_students(5)]
    moved = run_in_processes(come_and_go, [(courses, students, n) for n in range(WRITERS)])
    assert sum(moved) == Enrollment.objects.counted().count()


def anything(courses: list[int], students: list[int], seed: int) -> None:
    """Call every service at random, over few courses and students."""
    rng = random.Random(seed)
    for _ in range(SOME * 2):
        student, course = rng.choice(students), rng.choice(courses)
        other = rng.choice([key for key in courses if key != course])
        some = rng.sample(students, k=4)
        call = rng.choice(
            [
                lambda s=student, c=course: enroll(student=s, course=c),
                lambda s=student, c=course: unenroll(student=s, course=c),
                lambda s=student, c=course: set_status(
                    student=s, course=c, status=random.choice(Enrollment.Status.values)
                ),
                lambda s=student, c=course, o=other: transfer(student=s, source=c, target=o),
                lambda c=course, many=some: enroll_many(course=c, students=many),
                lambda c=course, many=some: unenroll_many(course=c, students=many),
                lambda s=student: erase_student(student=s),
            ]
        )
        try:
            call()
        except (CourseFull, NotEnrolled):
            continue


def look(times: int) -> list[Any]:
    return [found for _ in range(times) for found in find_drift()]


def correct(times: int) -> list[Any]:
    return [found for _ in range(times) for found in rebuild()]


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_looking_and_rebuilding_find_nothing_while_all_services_run(
    make_course: Make, make_students: Make, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    courses = [make_course(capacity=capacity).pk for capacity in (None, None, 4)]
    students = [student.pk for student in make_students(8)]
    if connection.vendor == "mysql":
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", isolation)
    results = run_in_processes(
        one_of,
        [
            *[(anything, courses, students, seed) for seed in range(6)],
            (look, 30),
            (correct, 30),
        ],
    )
    connection.close()
    assert results[-2:] == [[], []]
    assert Course.objects.filter(total_enrollments__gt=F("capacity")).count() == 0


def one_of(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


def edit_titles(course_key: int, times: int) -> None:
    """Write a course in every way that might carry an old counter along."""
    stale = Course.objects.get(pk=course_key)
    form_class = modelform_factory(Course, fields=["title", "slug", "capacity"])
    for number in range(times):
        stale.title = f"Title {number}"
        stale.save()
        Course.objects.bulk_update([stale], ["title"])
        form_class({"title": stale.title, "slug": stale.slug}, instance=stale).save()
        Course.objects.update_or_create(
            slug=stale.slug, defaults={"title": "T", "total_enrollments": 0}
        )


def test_saving_courses_while_students_enrol_loses_none(
    course: Course, make_students: Make
) -> None:
    parts = divided(make_students(WRITERS * SOME))
    jobs: list[tuple[Any, ...]] = [(enrol_each, course.pk, part) for part in parts]
    run_in_processes(one_of, [*jobs, (edit_titles, course.pk, SOME)])
    course.refresh_from_db()
    assert course.total_enrollments == Enrollment.objects.count() == WRITERS * SOME


# Why the course goes first ------------------------------------------------------------


@pytest.mark.mariadb
def test_two_who_enrol_at_once_queue_at_the_course(course: Course, make_students: Make) -> None:
    first, second, third = make_students(3)
    rival = ConcurrentThread(lambda: enroll(student=second, course=course))
    with transaction.atomic():
        enroll(student=first, course=course)
        rival.start_and_wait_until_blocked()
        enroll(student=third, course=course)
    assert rival.finish()[1] is True


@pytest.mark.mariadb
@pytest.mark.parametrize("reverse", [False, True])
def test_transfers_in_opposite_directions_queue_at_the_lower_key(
    make_course: Make, make_students: Make, reverse: bool
) -> None:
    lower, higher = make_course(), make_course()
    source, target = (higher, lower) if reverse else (lower, higher)
    first, second = make_students(2)
    enroll(student=first, course=source)
    enroll(student=second, course=target)
    rival = ConcurrentThread(lambda: transfer(student=second, source=target, target=source))
    with transaction.atomic():
        Course.objects.select_for_update().get(pk=lower.pk)
        rival.start_and_wait_until_blocked()
        # Were the rival waiting at its source, it could hold this one.
        transfer(student=first, source=source, target=target)
    assert rival.finish()[1] is True


@pytest.mark.mariadb
@pytest.mark.parametrize("service", [enroll_many, unenroll_many])
def test_many_students_of_one_course_hold_no_row_of_another(
    make_course: Make, make_students: Make, service: Make
) -> None:
    held, course = make_course(), make_course()
    students = make_students(1_500)
    for each in (held, course):
        enroll_many(course=each, students=students[:1_000])
    with transaction.atomic():
        enroll_many(course=held, students=students)
        unenroll_many(course=held, students=students[:500])
        # Would wait until we are done.
        result = ConcurrentThread(
            lambda: service(course=course, students=students)
        ).start_and_finish()
    assert result.changed == (500 if service is enroll_many else 1_000)


@pytest.mark.mariadb
def test_a_student_is_erased_where_they_were_moved_to_meanwhile(
    make_course: Make, student: Any
) -> None:
    source, target = make_course(), make_course()
    enroll(student=student, course=source)
    rival = ConcurrentThread(lambda: erase_student(student=student))
    with transaction.atomic():
        transfer(student=student, source=source, target=target)
        rival.start_and_wait_until_blocked()
    assert rival.finish() == 2
    assert not Enrollment.objects.exists()


@pytest.mark.mariadb
def test_who_enrols_while_they_are_erased_keeps_the_event_of_it(
    make_course: Make, student: Any
) -> None:
    left, entered = make_course(), make_course()
    enroll(student=student, course=left)
    with transaction.atomic():
        enroll(student=student, course=entered)
        # Would wait until we are done.
        assert ConcurrentThread(lambda: erase_student(student=student)).start_and_finish() == 1
    assert Enrollment.objects.get().course == entered
    assert history_mismatches() == set()


@pytest.mark.mariadb
def test_erasing_waits_for_nobody_elses_events(make_course: Make, make_students: Make) -> None:
    left, entered = make_course(), make_course()
    student, other = make_students(2)
    for _ in range(3):
        enroll(student=student, course=left)
        unenroll(student=student, course=left)
    with transaction.atomic():
        enroll(student=other, course=entered)
        # Would wait until we are done.
        assert ConcurrentThread(lambda: erase_student(student=student)).start_and_finish() == 1


@pytest.mark.mariadb
@pytest.mark.parametrize("statement", range(3, 8))
def test_who_enrols_between_any_two_steps_of_being_erased_has_rows_and_events_alike(
    make_course: Make, student: Any, statement: int
) -> None:
    left, entered = make_course(), make_course()
    enroll(student=student, course=left)
    rival = ConcurrentThread(lambda: enroll(student=student, course=entered))
    steps = count()

    def step(execute: Any, *arguments: Any) -> Any:
        if next(steps) == statement:
            rival.start_and_finish()
        return execute(*arguments)

    with connection.execute_wrapper(step):
        erase_student(student=student)
    assert rival.finish()[1] is True
    assert history_mismatches() == set()


@pytest.mark.mariadb
class TestRowFirst:
    """The way most projects do it deadlocks: the row's foreign key holds the course shared."""

    @pytest.fixture(autouse=True)
    def no_deadlocks(self) -> Any:
        before = deadlocks()
        yield
        assert deadlocks() == before + 1
        list(rebuild())

    def test_row_first_then_counter_deadlocks(self, course: Course, make_students: Make) -> None:
        first, second = make_students(2)

        def insert(student: Any) -> None:
            Enrollment(student=student, course=course).save_base(force_insert=True)

        def count_up() -> None:
            Course.objects.filter(pk=course.pk).update(total_enrollments=F("total_enrollments") + 1)

        def row_first() -> None:
            with transaction.atomic():
                insert(second)
                count_up()

        rival = ConcurrentThread(row_first)
        outcomes = []
        with transaction.atomic():
            insert(first)
            rival.start_and_wait_until_blocked()
            outcomes.append(_error_of(count_up))
        outcomes.append(_error_of(rival.finish))
        assert sorted(map(bool, outcomes)) == [False, True]


def _error_of(call: Callable[[], Any]) -> Exception | None:
    try:
        with transaction.atomic():
            call()
    except (OperationalError, IntegrityError) as error:
        return error
    return None
