"""Enroll one student after another: with many writers on one course, and in large courses."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from unittest.mock import patch

from computedfields.handlers import get_old_handler, postsave_handler
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.db import DatabaseError, transaction
from django.db.models import F, Max, Model, Q
from django.db.models.signals import post_save, pre_save
from django.utils import timezone

from benchmarks.databases import (
    bare_driver,
    course_model,
    insert_enrollments,
    insert_students,
    new_course,
    temporary_database,
)
from benchmarks.measuring import (
    FLOOR,
    PROJECT,
    Approach,
    Benchmark,
    Measurement,
    Size,
    run_rounds,
)
from benchmarks.models import (
    ComputedEnrollment,
    PlainCourse,
    PlainEnrollment,
    SignalEnrollment,
    TrackedEnrollment,
    TriggerEnrollment,
)
from courses.models import Course
from courses.transactions import is_transient
from enrollments import history
from enrollments.history import Action, Origin, Source
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.services import enroll
from tests.support.processes import run_in_processes

PLAIN_ORM = "plain ORM statements, compiled on every call"
ROW_FIRST = "row first, then F()"
SIGNAL = "signal with COUNT, save"

# Many short rounds, because the load of the machine must not look like growth.
GROWTH_ROUNDS = 5  # for each round of the other benchmarks
GROWTH_CALLS = 10  # in a round

Enroll = Callable[[int, int], object]  # enrolls a student in a course, by primary keys


@dataclass(frozen=True)
class EnrollApproach:
    """A way to enroll one student, and the model of its enrollments."""

    name: str
    prepare: Callable[[], AbstractContextManager[Enroll]]
    enrollment_model: type[Model] = Enrollment

    @property
    def course_model(self) -> type[Model]:
        return course_model(self.enrollment_model)


def measure_writers(size: Size) -> list[Benchmark]:
    """Let several processes enroll students in one course, each its own share of them."""
    with temporary_database("writers"):
        insert_students(max(writers * share for writers, share in size.writers.items()))
        for approach in ENROLL_APPROACHES:
            # Warm up: the writers are forked from this process.
            enroll_students(approach, new_course(approach.course_model), range(1, 2))
        benchmarks = [
            Benchmark(
                name := f"{writers} writer{'s' if writers > 1 else ''}",
                f"enroll, one course, {name}",
                [
                    Approach(approach.name, partial(_run_writers, approach, writers, share))
                    for approach in ENROLL_APPROACHES
                ],
            )
            for writers, share in size.writers.items()
        ]
        run_rounds(*benchmarks, rounds=size.rounds)
    return benchmarks


def _run_writers(approach: EnrollApproach, writers: int, share: int) -> Measurement:
    course_pk = new_course(approach.course_model)
    shares = [range(first, first + share) for first in range(1, writers * share + 1, share)]
    results = run_in_processes(enroll_students, [(approach, course_pk, each) for each in shares])
    latencies = [seconds for _, _, latencies in results for seconds in latencies]
    stored_count = approach.course_model.objects.get(pk=course_pk).total_enrollments
    true_count = approach.enrollment_model.objects.filter(course_id=course_pk).count()
    return Measurement(
        seconds=max(end for _, end, _ in results) - min(start for start, _, _ in results),
        items=len(latencies),
        failed=writers * share - len(latencies),
        drift=stored_count - true_count,
        latencies=latencies,
    )


def enroll_students(
    approach: EnrollApproach, course_pk: int, students: range
) -> tuple[float, float, list[float]]:
    """Return the start, the end, and the seconds of each call that succeeded."""
    latencies = []
    with approach.prepare() as enroll_student:
        start = time.perf_counter()  # all processes read the same clock
        for student in students:
            call_start = time.perf_counter()
            try:
                enroll_student(student, course_pk)
            except DatabaseError as error:
                # Count conflicts between writers. Any other error is a fault of the benchmark.
                if not is_transient(error):
                    raise
            else:
                latencies.append(time.perf_counter() - call_start)
        return start, time.perf_counter(), latencies


def measure_growth(size: Size) -> list[Benchmark]:
    """Enroll students in courses that have different numbers of rows."""
    approaches = [
        approach
        for approach in ENROLL_APPROACHES
        if approach.name == SIGNAL or approach.name.startswith((FLOOR, PROJECT))
    ]
    with temporary_database("growth"):
        rounds = size.rounds * GROWTH_ROUNDS
        insert_students(max(size.growth) + rounds * GROWTH_CALLS)
        benchmarks = [
            Benchmark(
                name := f"course of {rows:,} rows",
                f"enroll, {name}",
                [_enroll_in_large_course(approach, rows) for approach in approaches],
                course_size=rows,
            )
            for rows in size.growth
        ]
        run_rounds(*benchmarks, rounds=rounds)
    return benchmarks


def _enroll_in_large_course(approach: EnrollApproach, rows: int) -> Approach:
    course_pk = new_course(approach.course_model)
    insert_enrollments(
        per_course=rows, courses=f"id = {course_pk}", model=approach.enrollment_model
    )
    first_students = itertools.count(rows + 1, GROWTH_CALLS)

    def measure() -> Measurement:
        first = next(first_students)
        students = range(first, first + GROWTH_CALLS)
        start, end, latencies = enroll_students(approach, course_pk, students)
        return Measurement(end - start, len(latencies), latencies=latencies)

    return Approach(approach.name, measure)


# The approaches -----------------------------------------------------------------

TAKE_SEAT = """
    UPDATE courses_course SET total_enrollments = total_enrollments + 1
    WHERE id = %s AND (capacity IS NULL OR capacity > total_enrollments)
