import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models.signals import post_save, pre_save
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from courses.models import Course
from enrollments.managers import DirectWriteError
from enrollments.models import Enrollment
from enrollments.rows import CHUNK_SIZE
from enrollments.services import (
    BulkResult,
    CourseFull,
    NotEnrolled,
    Outcome,
    Registration,
    enroll,
    enroll_many,
    erase_student,
    register_many,
    set_status,
    transfer,
    unenroll,
    unenroll_many,
)
from tests.conftest import drifts
from tests.support.history import history_mismatches

User = get_user_model()
Make = Callable[..., Any]
NOBODY = 10**8


def stored(course: Course) -> int:
    return Course.objects.values_list("total_enrollments", flat=True).get(pk=course.pk)


@pytest.fixture(autouse=True)
def no_drift_afterwards(db: None) -> Any:
    yield
    assert drifts() == {}


# enroll ---------------------------------------------------------------------------


def test_enroll_adds_a_row_and_moves_the_counter(student: Any, course: Course) -> None:
    row, changed = enroll(student=student, course=course)
    assert changed
    assert (row.student, row.course, row.status) == (student, course, "active")
    assert row == Enrollment.objects.get()
    assert stored(course) == 1


def test_enroll_takes_keys(student: Any, course: Course) -> None:
    row, changed = enroll(student=str(student.pk), course=course.pk)
    assert changed
    assert (row.student, row.course) == (student, course)


# The ways to insert one row.
INSERTING_ONE = pytest.mark.parametrize(
    "insert",
    [
        lambda student, course: enroll(student=student, course=course),
        lambda student, course: enroll_many(course=course, students=[student]),
        lambda student, course: register_many(
            course=course, registrations=[Registration(student, datetime(2026, 1, 1, tzinfo=UTC))]
        ),
    ],
    ids=["enroll", "enroll_many", "register_many"],
)


@contextmanager
def receiving(signal: Signal, receive: Callable[..., None]) -> Iterator[None]:
    signal.connect(receive, sender=Enrollment)
    try:
        yield
    finally:
        signal.disconnect(receive, sender=Enrollment)


@INSERTING_ONE
def test_signal_receivers_are_told_of_one_row_as_save_does(
    student: Any, course: Course, insert: Make
) -> None:
    earlier = datetime(2020, 2, 1, tzinfo=UTC)
    heard = []

    def before(instance: Enrollment, **kwargs: Any) -> None:
        instance.enrollment_date = earlier

    def after(instance: Enrollment, created: bool, **kwargs: Any) -> None:
        heard.append((instance.pk, created))

    with receiving(pre_save, before), receiving(post_save, after):
        insert(student, course)
    row = Enrollment.objects.get()
    assert row.enrollment_date == earlier
    assert heard == [(row.pk, True)]
    assert history_mismatches() == set()


