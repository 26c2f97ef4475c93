"""Services in a caller's transaction whose snapshot is older than another commit.

Under REPEATABLE READ the caller's plain reads do not see that commit. The services must.
"""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, transaction

from courses.models import Course
from courses.transactions import is_transient, retry_transaction
from enrollments.models import Enrollment
from enrollments.services import (
    BulkResult,
    CourseFull,
    enroll,
    enroll_many,
    erase_student,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from tests.support.counts import drift_by_title
from tests.support.databases import connection_options
from tests.support.enrollments import (
    MakeCourse,
    MakeStudents,
    set_stored_count,
    stored_count,
)
from tests.support.threads import ConcurrentThread

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True, params=["read committed", "repeatable read"])
def isolation_level(request: pytest.FixtureRequest) -> Iterator[None]:
    with connection_options(isolation_level=request.param):
        yield
    assert drift_by_title() == {}


def run_with_stale_snapshot(
    function: Callable[[], Any], *, after_commit_of: Callable[[], Any]
) -> Any:
    """Read all rows in a transaction, let another connection commit, then run the function."""
    with transaction.atomic():
        list(Course.objects.with_drift())
        list(Enrollment.objects.all())
        ConcurrentThread(after_commit_of).start_and_finish()
        return function()


class TestSingleStudent:
    def test_enroll_sees_another_enrollment(self, course: Course, student: User) -> None:
        _, changed = run_with_stale_snapshot(
            lambda: enroll(student=student, course=course),
            after_commit_of=lambda: enroll(student=student, course=course),
        )
        assert changed is False

    def test_enroll_sees_a_withdrawal(self, course: Course, student: User) -> None:
        enroll(student=student, course=course)
        _, changed = run_with_stale_snapshot(
            lambda: enroll(student=student, course=course),
            after_commit_of=lambda: unenroll(student=student, course=course),
        )
        assert changed is True

    def test_enroll_sees_that_the_last_seat_is_taken(
        self, make_course: MakeCourse, make_students: MakeStudents
    ) -> None:
        course = make_course(capacity=1)
        first, second = make_students(2)
        with pytest.raises(CourseFull):
            run_with_stale_snapshot(
                lambda: enroll(student=second, course=course),
                after_commit_of=lambda: enroll(student=first, course=course),
            )

    def test_unenroll_sees_an_enrollment(self, course: Course, student: User) -> None:
        changed = run_with_stale_snapshot(
            lambda: unenroll(student=student, course=course),
            after_commit_of=lambda: enroll(student=student, course=course),
        )
        assert changed is True

    def test_unenroll_sees_another_withdrawal(self, course: Course, student: User) -> None:
        enroll(student=student, course=course)
        changed = run_with_stale_snapshot(
            lambda: unenroll(student=student, course=course),
            after_commit_of=lambda: unenroll(student=student, course=course),
        )
        assert changed is False

    def test_set_status_sees_a_withdrawal(self, course: Course, student: User) -> None:
        enroll(student=student, course=course)
        changed = run_with_stale_snapshot(
            lambda: set_status(student=student, course=course, status="completed"),
            after_commit_of=lambda: set_status(student=student, course=course, status="withdrawn"),
        )
        assert changed is True
        assert Enrollment.objects.get().status == "completed"

    def test_transfer_sees_an_enrollment_in_the_source(
        self, make_course: MakeCourse, student: User
    ) -> None:
        source, target = make_course(), make_course()
        enrollment, changed = run_with_stale_snapshot(
            lambda: transfer(student=student, source=source, target=target),
            after_commit_of=lambda: enroll(student=student, course=source),
        )
        assert (enrollment.course, changed) == (target, True)

    def test_erase_student_decrements_by_the_current_status(
        self, course: Course, student: User
    ) -> None:
        enroll(student=student, course=course)
        erased = run_with_stale_snapshot(
            lambda: erase_student(student=student),
            after_commit_of=lambda: unenroll(student=student, course=course),
        )
        assert erased == 1
        assert stored_count(course) == 0


class TestManyStudents:
    def test_enroll_many_sees_enrollments_and_withdrawals(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        withdrawn, enrolled, enrolled_concurrently, new = make_students(4)
        enroll_many(course=course, students=[withdrawn, enrolled])

        def unenroll_one_and_enroll_another() -> None:
            unenroll(student=withdrawn, course=course)
            enroll(student=enrolled_concurrently, course=course)

        students = [withdrawn, enrolled, enrolled_concurrently, new]
        result = run_with_stale_snapshot(
            lambda: enroll_many(course=course, students=students),
            after_commit_of=unenroll_one_and_enroll_another,
        )
        assert result == BulkResult(created=1, reenrolled=1, unchanged=2)

    def test_unenroll_many_sees_a_withdrawal(
        self, course: Course, make_students: MakeStudents
    ) -> None:
        students = make_students(4)
        enroll_many(course=course, students=students)
        result = run_with_stale_snapshot(
            lambda: unenroll_many(course=course, students=students),
            after_commit_of=lambda: unenroll(student=students[0], course=course),
        )
        assert result == BulkResult(withdrawn=3, unchanged=1)


@pytest.mark.parametrize("isolation_level", ["repeatable read"], indirect=True)
def test_snapshot_isolation_raises_only_in_the_callers_transaction(
    course: Course, make_students: MakeStudents
) -> None:
    first, second = make_students(2)
    enroll_second = Mock(
        side_effect=lambda: run_with_stale_snapshot(
            lambda: enroll(student=second, course=course),
            after_commit_of=lambda: enroll(student=first, course=course),
        )
    )
    with connection_options(init_command="SET innodb_snapshot_isolation = ON"):
        with pytest.raises(OperationalError, match="1020") as exception:
            enroll_second()
        assert is_transient(exception.value)
        unenroll(student=first, course=course)
        enroll_second.reset_mock()
        retry_transaction()(enroll_second)()
    assert enroll_second.call_count == 1


def test_a_recount_includes_concurrent_enrollments(
    course: Course, make_students: MakeStudents
) -> None:
    students = make_students(3)
    enroll_many(course=course, students=students[:2])

    def enroll_and_lower_the_counter() -> None:
        enroll(student=students[2], course=course)
        set_stored_count(course, 0)

    changed = run_with_stale_snapshot(
        lambda: unenroll(student=students[0], course=course),
        after_commit_of=enroll_and_lower_the_counter,
    )
    assert changed is True
    assert stored_count(course) == 2


def test_rows_and_counter_roll_back_together(course: Course, make_students: MakeStudents) -> None:
    first, second = make_students(2)

    class CallerError(Exception):
        pass

    def enroll_and_fail() -> None:
        enroll(student=second, course=course)
        raise CallerError

    with pytest.raises(CallerError):
        run_with_stale_snapshot(
            enroll_and_fail, after_commit_of=lambda: enroll(student=first, course=course)
        )
    assert Enrollment.objects.get().student == first


def test_a_transaction_begun_by_an_on_commit_hook_has_its_own_snapshot(
    course: Course, make_students: MakeStudents
) -> None:
    """retry_transaction() sets READ COMMITTED for its own transaction only."""
    students = make_students(2)
    enroll_many(course=course, students=students)
    results = []

    def unenroll_again_in_a_new_transaction() -> None:
        changed = run_with_stale_snapshot(
            lambda: unenroll(student=students[0], course=course),
            after_commit_of=lambda: unenroll(student=students[0], course=course),
        )
        results.append(changed)

    @retry_transaction()
    def add_hook() -> None:
        transaction.on_commit(unenroll_again_in_a_new_transaction)

    add_hook()
    assert results == [False]
