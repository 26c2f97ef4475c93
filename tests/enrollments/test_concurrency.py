"""Concurrent writers: processes under load, and races forced between two connections."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from operator import call
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, transaction
from django.db.models import F
from django.forms import modelform_factory

from courses.counts.drift import find_drift, rebuild
from courses.models import Course
from enrollments.models import Enrollment
from enrollments.rows import raw_queryset
from enrollments.services import (
    BulkResult,
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
from tests.support.counts import drift_by_title
from tests.support.enrollments import MakeCourse, MakeStudents
from tests.support.history import history_mismatches
from tests.support.processes import run_in_processes
from tests.support.threads import ConcurrentThread, deadlocks

pytestmark = pytest.mark.django_db(transaction=True)

# SQLite allows one writer at a time, so more processes would test nothing more.
NUMBER_OF_WRITERS, STUDENTS_PER_WRITER = (16, 100) if connection.vendor == "mysql" else (4, 25)
NUMBER_OF_STUDENTS = NUMBER_OF_WRITERS * STUDENTS_PER_WRITER
CALLS_PER_WRITER = STUDENTS_PER_WRITER // 4


@pytest.fixture(autouse=True)
def check_counts_history_and_deadlocks_afterwards() -> Iterator[None]:
    deadlocks_at_start = deadlocks() if connection.vendor == "mysql" else 0
    yield
    if connection.vendor == "mysql":
        assert deadlocks() == deadlocks_at_start
    assert drift_by_title() == {}
    assert history_mismatches() == set()


class TestManyWriters:
    def test_all_students_of_one_course_are_counted(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        parts = split_between_writers(make_students(NUMBER_OF_STUDENTS))
        outcomes = run_in_processes(enroll_each, [(course.pk, part) for part in parts])
        assert sum(outcomes, Counter()) == {"enrolled": NUMBER_OF_STUDENTS}
        course.refresh_from_db()
        assert course.total_enrollments == Enrollment.objects.count() == NUMBER_OF_STUDENTS

    def test_a_course_is_never_oversold(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        capacity = NUMBER_OF_STUDENTS * 5 // 16
        course = make_course(capacity=capacity)
        parts = split_between_writers(make_students(NUMBER_OF_STUDENTS))
        outcomes = run_in_processes(enroll_each, [(course.pk, part) for part in parts])
        assert sum(outcomes, Counter()) == {
            "enrolled": capacity,
            "full": NUMBER_OF_STUDENTS - capacity,
        }
        course.refresh_from_db()
        assert course.total_enrollments == Enrollment.objects.counted().count() == capacity

    def test_writers_of_the_same_students_enroll_each_of_them_once(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        student_ids = [student.pk for student in make_students(CALLS_PER_WRITER)]
        outcomes = run_in_processes(enroll_each, [(course.pk, student_ids)] * NUMBER_OF_WRITERS)
        assert sum(outcomes, Counter()) == {
            "enrolled": CALLS_PER_WRITER,
            "unchanged": CALLS_PER_WRITER * (NUMBER_OF_WRITERS - 1),
        }

    def test_the_returned_changes_add_up_to_the_number_of_counted_rows(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        course_ids = [make_course().pk for _ in range(3)]
        student_ids = [student.pk for student in make_students(5)]
        net_changes = run_in_processes(
            enroll_and_unenroll_at_random,
            [(course_ids, student_ids, seed) for seed in range(NUMBER_OF_WRITERS)],
        )
        assert sum(net_changes) == Enrollment.objects.counted().count()

    def test_saving_courses_does_not_overwrite_counters(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        number_of_students = NUMBER_OF_WRITERS * CALLS_PER_WRITER
        parts = split_between_writers(make_students(number_of_students))
        run_in_processes(
            call,
            [
                *[(enroll_each, course.pk, part) for part in parts],
                (save_in_every_way, course.pk, CALLS_PER_WRITER),
            ],
        )
        course.refresh_from_db()
        assert course.total_enrollments == Enrollment.objects.count() == number_of_students

    @pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
    def test_checks_and_rebuilds_find_no_drift_while_all_services_run(
        self,
        make_course: MakeCourse,
        make_students: MakeStudents,
        monkeypatch: pytest.MonkeyPatch,
        isolation: str,
    ) -> None:
        course_ids = [make_course(capacity=capacity).pk for capacity in (None, None, 4)]
        student_ids = [student.pk for student in make_students(8)]
        if connection.vendor == "mysql":
            monkeypatch.setitem(connection.settings_dict["OPTIONS"], "isolation_level", isolation)
        *_, drift_found, drift_corrected = run_in_processes(
            call,
            [
                *[(call_services_at_random, course_ids, student_ids, seed) for seed in range(6)],
                (find_drift_repeatedly, 30),
                (rebuild_repeatedly, 30),
            ],
        )
        connection.close()
        assert (drift_found, drift_corrected) == ([], [])
        assert not Course.objects.filter(total_enrollments__gt=F("capacity")).exists()


# The work of the processes. Pickle finds these functions by name, so they are no closures.


def split_between_writers(students: list[User]) -> list[list[int]]:
    student_ids = [student.pk for student in students]
    return [student_ids[number::NUMBER_OF_WRITERS] for number in range(NUMBER_OF_WRITERS)]


def enroll_each(course_id: int, student_ids: list[int]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for student_id in student_ids:
        try:
            _, changed = enroll(student=student_id, course=course_id)
            outcomes["enrolled" if changed else "unchanged"] += 1
        except CourseFull:
            outcomes["full"] += 1
    return outcomes


def enroll_and_unenroll_at_random(course_ids: list[int], student_ids: list[int], seed: int) -> int:
    """Return enrollments minus withdrawals, as the services reported them."""
    rng = random.Random(seed)
    net_change = 0
    for _ in range(CALLS_PER_WRITER):
        student_id, course_id = rng.choice(student_ids), rng.choice(course_ids)
        if rng.random() < 0.5:
            net_change += enroll(student=student_id, course=course_id)[1]
        else:
            net_change -= unenroll(student=student_id, course=course_id)
    return net_change


def call_services_at_random(course_ids: list[int], student_ids: list[int], seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(CALLS_PER_WRITER * 2):
        student_id = rng.choice(student_ids)
        course_id, other_course_id = rng.sample(course_ids, k=2)
        arguments = {"student": student_id, "course": course_id}
        bulk_arguments = {"course": course_id, "students": rng.sample(student_ids, k=4)}
        status = rng.choice(Enrollment.Status.values)
        calls: list[tuple[Callable[..., object], dict[str, Any]]] = [
            (enroll, arguments),
            (unenroll, arguments),
            (set_status, arguments | {"status": status}),
            (
                transfer,
                {"student": student_id, "source": course_id, "target": other_course_id},
            ),
            (enroll_many, bulk_arguments),
            (unenroll_many, bulk_arguments),
            (erase_student, {"student": student_id}),
        ]
        service, service_arguments = rng.choice(calls)
        try:
            service(**service_arguments)
        except (CourseFull, NotEnrolled):
            continue


def find_drift_repeatedly(times: int) -> list[Any]:
    return [drifted_course for _ in range(times) for drifted_course in find_drift()]


def rebuild_repeatedly(times: int) -> list[Any]:
    return [drifted_course for _ in range(times) for drifted_course in rebuild()]


def save_in_every_way(course_id: int, times: int) -> None:
    """Save an instance whose counter becomes more and more stale."""
    stale_course = Course.objects.get(pk=course_id)
    form_class = modelform_factory(Course, fields=["title", "slug", "capacity"])
    for number in range(times):
        stale_course.title = f"Title {number}"
        stale_course.save()
        Course.objects.bulk_update([stale_course], ["title"])
        form_data = {"title": stale_course.title, "slug": stale_course.slug}
        form_class(form_data, instance=stale_course).save()
        Course.objects.update_or_create(
            slug=stale_course.slug, defaults={"title": "T", "total_enrollments": 0}
        )


@pytest.mark.mariadb
class TestLockOrder:
    """Every service locks the course first, and several courses in primary-key order."""

    def test_two_enrollments_in_one_course_queue_at_the_course(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        first, second, third = make_students(3)
        thread = ConcurrentThread(lambda: enroll(student=second, course=course))
        with transaction.atomic():
            enroll(student=first, course=course)
            thread.start_and_wait_until_blocked()
            enroll(student=third, course=course)
        _, changed = thread.finish()
        assert changed is True

    @pytest.mark.parametrize(
        "reverse", [False, True], ids=["from lower to higher", "from higher to lower"]
    )
    def test_opposite_transfers_queue_at_the_lower_key(
        self, make_course: MakeCourse, make_students: MakeStudents, reverse: bool
    ) -> None:
        lower, higher = make_course(), make_course()
        source, target = (higher, lower) if reverse else (lower, higher)
        first, second = make_students(2)
        enroll(student=first, course=source)
        enroll(student=second, course=target)
        thread = ConcurrentThread(lambda: transfer(student=second, source=target, target=source))
        with transaction.atomic():
            Course.objects.select_for_update().get(pk=lower.pk)
            thread.start_and_wait_until_blocked()
            # If the thread had locked its source first, it could hold the higher key now.
            transfer(student=first, source=source, target=target)
        _, changed = thread.finish()
        assert changed is True

    @pytest.mark.parametrize("service", [enroll_many, unenroll_many])
    def test_a_bulk_service_does_not_wait_for_another_course(
        self,
        make_course: MakeCourse,
        make_students: MakeStudents,
        service: Callable[..., BulkResult],
    ) -> None:
        locked_course, course = make_course(), make_course()
        students = make_students(1_500)
        for each_course in (locked_course, course):
            enroll_many(course=each_course, students=students[:1_000])
        thread = ConcurrentThread(lambda: service(course=course, students=students))
        with transaction.atomic():
            enroll_many(course=locked_course, students=students)
            unenroll_many(course=locked_course, students=students[:500])
            # finish() fails if the thread waits until this transaction ends.
            result = thread.start_and_finish()
        assert result.changed == (500 if service is enroll_many else 1_000)


@pytest.mark.mariadb
class TestEraseStudent:
    """erase_student() concurrently with services that write the same student's rows."""

    def test_a_row_transferred_to_another_course_is_erased_there(
        self, make_course: MakeCourse, student: User
    ) -> None:
        source, target = make_course(), make_course()
        enroll(student=student, course=source)
        thread = ConcurrentThread(lambda: erase_student(student=student))
        with transaction.atomic():
            transfer(student=student, source=source, target=target)
            thread.start_and_wait_until_blocked()
        assert thread.finish() == 2
        assert not Enrollment.objects.exists()

    def test_an_uncommitted_enrollment_in_another_course_survives_with_its_event(
        self, make_course: MakeCourse, student: User
    ) -> None:
        old_course, new_course = make_course(), make_course()
        enroll(student=student, course=old_course)
        thread = ConcurrentThread(lambda: erase_student(student=student))
        with transaction.atomic():
            enroll(student=student, course=new_course)
            # finish() fails if the thread waits until this transaction ends.
            assert thread.start_and_finish() == 1
        assert Enrollment.objects.get().course == new_course

    def test_erasing_does_not_wait_for_events_of_other_students(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        old_course, new_course = make_course(), make_course()
        student, other_student = make_students(2)
        for _ in range(3):
            enroll(student=student, course=old_course)
            unenroll(student=student, course=old_course)
        thread = ConcurrentThread(lambda: erase_student(student=student))
        with transaction.atomic():
            enroll(student=other_student, course=new_course)
            # finish() fails if the thread waits until this transaction ends.
            assert thread.start_and_finish() == 1

    def test_a_thousand_courses_are_locked_in_the_order_of_their_keys(self, student: User) -> None:
        Course.objects.bulk_create(Course(title="Many", slug=f"many-{n}") for n in range(6_500))
        pks = list(Course.objects.order_by("pk").values_list("pk", flat=True))[::5]
        raw_queryset().bulk_create(Enrollment(student=student, course_id=pk) for pk in pks)
        Course.objects.filter(pk__in=pks).update(total_enrollments=1)
        thread = ConcurrentThread(lambda: erase_student(student=student))
        with transaction.atomic():
            Course.objects.select_for_update().get(pk=pks[1_000])
            thread.start_and_wait_until_blocked()
            free = Course.objects.select_for_update(skip_locked=True).in_bulk()
            assert [pk for pk in pks if pk not in free] == pks[:1_000]
        assert thread.finish() == 1_300

    @pytest.mark.parametrize("position", range(3, 8), ids="before statement {}".format)
    def test_an_enrollment_between_two_statements_keeps_row_and_event_together(
        self, make_course: MakeCourse, student: User, position: int
    ) -> None:
        old_course, new_course = make_course(), make_course()
        enroll(student=student, course=old_course)
        thread = ConcurrentThread(lambda: enroll(student=student, course=new_course))
        statement_numbers = count()

        def enroll_before_statement(execute: Any, *arguments: Any) -> Any:
            if next(statement_numbers) == position:
                thread.start_and_finish()
            return execute(*arguments)

        with connection.execute_wrapper(enroll_before_statement):
            erase_student(student=student)
        _, changed = thread.finish()
        assert changed is True


@pytest.mark.mariadb
class TestRowBeforeCounter:
    """The reason for the lock order: "insert, then update the counter" deadlocks.

    The INSERT takes a shared lock on the course through the foreign key, and the UPDATE needs an
    exclusive one.
    """

    @pytest.fixture(autouse=True)
    def check_counts_history_and_deadlocks_afterwards(self) -> Iterator[None]:
        """Replace the module's fixture: here a deadlock is expected."""
        deadlocks_at_start = deadlocks()
        yield
        assert deadlocks() == deadlocks_at_start + 1

    def test_one_of_two_concurrent_writers_is_the_victim(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        first, second = make_students(2)

        def insert_row(student: User) -> None:
            Enrollment(student=student, course=course).save_base(force_insert=True)

        def increment_counter() -> None:
            Course.objects.filter(pk=course.pk).update(total_enrollments=F("total_enrollments") + 1)

        def insert_row_then_increment_counter() -> None:
            with transaction.atomic():
                insert_row(second)
                increment_counter()

        thread = ConcurrentThread(insert_row_then_increment_counter)
        with transaction.atomic():
            insert_row(first)
            thread.start_and_wait_until_blocked()
            fails_here = raises_database_error(increment_counter)
        fails_in_thread = raises_database_error(thread.finish)
        assert fails_here != fails_in_thread


def raises_database_error(function: Callable[[], Any]) -> bool:
    try:
        with transaction.atomic():
            function()
    except DatabaseError:
        return True
    return False
