"""enroll_many() and unenroll_many()."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from courses.models import Course
from enrollments.models import Enrollment
from enrollments.rows import CHUNK_SIZE
from enrollments.services import (
    BulkResult,
    Outcome,
    Registration,
    enroll,
    enroll_many,
    register_many,
    unenroll,
    unenroll_many,
)
from tests.support.enrollments import (
    MISSING_PK,
    MakeCourse,
    MakeStudents,
    User,
    rolled_back,
    stored_count,
)

both_services = pytest.mark.parametrize("service", [enroll_many, unenroll_many])


class TestEnrollMany:
    def test_inserts_new_rows_and_reactivates_withdrawn_ones(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(5)
        enroll_many(course=course, students=students[:2])
        unenroll(student=students[0], course=course)
        result = enroll_many(course=course, students=[student.pk for student in students])
        assert result == BulkResult(created=3, reenrolled=1, unchanged=1)
        assert result.changed == 4
        assert stored_count(course) == 5

    def test_a_repeated_call_changes_nothing(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(5)
        enroll_many(course=course, students=students)
        assert enroll_many(course=course, students=students) == BulkResult(unchanged=5)
        assert stored_count(course) == 5

    def test_assigns_seats_in_the_given_order(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        course = make_course(capacity=3)
        students = make_students(6)
        enroll(student=students[4], course=course)
        result = enroll_many(course=course, students=reversed(students))
        assert result == BulkResult(
            created=2, unchanged=1, rejected=(students[2].pk, students[1].pk, students[0].pk)
        )
        assert stored_count(course) == 3

    def test_inserts_the_same_values_as_enroll(
        self,
        make_course: MakeCourse,
        make_students: MakeStudents,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        now = timezone.now()
        monkeypatch.setattr(timezone, "now", lambda: now)
        single, bulk = make_course(), make_course()
        first, second = make_students(2)
        enroll(student=first, course=single)
        enroll_many(course=bulk, students=[first, second])
        columns = ["student", "status", "enrollment_date", "withdrawal_date"]
        rows = Enrollment.objects.filter(student=first).values(*columns)
        assert rows.get(course=single) == rows.get(course=bulk)


class TestUnenrollMany:
    def test_withdraws_enrolled_students_only(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(4)
        enroll_many(course=course, students=students[:3])
        unenroll(student=students[0], course=course)
        result = unenroll_many(course=course, students=students)
        assert result == BulkResult(withdrawn=2, unchanged=2)
        assert stored_count(course) == 0


class TestStudents:
    def test_a_duplicate_student_is_counted_once(self, course: Course, student: User) -> None:
        assert enroll_many(course=course, students=[student, student.pk]).created == 1
        assert unenroll_many(course=course, students=[student, student]).withdrawn == 1

    @both_services
    @pytest.mark.parametrize("students", [[], iter(())], ids=["list", "iterator"])
    def test_an_empty_iterable_changes_nothing(
        self, course: Course, service: Callable[..., BulkResult], students: list[User]
    ) -> None:
        assert service(course=course, students=students) == BulkResult()

    @pytest.mark.parametrize("number", [CHUNK_SIZE + 1, 3 * CHUNK_SIZE])
    def test_an_unknown_student_among_many_rolls_back_all(
        self, course: Course, make_students: MakeStudents, number: int
    ) -> None:
        student_ids = [student.pk for student in make_students(number)]
        with pytest.raises(User.DoesNotExist, match=str(MISSING_PK)):
            enroll_many(course=course, students=[*student_ids, MISSING_PK])
        assert not Enrollment.objects.exists()
        assert stored_count(course) == 0

    @pytest.mark.django_db(transaction=True)
    def test_an_unknown_student_rolls_back_all_withdrawals(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(5)
        enroll_many(course=course, students=students)
        with pytest.raises(User.DoesNotExist):
            unenroll_many(course=course, students=[*students, MISSING_PK])
        assert stored_count(course) == 5


class TestOutcomes:
    def test_outcomes_are_listed_by_student_in_the_given_order(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        course = make_course(capacity=2)
        enrolled, withdrawn, new, last = make_students(4)
        enroll_many(course=course, students=[enrolled, withdrawn])
        unenroll(student=withdrawn, course=course)
        students = [last, withdrawn, enrolled, new]
        result = enroll_many(course=course, students=students, outcomes=True)
        assert list(result.outcomes.items()) == [
            (last.pk, Outcome.CREATED),
            (withdrawn.pk, Outcome.REJECTED),
            (enrolled.pk, Outcome.UNCHANGED),
            (new.pk, Outcome.REJECTED),
        ]
        result = unenroll_many(course=course, students=students, outcomes=True)
        assert list(result.outcomes.values()) == [
            Outcome.WITHDRAWN,
            Outcome.UNCHANGED,
            Outcome.WITHDRAWN,
            Outcome.UNCHANGED,
        ]

    @both_services
    def test_outcomes_are_none_unless_requested(
        self, course: Course, student: User, service: Callable[..., BulkResult]
    ) -> None:
        assert service(course=course, students=[student]).outcomes is None

    def test_an_outcome_equals_its_text(self) -> None:
        assert Outcome.CREATED == "created"


class TestChunkSize:
    def test_each_chunk_updates_the_counter_once(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(7)
        enroll(student=students[6], course=course)
        with CaptureQueriesContext(connection) as queries:
            result = enroll_many(
                course=course, students=[*students, students[0]], chunk_size=3, outcomes=True
            )
        assert (result.created, result.unchanged) == (6, 1)
        assert list(result.outcomes) == [student.pk for student in students]
        updates = [query for query in queries if query["sql"].startswith("UPDATE")]
        assert len(updates) == 2
        assert stored_count(course) == 7
        assert unenroll_many(course=course, students=students, chunk_size=1).withdrawn == 7

    def test_chunks_assign_seats_in_the_given_order(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        course, students = make_course(capacity=3), make_students(5)
        result = enroll_many(course=course, students=students, chunk_size=2)
        assert (result.created, result.rejected) == (3, (students[3].pk, students[4].pk))

    @both_services
    def test_chunk_size_must_be_positive(
        self, service: Callable[..., BulkResult], course: Course, student: User
    ) -> None:
        with pytest.raises(ValueError, match="at least 1, not 0"):
            service(course=course, students=[student], chunk_size=0)

    @pytest.mark.django_db(transaction=True)
    def test_chunks_before_an_error_are_committed_and_a_repeated_call_completes(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(5)
        with pytest.raises(User.DoesNotExist):
            enroll_many(course=course, students=[*students, MISSING_PK], chunk_size=2)
        assert stored_count(course) == 4
        assert enroll_many(course=course, students=students, chunk_size=2).created == 1
        assert stored_count(course) == 5

    def test_chunks_inside_a_transaction_roll_back_with_it(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        with rolled_back():
            enroll_many(course=course, students=make_students(3), chunk_size=1)
        assert stored_count(course) == 0
        assert not Enrollment.objects.exists()


class TestManyStudents:
    def test_more_students_than_one_statement_takes(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(5 * CHUNK_SIZE)
        most = students[: 3 * CHUNK_SIZE - 1]
        assert enroll_many(course=course, students=students).created == len(students)
        assert unenroll_many(course=course, students=most).withdrawn == len(most)
        result = enroll_many(course=course, students=students)
        assert result == BulkResult(reenrolled=len(most), unchanged=len(students) - len(most))
        assert stored_count(course) == len(students)

    def test_a_course_smaller_than_the_call_is_read_in_one_query(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(2 * CHUNK_SIZE + 2)
        enroll_many(course=course, students=students[: CHUNK_SIZE + 1])
        with CaptureQueriesContext(connection) as queries:
            result = enroll_many(course=course, students=students)
        assert result == BulkResult(created=CHUNK_SIZE + 1, unchanged=CHUNK_SIZE + 1)
        assert number_of_enrollment_selects(queries) == 1

    def test_a_course_larger_than_the_call_is_read_in_chunks(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(2 * CHUNK_SIZE + 2)
        enroll_many(course=course, students=students)
        half = students[CHUNK_SIZE + 1 :]
        with CaptureQueriesContext(connection) as queries:
            result = enroll_many(course=course, students=half)
        assert result == BulkResult(unchanged=CHUNK_SIZE + 1)
        # The first query finds that the course is larger, and two chunks follow.
        assert number_of_enrollment_selects(queries) == 1 + 2

    def test_the_number_of_queries_does_not_depend_on_the_rows_dates(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(20)
        now = timezone.now()
        register_many(
            course=course,
            registrations=[
                Registration(student=student, enrollment_date=now - timedelta(days=days))
                for days, student in enumerate(students)
            ],
        )
        with CaptureQueriesContext(connection) as queries:
            assert unenroll_many(course=course, students=students).withdrawn == 20
        assert len(queries) < 10


def number_of_enrollment_selects(queries: CaptureQueriesContext) -> int:
    return sum(
        query["sql"].startswith("SELECT") and "enrollments_enrollment" in query["sql"]
        for query in queries
    )