@INSERTING_ONE
@pytest.mark.parametrize(
    "change",
    [
        {"student_id": 10**6},
        {"course_id": 10**6},
        {"status": "withdrawn", "withdrawal_date": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
)
def test_a_receiver_that_would_part_row_and_counter_is_refused(
    student: Any, course: Course, change: dict[str, Any], insert: Make
) -> None:
    def before(instance: Enrollment, **kwargs: Any) -> None:
        vars(instance).update(change)

    with receiving(pre_save, before), pytest.raises(DirectWriteError, match="receiver of pre_save"):
        insert(student, course)
    assert (drifts(), stored(course), history_mismatches()) == ({}, 0, set())


@INSERTING_ONE
def test_a_receiver_may_call_a_service(student: Any, course: Course, insert: Make) -> None:
    def after(instance: Enrollment, **kwargs: Any) -> None:
        unenroll(student=instance.student_id, course=instance.course_id)

    with receiving(post_save, after):
        insert(student, course)
    assert (drifts(), stored(course), history_mismatches()) == ({}, 0, set())


def test_nobody_has_the_key_0(student: Any, course: Course) -> None:
    with pytest.raises(type(student).DoesNotExist):
        enroll(student=0, course=course)
    with pytest.raises(Course.DoesNotExist):
        enroll(student=student, course=0)


def test_enroll_again_changes_nothing(student: Any, course: Course) -> None:
    first, _ = enroll(student=student, course=course)
    again, changed = enroll(student=student, course=course)
    assert not changed
    assert (again, again.enrollment_date) == (first, first.enrollment_date)
    assert stored(course) == 1


def test_enroll_leaves_a_completed_row_as_it_is(student: Any, course: Course) -> None:
    enroll(student=student, course=course)
    set_status(student=student, course=course, status="completed")
    row, changed = enroll(student=student, course=course)
    assert (row.status, changed) == ("completed", False)


def test_enroll_takes_up_a_withdrawn_row(student: Any, course: Course) -> None:
    first, _ = enroll(student=student, course=course)
    unenroll(student=student, course=course)
    row, changed = enroll(student=student, course=course)
    assert changed
    assert (row.pk, row.status, row.withdrawal_date) == (first.pk, "active", None)
    assert row.enrollment_date > first.enrollment_date
    assert Enrollment.objects.get() == row
    assert stored(course) == 1


def test_a_full_course_refuses_the_next(make_course: Make, make_students: Make) -> None:
    course = make_course(capacity=2)
    first, second, third = make_students(3)
    enroll(student=first, course=course)
    enroll(student=second, course=course)
    with pytest.raises(CourseFull, match="is full: all 2 seats") as caught:
        enroll(student=third, course=course)
    assert caught.value.course == course
    # Those who are in are in, and may ask again.
    assert enroll(student=first, course=course)[1] is False
    unenroll(student=first, course=course)
    assert enroll(student=third, course=course)[1] is True
    with pytest.raises(CourseFull):
        enroll(student=first, course=course)
    assert stored(course) == 2


def test_a_course_of_no_seats_is_always_full(make_course: Make, student: Any) -> None:
    with pytest.raises(CourseFull):
        enroll(student=student, course=make_course(capacity=0))


@pytest.mark.parametrize("service", [enroll, unenroll, transfer, set_status, enroll_many])
def test_an_unknown_course_is_said(service: Make, student: Any, course: Course) -> None:
    arguments: dict[str, Any] = {"student": student, "course": NOBODY}
    if service is transfer:
        arguments = {"student": student, "source": course, "target": NOBODY}
    if service is set_status:
        arguments["status"] = "completed"
    if service is enroll_many:
        arguments = {"students": [student], "course": NOBODY}
    with pytest.raises(Course.DoesNotExist, match=str(NOBODY)):
        service(**arguments)


@pytest.mark.parametrize(
    "service", [enroll, unenroll, transfer, set_status, enroll_many, unenroll_many]
)
def test_an_unknown_student_is_said(
    service: Make, student: Any, course: Course, make_course: Make
) -> None:
    arguments: dict[str, Any] = {"student": NOBODY, "course": course}
    if service is transfer:
        arguments = {"student": NOBODY, "source": course, "target": make_course()}
    if service is set_status:
        arguments["status"] = "completed"
    if service in (enroll_many, unenroll_many):
        arguments = {"students": [student, NOBODY], "course": course}
    with pytest.raises(User.DoesNotExist, match=str(NOBODY)):
        service(**arguments)
    assert not Enrollment.objects.exists()


def test_an_unknown_student_is_said_by_a_full_course_too(make_course: Make) -> None:
    for call in (
        lambda: enroll(student=NOBODY, course=make_course(capacity=0)),
        lambda: enroll_many(students=[NOBODY], course=make_course(capacity=0)),
    ):
        with pytest.raises(User.DoesNotExist, match=str(NOBODY)):
            call()


@pytest.mark.parametrize("key", [None, "abc", "", 2**63, -1, AnonymousUser(), User(), object()])
def test_what_can_be_nobodys_key_is_nobodys(course: Course, key: Any) -> None:
    for call in (
        lambda: enroll(student=key, course=course),
        lambda: unenroll(student=key, course=course),
        lambda: enroll_many(students=[key], course=course),
        lambda: erase_student(student=key),
    ):
        with pytest.raises(User.DoesNotExist):
            call()


@pytest.mark.parametrize("wrong", [Course(), True, 7.5])
def test_what_is_no_student_is_said(course: Course, wrong: Any) -> None:
    with pytest.raises(
        TypeError, match=f"Expected a User or its key, not a {type(wrong).__name__}"
    ):
        enroll(student=wrong, course=course)


def test_a_clock_that_stands_still_changes_no_answer(
    student: Any, course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now)
    assert [enroll(student=student, course=course)[1] for _ in range(2)] == [True, False]
    assert [unenroll(student=student, course=course) for _ in range(2)] == [True, False]


def test_a_row_has_its_key_where_the_database_returns_no_rows(
    student: Any, make_course: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MySQL, which has no INSERT … RETURNING."""
    monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
    source, target = make_course(), make_course()
    row, _ = enroll(student=student, course=source)
    assert row == Enrollment.objects.get(course=source)
    row, _ = transfer(student=student, source=source, target=target)
    assert row == Enrollment.objects.get(course=target)


def test_a_new_enrollment_takes_two_statements_on_mysql_and_its_event_a_third(
    student: Any, course: Course
) -> None:
    with CaptureQueriesContext(connection) as queries:
        enroll(student=student, course=course)
    written = [q["sql"] for q in queries if q["sql"].split()[0] in ("UPDATE", "INSERT", "SELECT")]
    verbs = [sql.split()[0] for sql in written]
    of_the_row = ["UPDATE", "INSERT"]
    if connection.vendor != "mysql":
        of_the_row.insert(0, "SELECT")
    assert verbs == [*of_the_row, "INSERT"]


# unenroll, set_status ------------------------------------------------------------


def test_unenroll_keeps_the_row_and_moves_the_counter(student: Any, course: Course) -> None:
    enroll(student=student, course=course)
    assert unenroll(student=student, course=course) is True
    row = Enrollment.objects.get()
    assert row.status == "withdrawn"
    assert row.withdrawal_date >= row.enrollment_date
    assert stored(course) == 0
    assert unenroll(student=student, course=course) is False


def test_unenroll_of_somebody_who_never_was_there_changes_nothing(
    student: Any, course: Course
) -> None:
    assert unenroll(student=student, course=course) is False
    assert not Enrollment.objects.exists()


def test_set_status_moves_the_counter_where_the_status_counts_otherwise(
    student: Any, course: Course
) -> None:
    enroll(student=student, course=course)
    for status, count in [
        ("completed", 1),
        ("withdrawn", 0),
        ("completed", 1),
        ("active", 1),
        ("withdrawn", 0),
        ("active", 1),
    ]:
        assert set_status(student=student, course=course, status=status) is True
        assert set_status(student=student, course=course, status=status) is False
        assert Enrollment.objects.get().status == status
        assert stored(course) == count


def test_set_status_needs_a_seat_to_count_again(make_course: Make, make_students: Make) -> None:
    course = make_course(capacity=1)
    first, second = make_students(2)
    enroll(student=first, course=course)
    unenroll(student=first, course=course)
    enroll(student=second, course=course)
    with pytest.raises(CourseFull):
        set_status(student=first, course=course, status="completed")
    assert set_status(student=second, course=course, status="completed")


def test_set_status_says_what_is_wrong(student: Any, course: Course) -> None:
    with pytest.raises(NotEnrolled, match="enroll them first"):
        set_status(student=student, course=course, status="completed")
    with pytest.raises(ValueError, match="“asleep” is no status: use one of active, completed"):
        set_status(student=student, course=course, status="asleep")
    with pytest.raises(Enrollment.DoesNotExist):
        set_status(student=student, course=course, status="active")


# A counter that was wrong before --------------------------------------------------


@pytest.mark.parametrize("leave", ["unenroll", "unenroll_many", "set_status", "transfer", "erase"])
def test_a_counter_too_low_to_fall_is_recounted_and_logged(
    make_students: Make,
    course: Course,
    make_course: Make,
    caplog: pytest.LogCaptureFixture,
    leave: str,
) -> None:
    students = make_students(3)
    enroll_many(course=course, students=students)
    Course.objects.filter(pk=course.pk).update(total_enrollments=0)
    student = students[0]
    with caplog.at_level(logging.ERROR, "enrollments.services"):
        {
            "unenroll": lambda: unenroll(student=student, course=course),
            "unenroll_many": lambda: unenroll_many(course=course, students=[student]),
            "set_status": lambda: set_status(student=student, course=course, status="withdrawn"),
            "transfer": lambda: transfer(student=student, source=course, target=make_course()),
            "erase": lambda: erase_student(student=student),
        }[leave]()
    assert stored(course) == 2
    assert f"course {course.pk}, 0, was too low to fall by 1" in caplog.text


# transfer -------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["up", "down"])
def test_transfer_moves_both_counters(student: Any, make_course: Make, order: str) -> None:
    source, target = make_course(), make_course()
    if order == "down":
        source, target = target, source
    enroll(student=student, course=source)
    row, changed = transfer(student=student, source=source, target=target)
    assert changed
    assert (row.course, row.status) == (target, "active")
    assert (stored(source), stored(target)) == (0, 1)
    assert Enrollment.objects.get(course=source).status == "withdrawn"
    # Again: done already.
    assert transfer(student=student, source=source, target=target) == (row, False)
    # And back.
    assert transfer(student=student, source=target, target=source)[1] is True
    assert (stored(source), stored(target)) == (1, 0)


def test_transfer_to_a_full_course_changes_nothing(make_students: Make, make_course: Make) -> None:
    first, second = make_students(2)
    source, target = make_course(), make_course(capacity=1)
    enroll(student=first, course=source)
    enroll(student=second, course=target)
    with pytest.raises(CourseFull, match=target.title):
        transfer(student=first, source=source, target=target)
    assert Enrollment.objects.get(student=first).status == "active"
    assert (stored(source), stored(target)) == (1, 1)


def test_transfer_of_nothing_active_is_refused(student: Any, make_course: Make) -> None:
    source, target = make_course(), make_course()
    with pytest.raises(NotEnrolled, match="no active enrollment"):
        transfer(student=student, source=source, target=target)
    enroll(student=student, course=source)
    set_status(student=student, course=source, status="completed")
    with pytest.raises(NotEnrolled):
        transfer(student=student, source=source, target=target)
    with pytest.raises(ValueError, match="same course"):
        transfer(student=student, source=source, target=source)


def test_transfer_of_somebody_who_is_in_both_leaves_the_one(
    student: Any, make_course: Make
) -> None:
    source, target = make_course(), make_course(capacity=1)
    enroll(student=student, course=source)
    enroll(student=student, course=target)
    row, changed = transfer(student=student, source=source, target=target)
    assert changed
    assert row.course == target
    assert (stored(source), stored(target)) == (0, 1)


# Many at once ----------------------------------------------------------------------


def test_enroll_many_creates_takes_up_and_leaves(course: Course, make_students: Make) -> None:
    students = make_students(5)
    enroll_many(course=course, students=students[:2])
    unenroll(student=students[0], course=course)
    result = enroll_many(course=course, students=[s.pk for s in students])
    assert result == BulkResult(created=3, reenrolled=1, unchanged=1)
    assert result.changed == 4
    assert stored(course) == 5
    assert enroll_many(course=course, students=students) == BulkResult(unchanged=5)


def test_enroll_many_gives_seats_in_the_given_order(make_course: Make, make_students: Make) -> None:
    course = make_course(capacity=3)
    students = make_students(6)
    enroll(student=students[4], course=course)
    result = enroll_many(course=course, students=reversed(students))
    assert result == BulkResult(
        created=2, unchanged=1, rejected=(students[2].pk, students[1].pk, students[0].pk)
    )
    assert stored(course) == 3


def test_the_same_student_twice_is_one(course: Course, student: Any) -> None:
    assert enroll_many(course=course, students=[student, student.pk]).created == 1
    assert unenroll_many(course=course, students=[student, student]).withdrawn == 1


def test_nobody_is_no_problem(course: Course) -> None:
    assert enroll_many(course=course, students=[]) == BulkResult()
    assert unenroll_many(course=course, students=iter(())) == BulkResult()


def test_unenroll_many(course: Course, make_students: Make) -> None:
    students = make_students(4)
    enroll_many(course=course, students=students[:3])
    unenroll(student=students[0], course=course)
    result = unenroll_many(course=course, students=students)
    assert result == BulkResult(withdrawn=2, unchanged=2)
    assert stored(course) == 0


def test_more_students_than_fit_in_one_statement(course: Course, make_students: Make) -> None:
    students = make_students(4_500)
    assert enroll_many(course=course, students=students).created == 4_500
    assert unenroll_many(course=course, students=students[:2_500]).withdrawn == 2_500
    result = enroll_many(course=course, students=students)
    assert result == BulkResult(reenrolled=2_500, unchanged=2_000)
    assert stored(course) == 4_500


def test_outcomes_are_told_on_request(make_course: Make, make_students: Make) -> None:
    course = make_course(capacity=2)
    here, left, new, late = make_students(4)
    enroll_many(course=course, students=[here, left])
    unenroll(student=left, course=course)
    everybody = [late, left, here, new]
    result = enroll_many(course=course, students=everybody, outcomes=True)
    assert list(result.outcomes.items()) == [
        (late.pk, Outcome.CREATED),
        (left.pk, Outcome.REJECTED),
        (here.pk, Outcome.UNCHANGED),
        (new.pk, Outcome.REJECTED),
    ]
    assert result.outcomes[late.pk] == "created"
    result = unenroll_many(course=course, students=everybody, outcomes=True)
    assert [*result.outcomes.values()] == ["withdrawn", "unchanged", "withdrawn", "unchanged"]
    assert unenroll_many(course=course, students=everybody).outcomes is None


def test_chunks_are_transactions_of_their_own(course: Course, make_students: Make) -> None:
    students = make_students(7)
    enroll(student=students[6], course=course)
    with CaptureQueriesContext(connection) as queries:
        result = enroll_many(
            course=course, students=[*students, students[0]], chunk_size=3, outcomes=True
        )
    assert (result.created, result.unchanged) == (6, 1)
    assert list(result.outcomes) == [student.pk for student in students]
    moved = [query["sql"] for query in queries if query["sql"].startswith("UPDATE")]
    assert len(moved) == 2
    assert stored(course) == 7
    assert unenroll_many(course=course, students=students, chunk_size=1).withdrawn == 7


def test_chunks_take_seats_in_the_given_order(make_course: Make, make_students: Make) -> None:
    course, students = make_course(capacity=3), make_students(5)
    result = enroll_many(course=course, students=students, chunk_size=2)
    assert (result.created, result.rejected) == (3, (students[3].pk, students[4].pk))


@pytest.mark.parametrize("service", [enroll_many, unenroll_many])
def test_a_chunk_holds_somebody(service: Make, course: Course, student: Any) -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        service(course=course, students=[student], chunk_size=0)


@pytest.mark.django_db(transaction=True)
def test_an_error_leaves_whole_chunks_and_the_same_call_completes(
    course: Course, make_students: Make
) -> None:
    students = make_students(5)
    with pytest.raises(User.DoesNotExist):
        enroll_many(course=course, students=[*students, NOBODY], chunk_size=2)
    assert stored(course) == 4
    assert enroll_many(course=course, students=students, chunk_size=2).created == 1
    with pytest.raises(User.DoesNotExist):
        unenroll_many(course=course, students=[*students, NOBODY])
    assert stored(course) == 5


def test_chunks_inside_a_transaction_go_back_with_it(course: Course, make_students: Make) -> None:
    with suppress(Undo), transaction.atomic():
        enroll_many(course=course, students=make_students(3), chunk_size=1)
        raise Undo
    assert stored(course) == 0
    assert not Enrollment.objects.exists()


@pytest.mark.parametrize("number", [CHUNK_SIZE + 1, 3 * CHUNK_SIZE])
def test_an_unknown_student_among_many_undoes_all(
    course: Course, make_students: Make, number: int
) -> None:
    students = [student.pk for student in make_students(number)]
    with pytest.raises(User.DoesNotExist, match=f"the key {NOBODY}"):
        enroll_many(course=course, students=[*students, NOBODY])
    assert not Enrollment.objects.exists()
    assert stored(course) == 0


def test_a_small_course_is_read_whole_and_a_large_one_is_not(
    course: Course, make_students: Make
) -> None:
    students = make_students(2 * CHUNK_SIZE + 2)
    some, others = students[: CHUNK_SIZE + 1], students[CHUNK_SIZE + 1 :]
    enroll_many(course=course, students=some)
    for asked, reads, result in [
        (students, 1, BulkResult(created=CHUNK_SIZE + 1, unchanged=CHUNK_SIZE + 1)),
        (others, 1 + 2, BulkResult(unchanged=CHUNK_SIZE + 1)),
    ]:
        with CaptureQueriesContext(connection) as queries:
            assert enroll_many(course=course, students=asked) == result
        rows = [q["sql"] for q in queries if q["sql"].startswith("SELECT")]
        assert len([sql for sql in rows if "enrollments_enrollment" in sql]) == reads
    assert stored(course) == len(students)


def test_many_rows_are_as_single_ones_are(
    make_course: Make, make_students: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now)
    one, many = make_course(), make_course()
    first, second = make_students(2)
    enroll(student=first, course=one)
    enroll_many(course=many, students=[first, second])
    names = ["student", "status", "enrollment_date", "withdrawal_date"]
    rows = Enrollment.objects.filter(student=first).values(*names)
    assert rows.get(course=one) == rows.get(course=many)


def test_dates_of_their_own_cost_no_statements_of_their_own(
    course: Course, make_students: Make
) -> None:
    students = make_students(20)
    for student in students:
        enroll(student=student, course=course)
    with CaptureQueriesContext(connection) as queries:
        assert unenroll_many(course=course, students=students).withdrawn == 20
    assert len(queries) < 10


def test_register_many_makes_rows_as_given(course: Course, make_students: Make) -> None:
    first, second, third = make_students(3)
    day = datetime(2014, 10, 1, tzinfo=UTC)
    later = day + timedelta(days=12)
    registrations = [
        Registration(student=first, enrollment_date=day),
        Registration(
            student=second, enrollment_date=day, withdrawal_date=later, status="withdrawn"
        ),
        Registration(student=third, enrollment_date=later, status="completed"),
    ]
    assert register_many(course=course, registrations=registrations).created == 3
    assert stored(course) == 2
    assert register_many(course=course, registrations=registrations) == BulkResult(unchanged=3)
    moved = [
        Registration(student=first, enrollment_date=later),
        Registration(student=second, enrollment_date=day),
        Registration(student=third, enrollment_date=day, withdrawal_date=later, status="withdrawn"),
    ]
    result = register_many(course=course, registrations=moved)
    assert result == BulkResult(updated=1, reenrolled=1, withdrawn=1)
    rows = Enrollment.objects.in_bulk(field_name="pk").values()
    assert {(r.student, r.status, r.enrollment_date, r.withdrawal_date) for r in rows} == {
        (first, "active", later, None),
        (second, "active", day, None),
        (third, "withdrawn", day, later),
    }


@pytest.mark.parametrize(
    ("status", "withdrawn"), [("withdrawn", False), ("active", True), ("asleep", False)]
)
def test_register_many_refuses_what_makes_no_sense(
    course: Course, student: Any, status: str, withdrawn: bool
) -> None:
    day = datetime(2014, 10, 1, tzinfo=UTC)
    registration = Registration(
        student=student,
        enrollment_date=day,
        withdrawal_date=day if withdrawn else None,
        status=status,
    )
    with pytest.raises(ValueError, match=r"withdrawal date|no status"):
        register_many(course=course, registrations=[registration])


def test_a_registration_without_dates_keeps_those_of_the_row(
    course: Course, make_students: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    day, now = datetime(2014, 10, 1, tzinfo=UTC), timezone.now()
    here, left, new = make_students(3)
    gone = day + timedelta(days=12)
    dated = [
        Registration(student=here, enrollment_date=day),
        Registration(student=left, enrollment_date=day, withdrawal_date=gone, status="withdrawn"),
    ]
    register_many(course=course, registrations=dated)
    monkeypatch.setattr(timezone, "now", lambda: now)

    def register(status: str, enrolled: datetime | None = None) -> BulkResult:
        return register_many(
            course=course,
            registrations=[
                Registration(
                    student=student, enrollment_date=enrolled, status=status, overwrite_dates=False
                )
                for student in (here, left, new)
            ],
        )

    def rows() -> list[tuple[Any, ...]]:
        names = ["status", "enrollment_date", "withdrawal_date"]
        return list(Enrollment.objects.order_by("student").values_list(*names))

    assert register("withdrawn") == BulkResult(withdrawn=1, created=1, unchanged=1)
    assert rows() == [
        ("withdrawn", day, now),
        ("withdrawn", day, gone),
        ("withdrawn", now, now),
    ]
    assert register("withdrawn", gone) == BulkResult(unchanged=3)
    assert register("active").reenrolled == 3
    assert rows() == [("active", now, None)] * 3
    assert register("completed", day).updated == 3
    assert rows() == [("completed", day, None)] * 3
    assert register("active").updated == 3
    assert rows() == [("active", day, None)] * 3


def test_an_exact_registration_has_a_date(course: Course, student: Any) -> None:
    with pytest.raises(ValueError, match="has an enrollment date"):
        register_many(
            course=course, registrations=[Registration(student=student, enrollment_date=None)]
        )


# erase_student ----------------------------------------------------------------------


def test_erase_student_deletes_all_rows_and_moves_all_counters(
    make_course: Make, make_students: Make
) -> None:
    student, other = make_students(2)
    courses = [make_course() for _ in range(3)]
    for course in courses:
        enroll_many(course=course, students=[student, other])
    unenroll(student=student, course=courses[0])
    set_status(student=student, course=courses[1], status="completed")
    assert erase_student(student=student) == 3
    assert [stored(course) for course in courses] == [1, 1, 1]
    assert erase_student(student=student) == 0
    student.delete()
    with pytest.raises(User.DoesNotExist):
        erase_student(student=NOBODY)


# Inside a caller's transaction --------------------------------------------------------


class Undo(Exception):
    pass


def test_the_counter_goes_back_with_the_rows(course: Course, make_students: Make) -> None:
    first, second = make_students(2)
    with suppress(Undo), transaction.atomic():
        enroll(student=second, course=course)
        with suppress(Undo), transaction.atomic():
            enroll(student=first, course=course)
            raise Undo
        assert stored(course) == 1
        unenroll(student=second, course=course)
        raise Undo
    assert stored(course) == 0
    assert not Enrollment.objects.exists()


def test_a_refusal_leaves_the_callers_transaction_usable(
    make_course: Make, make_students: Make
) -> None:
    first, second = make_students(2)
    full, free = make_course(capacity=1), make_course()
    with transaction.atomic():
        enroll(student=first, course=full)
        with pytest.raises(CourseFull):
            enroll(student=second, course=full)
        with pytest.raises(User.DoesNotExist):
            enroll(student=NOBODY, course=free)
        assert enroll(student=first, course=full)[1] is False
        enroll(student=second, course=free)
    assert (stored(full), stored(free)) == (1, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, c: enroll(student=s, course=c),
        lambda s, c: enroll_many(course=c, students=[s]),
        lambda s, c: erase_student(student=s),
    ],
)
def test_a_row_that_is_gone_when_it_is_to_be_written_is_a_conflict(
    student: Any, course: Course, call: Callable[[Any, Course], object]
) -> None:
    """Only on a cluster can others erase it; without the error the counter would move for it."""
    enroll(student=student, course=course)
    unenroll(student=student, course=course)

    def erase_first(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(("UPDATE", "DELETE")) and "enrollments_enrollment" in sql:
            execute("DELETE FROM enrollments_enrollment", (), False, context)
        return execute(sql, params, many, context)

    with (
        connection.execute_wrapper(erase_first),
        pytest.raises(OperationalError, match="erased elsewhere"),
    ):
        call(student, course)
    assert Enrollment.objects.get().status == "withdrawn"


@pytest.mark.parametrize("number", [1, 2])
def test_who_writes_rows_without_the_lock_is_told_of(
    make_students: Make, course: Course, number: int
) -> None:
    students = make_students(number)

    def insert_first(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("INSERT") and "enrollments_enrollment" in sql:
            execute(
                "INSERT INTO enrollments_enrollment (student_id, course_id, status, "
                "enrollment_date) VALUES (%s, %s, 'active', '2026-01-01')",
                (students[0].pk, course.pk),
                False,
                context,
            )
        return execute(sql, params, many, context)

    with (
        connection.execute_wrapper(insert_first),
        pytest.raises(IntegrityError, match=f"course {course.pk} without its lock"),
    ):
        enroll_many(course=course, students=students)
    assert not Enrollment.objects.exists()
