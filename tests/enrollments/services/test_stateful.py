"""Random sequences of service calls, compared with a model of what services promise.

Hypothesis shrinks a failing sequence to the shortest one that still fails.
"""

from typing import Any

import pytest
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
    CourseCompleted,
    CourseFull,
    NotEnrolled,
    enroll,
    enroll_many,
    erase_student,
    leave,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from tests.support.enrollments import User, set_stored_count
from tests.support.history import history_mismatches

NUMBER_OF_STUDENTS = 4
NUMBER_OF_COURSES = 3
# Rules name students and courses by their index in `self.students` and `self.courses`.
STUDENT = st.integers(0, NUMBER_OF_STUDENTS - 1)
STUDENTS = st.lists(STUDENT, max_size=6)
COURSE = st.integers(0, NUMBER_OF_COURSES - 1)
CAPACITIES = st.lists(
    st.none() | st.integers(0, 3), min_size=NUMBER_OF_COURSES, max_size=NUMBER_OF_COURSES
)
STATUS = st.sampled_from(Enrollment.Status.values)
COUNTED = {"active", "completed"}


class ServicesMachine(RuleBasedStateMachine):
    """The model is `self.statuses`: the status of each row by (student, course)."""

    @initialize(capacities=CAPACITIES)
    def create_students_and_courses(self, capacities: list[int | None]) -> None:
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.students = [
            User.objects.create(username=f"s{number}") for number in range(NUMBER_OF_STUDENTS)
        ]
        self.courses = [
            Course.objects.create(title=f"C{number}", slug=f"c{number}", capacity=capacity)
            for number, capacity in enumerate(capacities)
        ]
        self.statuses: dict[tuple[int, int], str] = {}

    def teardown(self) -> None:
        if hasattr(self, "atomic"):
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)

    def is_counted(self, student: int, course: int) -> bool:
        return self.statuses.get((student, course)) in COUNTED

    def true_count(self, course: int) -> int:
        return sum(self.is_counted(student, course) for student in range(NUMBER_OF_STUDENTS))

    def is_full(self, course: int) -> bool:
        capacity = self.courses[course].capacity
        return capacity is not None and self.true_count(course) >= capacity

    def pair(self, student: int, course: int) -> dict[str, Any]:
        return {"student": self.students[student], "course": self.courses[course]}

    @rule(student=STUDENT, course=COURSE)
    def enroll(self, student: int, course: int) -> None:
        arguments = self.pair(student, course)
        if self.is_counted(student, course):
            enrollment, changed = enroll(**arguments)
            assert (enrollment.status, changed) == (self.statuses[student, course], False)
        elif self.is_full(course):
            with pytest.raises(CourseFull):
                enroll(**arguments)
        else:
            enrollment, changed = enroll(**arguments)
            assert (enrollment.status, changed) == ("active", True)
            self.statuses[student, course] = "active"

    @rule(student=STUDENT, course=COURSE)
    def unenroll(self, student: int, course: int) -> None:
        changed = unenroll(**self.pair(student, course))
        assert changed == self.is_counted(student, course)
        if changed:
            self.statuses[student, course] = "withdrawn"

    @rule(student=STUDENT, course=COURSE)
    def leave(self, student: int, course: int) -> None:
        arguments = self.pair(student, course)
        if self.statuses.get((student, course)) == "completed":
            with pytest.raises(CourseCompleted):
                leave(**arguments)
        elif self.is_counted(student, course):
            assert leave(**arguments) is True
            self.statuses[student, course] = "withdrawn"
        else:
            assert leave(**arguments) is False

    @rule(student=STUDENT, course=COURSE, status=STATUS)
    def set_status(self, student: int, course: int, status: str) -> None:
        arguments = self.pair(student, course) | {"status": status}
        old_status = self.statuses.get((student, course))
        if old_status is None:
            with pytest.raises(NotEnrolled):
                set_status(**arguments)
        elif old_status == "withdrawn" and status in COUNTED and self.is_full(course):
            with pytest.raises(CourseFull):
                set_status(**arguments)
        else:
            assert set_status(**arguments) == (status != old_status)
            self.statuses[student, course] = status

    @rule(student=STUDENT, source=COURSE, destination=COURSE)  # `target` is a word of Hypothesis
    def transfer(self, student: int, source: int, destination: int) -> None:
        arguments = {
            "student": self.students[student],
            "source": self.courses[source],
            "target": self.courses[destination],
        }
        is_active = self.statuses.get((student, source)) == "active"
        is_in_destination = self.is_counted(student, destination)
        if source == destination:
            with pytest.raises(ValueError, match="same course"):
                transfer(**arguments)
        elif not is_active and not is_in_destination:
            with pytest.raises(NotEnrolled):
                transfer(**arguments)
        elif is_active and not is_in_destination and self.is_full(destination):
            with pytest.raises(CourseFull):
                transfer(**arguments)
        else:
            enrollment, changed = transfer(**arguments)
            assert (enrollment.course, changed) == (self.courses[destination], is_active)
            if is_active:
                self.statuses[student, source] = "withdrawn"
                self.statuses[student, destination] = enrollment.status

    @rule(students=STUDENTS, course=COURSE)
    def enroll_many(self, students: list[int], course: int) -> None:
        result = enroll_many(
            course=self.courses[course], students=[self.students[student] for student in students]
        )
        created = reenrolled = unchanged = 0
        rejected = []
        for student in dict.fromkeys(students):
            if self.is_counted(student, course):
                unchanged += 1
            elif self.is_full(course):
                rejected.append(self.students[student].pk)
            else:
                reenrolled += (student, course) in self.statuses
                created += (student, course) not in self.statuses
                self.statuses[student, course] = "active"
        assert result == BulkResult(
            created=created, reenrolled=reenrolled, unchanged=unchanged, rejected=tuple(rejected)
        )

    @rule(students=STUDENTS, course=COURSE)
    def unenroll_many(self, students: list[int], course: int) -> None:
        result = unenroll_many(
            course=self.courses[course], students=[self.students[student] for student in students]
        )
        withdrawn = {student for student in students if self.is_counted(student, course)}
        assert result == BulkResult(
            withdrawn=len(withdrawn), unchanged=len(set(students) - withdrawn)
        )
        for student in withdrawn:
            self.statuses[student, course] = "withdrawn"

    @rule(student=STUDENT)
    def erase_student(self, student: int) -> None:
        rows_of_student = [key for key in self.statuses if key[0] == student]
        assert erase_student(student=self.students[student]) == len(rows_of_student)
        for key in rows_of_student:
            del self.statuses[key]

    @rule(course=COURSE)
    def save_a_stale_course(self, course: int) -> None:
        self.courses[course].save()

    @rule(student=STUDENT, course=COURSE)
    def change_rows_and_roll_back(self, student: int, course: int) -> None:
        with transaction.atomic():
            if not self.is_full(course):
                enroll(**self.pair(student, course))
            unenroll(**self.pair(student, course))
            erase_student(student=self.students[student])
            transaction.set_rollback(True)

    @rule(course=COURSE, stored=st.integers(0, 5))
    def set_a_wrong_count_and_rebuild(self, course: int, stored: int) -> None:
        set_stored_count(self.courses[course], stored)
        drift = stored - self.true_count(course)
        corrected = [drifted_course.drift for drifted_course in rebuild()]
        assert corrected == ([drift] if drift else [])

    @precondition(lambda self: hasattr(self, "statuses"))
    @invariant()
    def rows_counters_and_history_match_the_model(self) -> None:
        rows = Enrollment.objects.values_list("student", "course", "status")
        assert {(student, course): status for student, course, status in rows} == {
            (self.students[student].pk, self.courses[course].pk): status
            for (student, course), status in self.statuses.items()
        }
        counts = Course.objects.with_drift().order_by("pk")
        assert list(counts.values_list("total_enrollments", "drift")) == [
            (self.true_count(course), 0) for course in range(NUMBER_OF_COURSES)
        ]
        assert history_mismatches() == set()


@pytest.mark.timeout(300)
def test_services_match_the_model(db: None) -> None:
    run_state_machine_as_test(
        ServicesMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
