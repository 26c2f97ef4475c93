"""Enrollment events: which ones services record, and that they commit with the row."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.db.models import Model
from django.utils import timezone

from courses.models import Course
from enrollments.history import Origin, Source
from enrollments.managers import DirectWriteError
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.rows import CHUNK_SIZE
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
from tests.support.counts import drift_by_title
from tests.support.enrollments import (
    BY_ANNA,
    MakeCourse,
    MakeStudents,
    recorded_actions,
    recorded_origins,
    rolled_back,
)
from tests.support.history import history_mismatches

pytestmark = pytest.mark.django_db


class TestSingleStudent:
    def test_every_change_is_an_event_with_the_origin(
        self, student: User, make_course: MakeCourse
    ) -> None:
        course, other_course = make_course(), make_course()
        arguments: dict[str, Any] = {"student": student, "course": course, "origin": BY_ANNA}
        enroll(**arguments)
        unenroll(**arguments)
        enroll(**arguments)
        set_status(**arguments, status="completed")
        set_status(**arguments, status="active")
        transfer(student=student, source=course, target=other_course, origin=BY_ANNA)
        leave(student=student, course=other_course, origin=BY_ANNA)
        assert recorded_actions() == [
            "enrolled",
            "withdrawn",
            "reenrolled",
            "completed",
            "reopened",
            "transferred_out",
            "transferred_in",
            "withdrawn",
        ]
        assert recorded_origins() == {("admin", "anna")}
        assert history_mismatches() == set()

    def test_an_event_contains_the_values_of_the_row_after_the_change(
        self, student: User, course: Course
    ) -> None:
        start = timezone.now()
        enrollment, _ = enroll(
            student=student, course=course, origin=Origin(Source.WEBSITE, "student1")
        )
        unenroll(student=student, course=course)
        enrolled, withdrawn = EnrollmentEvent.objects.order_by("pk")
        assert (enrolled.student, enrolled.course) == (student, course)
        assert enrolled.other_course is None
        assert (enrolled.source, enrolled.actor) == ("website", "student1")
        assert enrolled.status == "active"
        assert start <= enrolled.created_at == enrolled.enrollment_date
        assert enrolled.enrollment_date == enrollment.enrollment_date
        assert enrolled.withdrawal_date is None
        assert (withdrawn.source, withdrawn.actor) == ("system", "")
        assert withdrawn.status == "withdrawn"
        assert enrolled.created_at <= withdrawn.created_at == withdrawn.withdrawal_date

    def test_the_two_events_of_a_transfer_name_the_other_course(
        self, student: User, make_course: MakeCourse
    ) -> None:
        source, target = make_course(), make_course()
        enroll(student=student, course=source)
        transfer(student=student, source=source, target=target)
        _, left, entered = EnrollmentEvent.objects.order_by("pk")
        assert (left.action, left.course, left.other_course) == ("transferred_out", source, target)
        assert (entered.action, entered.course, entered.other_course) == (
            "transferred_in",
            target,
            source,
        )
        assert str(target) in left.description

    def test_a_call_that_changes_nothing_records_no_event(
        self, student: User, make_course: MakeCourse
    ) -> None:
        course, full_course = make_course(), make_course(capacity=0)
        enroll(student=student, course=course)
        enroll(student=student, course=course)
        set_status(student=student, course=course, status="active")
        enroll_many(course=course, students=[student])
        unenroll(student=student, course=full_course)
        with pytest.raises(CourseFull):
            enroll(student=student, course=full_course)
        with pytest.raises(CourseFull):
            transfer(student=student, source=course, target=full_course)
        assert recorded_actions() == ["enrolled"]

    def test_reenrolling_records_one_event(self, student: User, course: Course) -> None:
        """enroll() tries to insert a new row first, and undoes that."""
        enroll(student=student, course=course)
        unenroll(student=student, course=course)
        enroll(student=student, course=course)
        assert recorded_actions() == ["enrolled", "withdrawn", "reenrolled"]


class TestManyStudents:
    @pytest.mark.parametrize("number", [1, 3, CHUNK_SIZE + 1])
    def test_bulk_services_record_an_event_per_student(
        self, course: Course, make_students: MakeStudents, number: int
    ) -> None:
        students = make_students(number)
        enroll_many(course=course, students=students, origin=BY_ANNA)
        unenroll_many(course=course, students=students, chunk_size=CHUNK_SIZE, origin=BY_ANNA)
        enroll_many(course=course, students=students, origin=BY_ANNA)
        assert recorded_actions() == [
            *["enrolled"] * number,
            *["withdrawn"] * number,
            *["reenrolled"] * number,
        ]
        assert recorded_origins() == {("admin", "anna")}
        assert history_mismatches() == set()

    def test_register_many_records_what_changed_in_each_row(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        first, second, third = make_students(3)
        day = datetime(2026, 1, 1, tzinfo=UTC)
        next_day = day + timedelta(days=1)
        register_many(
            course=course,
            registrations=[
                Registration(first, day),
                Registration(second, day, next_day, "withdrawn"),
                Registration(third, day, status="completed"),
            ],
        )
        assert recorded_actions() == ["enrolled", "withdrawn", "completed"]
        register_many(
            course=course,
            registrations=[
                Registration(first, next_day),
                Registration(second, day, status="completed"),
            ],
        )
        assert recorded_actions()[3:] == ["dates_changed", "reenrolled"]
        assert history_mismatches() == set()


class TestActor:
    @pytest.mark.parametrize(
        "name",
        ["o'brien %s \\ “x”", "%(a)s", "n" * 300],
        ids=["quotes and backslash", "placeholder", "too long"],
    )
    def test_any_name_is_recorded_up_to_150_characters(
        self, course: Course, make_students: MakeStudents, name: str
    ) -> None:
        student, *other_students = make_students(3)
        origin = Origin(Source.SYSTEM, name)
        enroll(student=student, course=course, origin=origin)
        enroll_many(course=course, students=other_students, origin=origin)
        assert recorded_origins() == {("system", name[:150])}

    def test_the_name_is_kept_when_the_actor_is_erased(
        self, make_students: MakeStudents, course: Course
    ) -> None:
        student, clerk = make_students(2)
        by_clerk = Origin(Source.ADMIN, clerk.username)
        enroll(student=clerk, course=course, origin=by_clerk)
        enroll(student=student, course=course, origin=by_clerk)
        erase_student(student=clerk)
        assert recorded_actions() == ["enrolled", "erased"]
        assert EnrollmentEvent.objects.get(student=student).actor == clerk.username


class TestErasedStudent:
    def test_only_an_erasure_event_without_personal_data_remains(
        self, make_students: MakeStudents, course: Course
    ) -> None:
        student, other_student = make_students(2)
        for each_student in (student, other_student):
            origin = Origin(Source.WEBSITE, each_student.username)
            enroll(student=each_student, course=course, origin=origin)
        unenroll(student=student, course=course)
        erase_student(student=student, origin=BY_ANNA)
        event = EnrollmentEvent.objects.get(student=student)
        assert (event.action, event.status, event.actor) == ("erased", "", "anna")
        assert (event.enrollment_date, event.withdrawal_date) == (None, None)
        events_of_others = EnrollmentEvent.objects.exclude(student=student)
        assert [event.action for event in events_of_others] == ["enrolled"]
        assert history_mismatches() == set()

    def test_erasing_again_records_no_event(self, student: User, course: Course) -> None:
        enroll(student=student, course=course)
        erase_student(student=student)
        erase_student(student=student)
        assert recorded_actions() == ["erased"]

    @pytest.mark.parametrize("related", [[], ["student", "course"]], ids=["plain", "related"])
    def test_an_event_survives_its_student_and_course(
        self, student: User, course: Course, related: list[str]
    ) -> None:
        student_id, course_id = erase_and_delete(student, course)
        event = EnrollmentEvent.objects.select_related(*related).get()
        assert (event.student, event.course) == (None, None)
        assert str(student_id) in event.student_name
        assert str(course_id) in event.course_name

    def test_dumpdata_includes_events_of_deleted_students(
        self, student: User, course: Course, tmp_path: Path
    ) -> None:
        erase_and_delete(student, course)
        path = tmp_path / "history.json"
        call_command("dumpdata", "enrollments", natural_foreign=True, output=str(path))
        events = json.loads(path.read_text())
        assert [event["fields"]["action"] for event in events] == ["erased"]


def erase_and_delete(student: User, course: Course) -> tuple[int, int]:
    """Return the primary keys that the student and the course had."""
    keys = student.pk, course.pk
    enroll(student=student, course=course)
    erase_student(student=student)
    student.delete()
    course.delete()
    return keys


class TestAtomicity:
    def test_events_roll_back_with_the_rows(self, student: User, course: Course) -> None:
        with rolled_back():
            enroll(student=student, course=course)
            unenroll(student=student, course=course)
        assert recorded_actions() == []
        assert not Enrollment.objects.exists()
        assert drift_by_title() == {}

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize(
        "change",
        [
            lambda students, course: enroll(student=students[1], course=course),
            lambda students, course: unenroll(student=students[0], course=course),
            lambda students, course: enroll_many(course=course, students=students),
            lambda students, course: erase_student(student=students[0]),
        ],
        ids=["enroll", "unenroll", "enroll_many", "erase_student"],
    )
    def test_a_change_is_rolled_back_if_its_event_cannot_be_inserted(
        self,
        course: Course,
        make_students: MakeStudents,
        change: Callable[[list[User], Course], object],
    ) -> None:
        students = make_students(3)
        enroll(student=students[0], course=course)
        rows, events = all_values(Enrollment), all_values(EnrollmentEvent)

        def insert_into_missing_table(
            execute: Any, sql: str, params: Any, many: bool, context: Any
        ) -> Any:
            if sql.startswith("INSERT") and "enrollments_enrollmentevent" in sql:
                sql = sql.replace("enrollments_enrollmentevent", "missing_table")
            return execute(sql, params, many, context)

        with (
            connection.execute_wrapper(insert_into_missing_table),
            pytest.raises(DatabaseError, match="missing_table"),
        ):
            change(students, course)
        assert (all_values(Enrollment), all_values(EnrollmentEvent)) == (rows, events)
        course.refresh_from_db()
        assert course.total_enrollments == 1
        assert drift_by_title() == {}


def all_values(model: type[Model]) -> list[dict[str, Any]]:
    return list(model._default_manager.order_by("pk").values())


@pytest.mark.parametrize(
    "write",
    [
        lambda event: event.save(),
        lambda event: event.delete(),
        lambda event: EnrollmentEvent.objects.create(action="erased"),
        lambda event: EnrollmentEvent.objects.update(actor="another user"),
        lambda event: EnrollmentEvent.objects.all().delete(),
        lambda event: event.student.enrollment_events.all().delete(),
        lambda event: event.student.enrollment_events.create(action="erased"),
        lambda event: event.student.enrollment_events.clear(),
        lambda event: event.student.enrollment_events.clear(bulk=False),
        lambda event: event.course.enrollment_events.set([]),
        lambda event: event.course.enrollment_events.remove(event),
        lambda event: event.course.enrollment_events.add(event),
    ],
    ids=[
        "save",
        "delete",
        "create",
        "update",
        "all().delete",
        "student.enrollment_events.all().delete",
        "student.enrollment_events.create",
        "student.enrollment_events.clear",
        "student.enrollment_events.clear(bulk=False)",
        "course.enrollment_events.set",
        "course.enrollment_events.remove",
        "course.enrollment_events.add",
    ],
)
def test_events_cannot_be_written_directly(
    student: User, course: Course, write: Callable[[EnrollmentEvent], object]
) -> None:
    enroll(student=student, course=course)
    with pytest.raises(DirectWriteError, match="history"), transaction.atomic():
        write(EnrollmentEvent.objects.get())
    assert recorded_actions() == ["enrolled"]