"""
INSERT_ENROLLMENT = """
    INSERT INTO enrollments_enrollment (student_id, course_id, status, enrollment_date)
    VALUES (%s, %s, 'active', %s)
"""
INSERT_EVENT = """
    INSERT INTO enrollments_enrollmentevent
        (student_id, course_id, status, enrollment_date, action, created_at, source, actor)
    VALUES (%s, %s, 'active', %s, 'enrolled', %s, 'website', %s)
"""


@contextmanager
def enroll_with_driver(
    *, has_history: bool = True, switch_autocommit: bool = False
) -> Iterator[Enroll]:
    with bare_driver() as driver, driver.cursor() as cursor:

        def enroll_student(student: int, course: int) -> None:
            if switch_autocommit:
                driver.autocommit(False)
            now = datetime.now(UTC).replace(tzinfo=None)
            cursor.execute(TAKE_SEAT, (course,))
            cursor.execute(INSERT_ENROLLMENT, (student, course, now))
            if has_history:
                cursor.execute(INSERT_EVENT, (student, course, now, now, f"student{student}"))
            driver.commit()
            if switch_autocommit:
                driver.autocommit(True)

        yield enroll_student


def enroll_with_service(student: int, course: int) -> None:
    enroll(student=student, course=course, origin=Origin(Source.WEBSITE, f"student{student}"))


@contextmanager
def enroll_without_history() -> Iterator[Enroll]:
    with disable_history():
        yield enroll_with_service


@contextmanager
def disable_history() -> Iterator[None]:
    """Replace the functions that insert events. Raise RuntimeError if events are still inserted."""
    last_event = EnrollmentEvent.objects.aggregate(Max("pk"))
    # Raises AttributeError if a function no longer exists.
    with (
        patch.object(history, "record_event", lambda cursor, event: None),
        patch.object(history, "record_events", lambda events: None),
    ):
        yield
    if EnrollmentEvent.objects.aggregate(Max("pk")) != last_event:
        raise RuntimeError(
            "The services inserted events although their history was switched off. "
            "Update benchmarks.enrolling.disable_history()."
        )


@transaction.atomic
def enroll_with_plain_orm(student: int, course: int) -> None:
    """Execute the statements of `enroll()` the usual way."""
    now = timezone.now()
    has_free_seat = Q(capacity=None) | Q(capacity__gt=F("total_enrollments"))
    Course.objects.filter(has_free_seat, pk=course).update(
        total_enrollments=F("total_enrollments") + 1
    )
    enrollment = Enrollment(student_id=student, course_id=course, enrollment_date=now)
    event = EnrollmentEvent(
        student_id=student,
        course_id=course,
        action=Action.ENROLLED,
        status=enrollment.status,
        enrollment_date=now,
        created_at=now,
        source=Source.WEBSITE,
        actor=f"student{student}",
    )
    # save() is guarded, so call what Django's own save() calls.
    enrollment.save_base(force_insert=True)
    event.save_base(force_insert=True)


@transaction.atomic
def enroll_row_first(student: int, course: int) -> None:
    PlainEnrollment.objects.create(student_id=student, course_id=course)
    PlainCourse.objects.filter(pk=course).update(total_enrollments=F("total_enrollments") + 1)


@transaction.atomic
def enroll_with_simple_history(student: int, course: int) -> None:
    # In the project's order, so that this measures the history and not deadlocks.
    PlainCourse.objects.filter(pk=course).update(total_enrollments=F("total_enrollments") + 1)
    row = TrackedEnrollment(student_id=student, course_id=course)
    row._change_reason = "page"
    row._history_user = request_user(student)
    row.save(force_insert=True)


@cache
def request_user(pk: int) -> User:
    """Return the user of a request, which is not part of the measurement."""
    return get_user_model()(pk=pk)


@transaction.atomic
def enroll_with_signal(student: int, course: int) -> None:
    SignalEnrollment.objects.create(student_id=student, course_id=course)


@transaction.atomic
def enroll_lock_first(student: int, course_pk: int) -> None:
    course = PlainCourse.objects.select_for_update().get(pk=course_pk)
    PlainEnrollment.objects.create(student_id=student, course=course)
    course.total_enrollments += 1
    course.save()


@transaction.atomic
def enroll_with_computed_field(student: int, course: int) -> None:
    ComputedEnrollment.objects.create(student_id=student, course_id=course)


# django-computedfields listens to the signals of every model, which would slow down the others.
pre_save.disconnect(dispatch_uid="COMP_FIELD_PRESAVE")
post_save.disconnect(dispatch_uid="COMP_FIELD")


@contextmanager
def connect_computed_fields() -> Iterator[Enroll]:
    pre_save.connect(get_old_handler)
    post_save.connect(postsave_handler)
    try:
        yield enroll_with_computed_field
    finally:
        pre_save.disconnect(get_old_handler)
        post_save.disconnect(postsave_handler)


def enroll_with_trigger(student: int, course: int) -> None:
    TriggerEnrollment.objects.create(student_id=student, course_id=course)


ENROLL_APPROACHES = [
    EnrollApproach(f"{FLOOR}: bare driver", enroll_with_driver),
    EnrollApproach("bare driver, no history", partial(enroll_with_driver, has_history=False)),
    EnrollApproach(
        "bare driver, switching autocommit like Django",
        partial(enroll_with_driver, switch_autocommit=True),
    ),
    EnrollApproach(f"{PROJECT}: enroll()", partial(nullcontext, enroll_with_service)),
    EnrollApproach("enroll() without its history", enroll_without_history),
    EnrollApproach(PLAIN_ORM, partial(nullcontext, enroll_with_plain_orm)),
    EnrollApproach(
        "F(), then row with django-simple-history",
        partial(nullcontext, enroll_with_simple_history),
        TrackedEnrollment,
    ),
    EnrollApproach(ROW_FIRST, partial(nullcontext, enroll_row_first), PlainEnrollment),
    EnrollApproach(SIGNAL, partial(nullcontext, enroll_with_signal), SignalEnrollment),
    EnrollApproach(
        "select_for_update, row, save", partial(nullcontext, enroll_lock_first), PlainEnrollment
    ),
    EnrollApproach("django-computedfields", connect_computed_fields, ComputedEnrollment),
    EnrollApproach(
        "database trigger", partial(nullcontext, enroll_with_trigger), TriggerEnrollment
    ),
]
