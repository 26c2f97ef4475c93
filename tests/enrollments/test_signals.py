"""enrollments_changed: which events receivers get, and when."""

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection, transaction

from courses.models import Course
from courses.transactions import retry_transaction
from enrollments.history import Event
from enrollments.models import Enrollment
from enrollments.services import (
    CourseFull,
    Registration,
    enroll,
    enroll_many,
    erase_student,
    leave,
    register_many,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from enrollments.signals import enrollments_changed
from tests.support.counts import drift_by_title
from tests.support.enrollments import BY_ANNA, MakeCourse, MakeStudents, rolled_back
from tests.support.locks import forced_deadlock
from tests.support.proxy import TCPProxy
from tests.support.threads import run_concurrently

pytestmark = pytest.mark.django_db(transaction=True)

Receiver = Callable[..., None]


@pytest.fixture
def connect() -> Iterator[Callable[[Receiver], None]]:
    """Connect receivers until the end of the test."""
    receivers: list[Receiver] = []

    def connect(receiver: Receiver) -> None:
        receivers.append(receiver)
        enrollments_changed.connect(receiver, sender=Enrollment)

    yield connect
    for receiver in receivers:
        enrollments_changed.disconnect(receiver, sender=Enrollment)


@pytest.fixture
def sent_events(connect: Callable[[Receiver], None]) -> list[list[Event]]:
    """The events of each signal that was sent."""
    sent_events: list[list[Event]] = []

    def receive(sender: type[Enrollment], events: list[Event], **kwargs: Any) -> None:
        assert sender is Enrollment
        assert not connection.in_atomic_block
        sent_events.append(events)

    connect(receive)
    return sent_events


def actions(sent_events: list[list[Event]]) -> list[list[str]]:
    return [[event.action for event in events] for events in sent_events]


class TestEvents:
    def test_an_event_contains_the_change_and_its_origin(
        self, student: User, course: Course, sent_events: list[list[Event]]
    ) -> None:
        enrollment, _ = enroll(student=student, course=course, origin=BY_ANNA)
        assert sent_events == [
            [
                Event(
                    student_id=student.pk,
                    course_id=course.pk,
                    action="enrolled",
                    status="active",
                    enrollment_date=enrollment.enrollment_date,
                    withdrawal_date=None,
                    created_at=enrollment.enrollment_date,
                    source="admin",
                    actor="anna",
                    other_course_id=None,
                )
            ]
        ]

    @pytest.mark.parametrize(
        ("call", "action"),
        [
            (lambda student, course: unenroll(student=student, course=course), "withdrawn"),
            (lambda student, course: leave(student=student, course=course), "withdrawn"),
            (
                lambda student, course: set_status(
                    student=student, course=course, status="completed"
                ),
                "completed",
            ),
            (
                lambda student, course: unenroll_many(course=course, students=[student]),
                "withdrawn",
            ),
            (
                lambda student, course: register_many(
                    course=course,
                    registrations=[Registration(student, datetime(2026, 1, 1, tzinfo=UTC))],
                ),
                "dates_changed",
            ),
            (lambda student, course: erase_student(student=student), "erased"),
        ],
        ids=["unenroll", "leave", "set_status", "unenroll_many", "register_many", "erase_student"],
    )
    def test_every_service_sends_one_signal(
        self,
        student: User,
        course: Course,
        sent_events: list[list[Event]],
        call: Callable[[User, Course], object],
        action: str,
    ) -> None:
        enroll(student=student, course=course)
        sent_events.clear()
        call(student, course)
        ((event,),) = sent_events
        assert (event.student_id, event.course_id) == (student.pk, course.pk)
        assert event.action == action

    def test_enroll_many_sends_the_events_of_all_students_in_one_signal(
        self, course: Course, make_students: MakeStudents, sent_events: list[list[Event]]
    ) -> None:
        students = make_students(3)
        enroll(student=students[1], course=course)
        sent_events.clear()
        enroll_many(course=course, students=students)
        (events,) = sent_events
        assert [event.student_id for event in events] == [students[0].pk, students[2].pk]
        assert {event.action for event in events} == {"enrolled"}

    def test_bulk_services_send_one_signal_per_chunk(
        self, course: Course, make_students: MakeStudents, sent_events: list[list[Event]]
    ) -> None:
        students = make_students(5)
        enroll_many(course=course, students=students, chunk_size=2)
        assert [[event.student_id for event in events] for events in sent_events] == [
            [students[0].pk, students[1].pk],
            [students[2].pk, students[3].pk],
            [students[4].pk],
        ]

    def test_transfer_sends_both_events_in_one_signal(
        self, student: User, make_course: MakeCourse, sent_events: list[list[Event]]
    ) -> None:
        source, target = make_course(), make_course()
        enroll(student=student, course=source)
        sent_events.clear()
        transfer(student=student, source=source, target=target)
        ((left, entered),) = sent_events
        assert (left.action, left.course_id, left.other_course_id) == (
            "transferred_out",
            source.pk,
            target.pk,
        )
        assert (entered.action, entered.course_id, entered.other_course_id) == (
            "transferred_in",
            target.pk,
            source.pk,
        )

    def test_erase_student_sends_an_event_per_course(
        self, student: User, make_course: MakeCourse, sent_events: list[list[Event]]
    ) -> None:
        courses = [make_course() for _ in range(2)]
        for course in courses:
            enroll(student=student, course=course)
        sent_events.clear()
        erase_student(student=student)
        (events,) = sent_events
        assert {event.course_id for event in events} == {course.pk for course in courses}
        for event in events:
            assert (event.student_id, event.action, event.status) == (student.pk, "erased", "")
            assert (event.enrollment_date, event.withdrawal_date) == (None, None)


class TestNothingChanged:
    def test_no_signal_is_sent(
        self, student: User, make_course: MakeCourse, sent_events: list[list[Event]]
    ) -> None:
        course, full_course = make_course(), make_course(capacity=0)
        enroll(student=student, course=course)
        sent_events.clear()
        enroll(student=student, course=course)
        enroll_many(course=course, students=[student])
        enroll_many(course=full_course, students=[student])
        unenroll(student=student, course=full_course)
        with pytest.raises(CourseFull):
            enroll(student=student, course=full_course)
        with pytest.raises(CourseFull):
            transfer(student=student, source=course, target=full_course)
        assert sent_events == []


class TestTransaction:
    def test_receivers_run_after_commit(
        self, student: User, course: Course, connect: Callable[[Receiver], None]
    ) -> None:
        rows_seen_elsewhere: list[int] = []

        def count_on_another_connection(**kwargs: Any) -> None:
            run_concurrently(lambda: rows_seen_elsewhere.append(Enrollment.objects.count()))

        connect(count_on_another_connection)
        enroll(student=student, course=course)
        assert rows_seen_elsewhere == [1]

    def test_inside_atomic_the_signals_are_sent_after_the_callers_commit(
        self, student: User, course: Course, sent_events: list[list[Event]]
    ) -> None:
        with transaction.atomic():
            enroll(student=student, course=course)
            with transaction.atomic():
                unenroll(student=student, course=course)
            assert sent_events == []
        assert actions(sent_events) == [["enrolled"], ["withdrawn"]]

    def test_no_signal_is_sent_after_a_rollback(
        self, student: User, course: Course, sent_events: list[list[Event]]
    ) -> None:
        with rolled_back():
            enroll(student=student, course=course)
        assert sent_events == []

    def test_no_signal_is_sent_for_a_savepoint_that_was_rolled_back(
        self, course: Course, make_students: MakeStudents, sent_events: list[list[Event]]
    ) -> None:
        first, second = make_students(2)
        with transaction.atomic():
            with rolled_back():
                enroll(student=first, course=course)
            enroll(student=second, course=course)
        ((event,),) = sent_events
        assert event.student_id == second.pk

    def test_only_the_successful_attempt_sends_its_events(
        self, student: User, course: Course, sent_events: list[list[Event]]
    ) -> None:
        attempts: list[None] = []

        @retry_transaction()
        def enroll_and_fail_once() -> None:
            attempts.append(None)
            enroll(student=student, course=course)
            if len(attempts) == 1:
                raise OperationalError(1213, "Deadlock found")

        enroll_and_fail_once()
        assert len(attempts) == 2
        assert actions(sent_events) == [["enrolled"]]

    @pytest.mark.mariadb
    def test_the_victim_of_a_deadlock_sends_its_events_once(
        self, student: User, make_course: MakeCourse, sent_events: list[list[Event]]
    ) -> None:
        source, target = make_course(), make_course()
        enroll(student=student, course=source)
        sent_events.clear()
        with forced_deadlock(source, target):
            transfer(student=student, source=source, target=target)
        assert actions(sent_events) == [["transferred_out", "transferred_in"]]

    @pytest.mark.mariadb
    @pytest.mark.parametrize(
        "executes_commit", [False, True], ids=["COMMIT lost", "answer to COMMIT lost"]
    )
    @pytest.mark.parametrize(
        ("call", "expected_actions"),
        [
            (
                lambda students, course, target: enroll(student=students[1], course=course),
                ["enrolled"],
            ),
            (
                lambda students, course, target: unenroll(student=students[0], course=course),
                ["withdrawn"],
            ),
            (
                lambda students, course, target: transfer(
                    student=students[0], source=course, target=target
                ),
                ["transferred_out", "transferred_in"],
            ),
            (
                lambda students, course, target: enroll_many(course=course, students=students),
                ["enrolled", "enrolled"],
            ),
            (
                lambda students, course, target: erase_student(student=students[0]),
                ["erased"],
            ),
        ],
        ids=["enroll", "unenroll", "transfer", "enroll_many", "erase_student"],
    )
    def test_a_connection_lost_at_commit_sends_the_events_once(
        self,
        make_course: MakeCourse,
        make_students: MakeStudents,
        sent_events: list[list[Event]],
        database_proxy: TCPProxy,
        executes_commit: bool,
        call: Callable[[list[User], Course, Course], object],
        expected_actions: list[str],
    ) -> None:
        course, target = make_course(), make_course()
        students = make_students(3)
        enroll(student=students[0], course=course)
        sent_events.clear()
        database_proxy.drop_once(b"COMMIT", executes_query=executes_commit)
        call(students, course, target)
        assert database_proxy.dropped == 1
        assert actions(sent_events) == [expected_actions]


class TestReceivers:
    def test_an_error_is_logged_and_changes_nothing_for_others(
        self,
        student: User,
        course: Course,
        connect: Callable[[Receiver], None],
        caplog: pytest.LogCaptureFixture,
        request: pytest.FixtureRequest,
    ) -> None:
        def fail(**kwargs: Any) -> None:
            raise RuntimeError("The mail server is unreachable")

        connect(fail)
        sent_events = request.getfixturevalue("sent_events")
        with caplog.at_level(logging.ERROR, "django.dispatch"):
            enrollment, changed = enroll(student=student, course=course)
        assert (enrollment, changed) == (Enrollment.objects.get(), True)
        assert actions(sent_events) == [["enrolled"]]
        (record,) = caplog.records
        assert record.name == "django.dispatch"
        assert "The mail server is unreachable" in caplog.text

    def test_a_transient_database_error_does_not_repeat_the_service(
        self, student: User, course: Course, connect: Callable[[Receiver], None]
    ) -> None:
        calls: list[list[Event]] = []

        def fail(events: list[Event], **kwargs: Any) -> None:
            calls.append(events)
            raise OperationalError(1213, "Deadlock found")

        connect(fail)
        assert enroll(student=student, course=course)[1] is True
        assert len(calls) == 1

    def test_a_receiver_can_call_a_service(
        self,
        student: User,
        make_course: MakeCourse,
        connect: Callable[[Receiver], None],
        sent_events: list[list[Event]],
    ) -> None:
        course, next_course = make_course(), make_course()

        def enroll_in_next_course(events: list[Event], **kwargs: Any) -> None:
            for event in events:
                if event.course_id == course.pk:
                    enroll(student=event.student_id, course=next_course)

        connect(enroll_in_next_course)
        enroll(student=student, course=course)
        assert set(Enrollment.objects.values_list("course", flat=True)) == {
            course.pk,
            next_course.pk,
        }
        assert sorted(event.course_id for events in sent_events for event in events) == [
            course.pk,
            next_course.pk,
        ]
        assert drift_by_title() == {}
