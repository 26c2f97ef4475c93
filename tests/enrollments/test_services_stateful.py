"""Any sequence of services against a model of what they promise, shrunk where it differs."""

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from courses.counts.drift import rebuild
from courses.models import Course
from enrollments.models import Enrollment
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
from tests.support.history import history_mismatches

STUDENTS = st.integers(0, 3)
COURSES = st.integers(0, 2)
COUNTED = {"active", "completed"}


class Services(RuleBasedStateMachine):
    """`rows` is the model: the status by (student, course), by their numbers."""

    @initialize(capacities=st.lists(st.none() | st.integers(0, 3), min_size=3, max_size=3))
    def begin(self, capacities: list[int | None]) -> None:
        self.block = transaction.atomic()
        self.block.__enter__()
        users = get_user_model()._default_manager
        self.students = [users.create(username=f"s{number}") for number in range(4)]
        self.courses = [
            Course.objects.create(title=f"C{number}", slug=f"c{number}", capacity=capacity)
            for number, capacity in enumerate(capacities)
        ]
        self.capacities = capacities
        self.rows: dict[tuple[int, int], str] = {}

    def teardown(self) -> None:
        if hasattr(self, "block"):
            transaction.set_rollback(True)
            self.block.__exit__(None, None, None)

    def counts(self, student: int, course: int) -> bool:
        return self.rows.get((student, course)) in COUNTED

    def taken(self, course: int) -> int:
        return sum(self.counts(student, course) for student in range(4))

    def is_full(self, course: int) -> bool:
        capacity = self.capacities[course]
        return capacity is not None and self.taken(course) >= capacity

    @rule(student=STUDENTS, course=COURSES)
    def enroll(self, student: int, course: int) -> None:
        arguments = {"student": self.students[student], "course": self.courses[course]}
        if self.counts(student, course):
            row, changed = enroll(**arguments)
            assert (row.status, changed) == (self.rows[student, course], False)
        elif self.is_full(course):
            with pytest.raises(CourseFull):
                enroll(**arguments)
        else:
            row, changed = enroll(**arguments)
            assert (row.status, changed) == ("active", True)
            self.rows[student, course] = "active"

    @rule(student=STUDENTS, course=COURSES)
    def unenroll(self, student: int, course: int) -> None:
        changed = unenroll(student=self.students[student], course=self.courses[course])
        assert changed == self.counts(student, course)
        if changed:
            self.rows[student, course] = "withdrawn"

    @rule(student=STUDENTS, course=COURSES, status=st.sampled_from(Enrollment.Status.values))
    def set_status(self, student: int, course: int, status: str) -> None:
        arguments = {
            "student": self.students[student],
            "course": self.courses[course],
            "status": status,
        }
        before = self.rows.get((student, course))
        if before is None:
            with pytest.raises(NotEnrolled):
                set_status(**arguments)
        elif before == "withdrawn" and status in COUNTED and self.is_full(course):
            with pytest.raises(CourseFull):
                set_status(**arguments)
        else:
            assert set_status(**arguments) == (status != before)
            self.rows[student, course] = status

    @rule(student=STUDENTS, source=COURSES, other=COURSES)
    def transfer(self, student: int, source: int, other: int) -> None:
        arguments = {
            "student": self.students[student],
            "source": self.courses[source],
            "target": self.courses[other],
        }
        active = self.rows.get((student, source)) == "active"
        if source == other:
            with pytest.raises(ValueError, match="same course"):
                transfer(**arguments)
        elif not active and not self.counts(student, other):
            with pytest.raises(NotEnrolled):
                transfer(**arguments)
        elif active and not self.counts(student, other) and self.is_full(other):
            with pytest.raises(CourseFull):
                transfer(**arguments)
        else:
            row, changed = transfer(**arguments)
            assert (row.course_id, changed) == (self.courses[other].pk, active)
            if active:
                self.rows[student, source] = "withdrawn"
                self.rows[student, other] = row.status

    @rule(students=st.lists(STUDENTS, max_size=6), course=COURSES)
    def enroll_many(self, students: list[int], course: int) -> None:
        result = enroll_many(
            course=self.courses[course], students=[self.students[number] for number in students]
        )
        created = reenrolled = unchanged = 0
        refused = []
        for student in dict.fromkeys(students):
            if self.counts(student, course):
                unchanged += 1
            elif self.is_full(course):
                refused.append(self.students[student].pk)
            else:
                reenrolled += (student, course) in self.rows
                created += (student, course) not in self.rows
                self.rows[student, course] = "active"
        assert result == BulkResult(
            created=created, reenrolled=reenrolled, unchanged=unchanged, rejected=tuple(refused)
        )

    @rule(students=st.lists(STUDENTS, max_size=6), course=COURSES)
    def unenroll_many(self, students: list[int], course: int) -> None:
        result = unenroll_many(
            course=self.courses[course], students=[self.students[number] for number in students]
        )
        leaving = {student for student in students if self.counts(student, course)}
        assert result == BulkResult(withdrawn=len(leaving), unchanged=len(set(students) - leaving))
        for student in leaving:
            self.rows[student, course] = "withdrawn"

    @rule(student=STUDENTS)
    def erase_student(self, student: int) -> None:
        mine = [key for key in self.rows if key[0] == student]
        assert erase_student(student=self.students[student]) == len(mine)
        for key in mine:
            del self.rows[key]

    @rule(course=COURSES)
    def save_a_stale_course(self, course: int) -> None:
        self.courses[course].save()

    @rule(student=STUDENTS, course=COURSES)
    def change_and_roll_back(self, student: int, course: int) -> None:
        with transaction.atomic():
            if not self.is_full(course):
                enroll(student=self.students[student], course=self.courses[course])
            unenroll(student=self.students[student], course=self.courses[course])
            erase_student(student=self.students[student])
            transaction.set_rollback(True)

    @rule(course=COURSES, stored=st.integers(0, 5))
    def damage_and_rebuild(self, course: int, stored: int) -> None:
        Course.objects.filter(pk=self.courses[course].pk).update(total_enrollments=stored)
        drift = stored - self.taken(course)
        assert [found.drift for found in rebuild()] == ([drift] if drift else [])

    @precondition(lambda self: hasattr(self, "rows"))
    @invariant()
    def rows_and_counters_are_as_the_model_says(self) -> None:
        statuses: dict[Any, str] = {
            (row.student_id, row.course_id): row.status for row in Enrollment.objects.all()
        }
        assert statuses == {
            (self.students[student].pk, self.courses[course].pk): status
            for (student, course), status in self.rows.items()
        }
        counts = Course.objects.with_drift().order_by("pk")
        assert [(found.total_enrollments, found.drift) for found in counts] == [
            (self.taken(course), 0) for course in range(3)
        ]
        assert history_mismatches() == set()


@pytest.mark.timeout(300)
def test_the_services_do_what_the_model_says(db: None) -> None:
    run_state_machine_as_test(
        Services,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
