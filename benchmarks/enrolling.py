"""One student after the other: in one course by many writers, in courses of many rows."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import MySQLdb
from django.contrib.auth import get_user_model
from django.db import DatabaseError, transaction
from django.db.models import F, Model

from benchmarks.apps import computed_fields
from benchmarks.data import add_rows, add_students, bare_driver, database, student_at
from benchmarks.measuring import FLOOR, OURS, Run, Way, Work, timed_each
from benchmarks.models import (
    ComputedCourse,
    ComputedEnrollment,
    PlainCourse,
    PlainEnrollment,
    SignalCourse,
    SignalEnrollment,
    TrackedEnrollment,
    TriggerCourse,
    TriggerEnrollment,
)
from benchmarks.sizes import Size
from courses.models import Course
from enrollments import history
from enrollments.history import Origin, Source
from enrollments.models import Enrollment
from enrollments.services import enroll
from tests.support.processes import run_in_processes

Enroll = Callable[[int, int], object]  # of a student's key and a course's

MOVE_COUNTER = """
    UPDATE courses_course SET total_enrollments = total_enrollments + 1
    WHERE id = %s AND (capacity IS NULL OR capacity > total_enrollments)
"""
INSERT_ROW = """
    INSERT INTO enrollments_enrollment
        (student_id, course_id, status, enrollment_date)
    VALUES (%s, %s, 'active', %s)
"""
ADD_EVENT = """
    INSERT INTO enrollments_enrollmentevent
        (student_id, course_id, status, enrollment_date, action, created_at, source, actor)
    VALUES (%s, %s, 'active', %s, 'enrolled', %s, 'page', %s)
"""


def by_driver(stack: ExitStack) -> Enroll:
    return by_driver_with(stack.enter_context(bare_driver()), stack)


def by_driver_without_history(stack: ExitStack) -> Enroll:
    return by_driver_with(stack.enter_context(bare_driver()), stack, history=False)


def by_driver_with(driver: Any, stack: ExitStack, *, history: bool = True) -> Enroll:
    cursor = stack.enter_context(driver.cursor())

    def enroll(student: int, course: int) -> None:
        now = datetime.now(UTC).replace(tzinfo=None)
        cursor.execute(MOVE_COUNTER, (course,))
        cursor.execute(INSERT_ROW, (student, course, now))
        if history:
            cursor.execute(ADD_EVENT, (student, course, now, now, f"student{student}"))
        driver.commit()

    return enroll


def by_driver_as_django(stack: ExitStack) -> Enroll:
    driver = stack.enter_context(bare_driver())
    begun = by_driver_with(driver, stack)

    def enroll(student: int, course: int) -> None:
        driver.autocommit(False)
        begun(student, course)
        driver.autocommit(True)

    return enroll


def by_service(stack: ExitStack) -> Enroll:
    return lambda student, course: enroll(
        student=student, course=course, origin=Origin(Source.WEBSITE, f"student{student}")
    )


def by_service_without_history(stack: ExitStack) -> Enroll:
    stack.enter_context(no_history())
    return by_service(stack)


@contextmanager
def no_history() -> Iterator[None]:
    """What the services would be without it."""
    with patch.object(history, "record_events", lambda events: None):
        yield


def row_first(stack: ExitStack) -> Enroll:
    @transaction.atomic
    def enroll(student: int, course: int) -> None:
        PlainEnrollment.objects.create(student_id=student, course_id=course)
        PlainCourse.objects.filter(pk=course).update(total_enrollments=F("total_enrollments") + 1)

    return enroll


def with_simple_history(stack: ExitStack) -> Enroll:
    @transaction.atomic
    def enroll(student: int, course: int) -> None:
        # In our order, so that what is measured is the history and no deadlocks.
        PlainCourse.objects.filter(pk=course).update(total_enrollments=F("total_enrollments") + 1)
        row = TrackedEnrollment(student_id=student, course_id=course)
        row._change_reason = "page"
        row._history_user = student_named(student)
        row.save(force_insert=True)

    return enroll


def counting_signal(stack: ExitStack) -> Enroll:
    @transaction.atomic
    def enroll(student: int, course: int) -> None:
        SignalEnrollment.objects.create(student_id=student, course_id=course)

    return enroll


def lock_first(stack: ExitStack) -> Enroll:
    @transaction.atomic
    def enroll(student: int, course_key: int) -> None:
        course = PlainCourse.objects.select_for_update().get(pk=course_key)
        PlainEnrollment.objects.create(student_id=student, course=course)
        course.total_enrollments += 1
        course.save()

    return enroll


def computed_field(stack: ExitStack) -> Enroll:
    stack.enter_context(computed_fields())

    @transaction.atomic
    def enroll(student: int, course: int) -> None:
        ComputedEnrollment.objects.create(student_id=student, course_id=course)

    return enroll


def trigger(stack: ExitStack) -> Enroll:
    return lambda student, course: TriggerEnrollment.objects.create(
        student_id=student, course_id=course
    )


@dataclass(frozen=True)
class Approach:
    name: str
    prepared: Callable[[ExitStack], Enroll]
    course: type[Model]
    row: type[Model]


DRIVER = Approach(f"{FLOOR}, bare driver", by_driver, Course, Enrollment)
SERVICE = Approach(f"{OURS}, enroll()", by_service, Course, Enrollment)
SIGNAL = Approach("signal with COUNT, save", counting_signal, SignalCourse, SignalEnrollment)
RIVALS = [
    DRIVER,
    Approach("bare driver, no history", by_driver_without_history, Course, Enrollment),
    Approach(
        "bare driver, autocommit switched as Django does", by_driver_as_django, Course, Enrollment
    ),
    SERVICE,
    Approach("enroll() without its history", by_service_without_history, Course, Enrollment),
    Approach(
        "F(), then row with django-simple-history",
        with_simple_history,
        PlainCourse,
        TrackedEnrollment,
    ),
    Approach("row first, then F()", row_first, PlainCourse, PlainEnrollment),
    SIGNAL,
    Approach("select_for_update, row, save", lock_first, PlainCourse, PlainEnrollment),
    Approach("django-computedfields", computed_field, ComputedCourse, ComputedEnrollment),
    Approach("database trigger", trigger, TriggerCourse, TriggerEnrollment),
]


@cache
def student_named(key: int) -> Any:
    """A user as a request has it, not read again for what is measured."""
    return get_user_model()(pk=key)


_numbers = itertools.count(1)


def new_course(model: type[Model]) -> int:
    number = next(_numbers)
    return model.objects.create(title=f"Course {number}", slug=f"new-{number}").pk


def writers(size: Size) -> Iterator[list[Work]]:
    with database("enrolling"):
        add_students(max(number * each for number, each in size.writers.items()))
        for rival in RIVALS:
            # Processes are forked from one that has done it before.
            enrol_each(rival, new_course(rival.course), [1])
        yield [
            Work(
                f"writers {number}",
                f"enroll, one course, {number} writer{'s' if number > 1 else ''}",
                [Way(rival.name, partial(race, rival, number, each)) for rival in RIVALS],
            )
            for number, each in size.writers.items()
        ]


def race(rival: Approach, number: int, each: int) -> Run:
    """So many processes enroll so many students each in one new course."""
    course = new_course(rival.course)
    parts = [range(1 + n * each, 1 + (n + 1) * each) for n in range(number)]
    results = run_in_processes(enrol_each, [(rival, course, part) for part in parts])
    latencies = [latency for *_, some in results for latency in some]
    counted = rival.row.objects.filter(course_id=course, status="active").count()
    stored = rival.course.objects.get(pk=course).total_enrollments
    return Run(
        seconds=max(end for _, end, _ in results) - min(start for start, _, _ in results),
        done=len(latencies),
        failed=number * each - len(latencies),
        drift=stored - counted,
        latencies=latencies,
    )


def enrol_each(rival: Approach, course: int, students: Any) -> tuple[float, float, list[float]]:
    """Return when it began and ended, and the seconds of each that succeeded."""
    latencies = []
    with ExitStack() as stack:
        enroll = rival.prepared(stack)
        began = time.perf_counter()  # the same clock in all processes
        for student in students:
            start = time.perf_counter()
            try:
                enroll(student, course)
            except (DatabaseError, MySQLdb.Error):
                continue
            latencies.append(time.perf_counter() - start)
        return began, time.perf_counter(), latencies


def growth(size: Size) -> Iterator[list[Work]]:
    rivals = [DRIVER, SERVICE, SIGNAL]
    with database("growing"), ExitStack() as stack:
        # More than the courses have, so that there is somebody to enroll.
        students = max(size.growth) * 21 // 20 + 1_000
        add_students(students)
        works = []
        for rows in size.growth:
            ways = []
            for rival in rivals:
                course = new_course(rival.course)
                add_rows(rival.row, courses=f"SELECT {course} AS id", most=rows, students=students)
                others = map(partial(student_at, course, students), itertools.count(rows + 1))
                calls = size.growth_calls if rival is not SIGNAL else size.growth_calls // 5
                enroll = rival.prepared(stack)
                ways.append(Way(rival.name, partial(_some, enroll, others, course, calls)))
            works.append(Work(f"growth {rows}", f"enroll, course of {rows:,} rows", ways))
        yield works


def _some(enroll: Enroll, students: Iterator[int], course: int, calls: int) -> Run:
    return timed_each(
        partial(enroll, student, course) for student in itertools.islice(students, calls)
    )
