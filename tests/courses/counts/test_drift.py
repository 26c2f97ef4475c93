from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from courses.counts.drift import Batch, Drift, find_drift, rebuild
from courses.managers import true_count
from courses.models import Course
from enrollments.services import enroll, enroll_many, unenroll
from tests.conftest import drifts
from tests.support.threads import ConcurrentThread

Make = Callable[..., Any]


def damage(course: Course, by: int) -> None:
    Course.objects.filter(pk=course.pk).update(total_enrollments=F("total_enrollments") + by)


@pytest.fixture
def courses(make_course: Make, make_students: Make) -> list[Course]:
    """Five courses with three students each, of which the second is 2 too high, the fourth 1
    too low."""
    students = make_students(3)
    made = [make_course() for _ in range(5)]
    for course in made:
        enroll_many(course=course, students=students)
    damage(made[1], 2)
    damage(made[3], -1)
    return made


def expected(courses: list[Course]) -> list[Drift]:
    second, fourth = courses[1], courses[3]
    return [Drift(second.pk, second.title, 5, 3), Drift(fourth.pk, fourth.title, 2, 3)]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_drift_is_found_and_left(courses: list[Course], batch_size: int) -> None:
    seen: list[int] = []
    found = list(find_drift(batch_size=batch_size, courses_checked=seen.append))
    assert found == expected(courses)
    assert [drift.drift for drift in found] == [2, -1]
    assert sum(seen) == 5
    assert max(seen) <= batch_size
    assert len(drifts()) == 2


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_drift_is_corrected_and_told(courses: list[Course], batch_size: int) -> None:
    assert list(rebuild(batch_size=batch_size)) == expected(courses)
    assert drifts() == {}
    assert list(rebuild(batch_size=batch_size)) == []


def test_only_so_many_courses_are_locked_at_once(
    courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    Course.objects.update(total_enrollments=9)
    monkeypatch.setattr("courses.counts.drift.MAX_LOCKED_COURSES", 2)
    with CaptureQueriesContext(connection) as queries:
        assert len(list(rebuild())) == 5
    written = [query["sql"] for query in queries if query["sql"].startswith("UPDATE")]
    assert len(written) == 3
    assert drifts() == {}


def test_only_so_many_rows_are_counted_under_locks(
    courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A course of more rows has a transaction of its own: others needn't wait for it."""
    Course.objects.update(total_enrollments=9)
    for most, transactions in [(7, 3), (6, 3), (5, 5), (1, 5), (15, 1)]:
        monkeypatch.setattr("courses.counts.drift.MAX_COUNTED_ROWS", most)
        with CaptureQueriesContext(connection) as queries:
            assert len(list(rebuild())) == 5
        written = [query["sql"] for query in queries if query["sql"].startswith("UPDATE")]
        assert len(written) == transactions
        assert drifts() == {}
        Course.objects.update(total_enrollments=9)
    list(rebuild())


@pytest.mark.parametrize("look_or_correct", [find_drift, rebuild])
def test_each_batch_is_told(courses: list[Course], look_or_correct: Make) -> None:
    told: list[Batch] = []
    list(look_or_correct(batch_size=2, batch_done=told.append))
    keys = [course.pk for course in courses]
    assert [(b.first_id, b.last_id, b.courses_checked, b.drifted) for b in told] == [
        (keys[0], keys[1], 2, 1),
        (keys[2], keys[3], 2, 1),
        (keys[4], keys[4], 1, 0),
    ]
    assert [(b.stored, b.true) for b in told] == [(8, 6), (5, 6), (3, 3)]
    assert [batch.locked_for > 0 for batch in told] == [look_or_correct is rebuild] * 2 + [False]


@pytest.mark.django_db(transaction=True)
def test_what_is_committed_is_told_at_once_and_before_it_is_yielded(courses: list[Course]) -> None:
    def committed(drifts_corrected: list[Drift]) -> None:
        assert not connection.in_atomic_block
        told.append(drifts_corrected)

    told: list[list[Drift]] = []
    found = rebuild(committed=committed)
    assert next(found) == expected(courses)[0]
    assert told == [expected(courses)]


def test_it_rests_between_batches_and_not_after_the_last(
    courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr("courses.counts.drift.time.sleep", rests.append)
    list(rebuild(batch_size=2, pause=0.5))
    assert rests == [0.5, 0.5]


def test_only_the_given_courses_are_corrected(courses: list[Course]) -> None:
    given = Course.objects.filter(pk__in=[courses[0].pk, courses[1].pk])
    assert [found.course_id for found in rebuild(courses=given)] == [courses[1].pk]
    assert list(drifts()) == [courses[3].title]


def test_courses_that_come_with_joins_are_looked_at_once(courses: list[Course]) -> None:
    joined = Course.objects.filter(enrollments__status="active")
    assert list(find_drift(courses=joined, batch_size=2)) == expected(courses)


def test_a_catalog_that_is_right_is_only_read(courses: list[Course]) -> None:
    list(rebuild())
    with CaptureQueriesContext(connection) as queries:
        list(rebuild(batch_size=2))
    assert len(queries) == 4
    assert all(query["sql"].startswith("SELECT") for query in queries)
    assert not any("FOR UPDATE" in query["sql"] for query in queries)


def test_no_courses_no_drift(db: None) -> None:
    assert list(rebuild()) == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_at_least_one_course(db: None, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(find_drift(batch_size=batch_size))


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("service", [enroll, unenroll])
def test_who_enrols_while_a_course_is_recounted_is_counted(
    courses: list[Course], make_students: Make, service: Make
) -> None:
    course = courses[3]  # the second to be corrected: the statement has its snapshot by then
    (newcomer,) = make_students(1)
    student = newcomer if service is enroll else course.enrollments.first().student
    rival = ConcurrentThread(lambda: list(rebuild()))
    with transaction.atomic():
        service(student=student, course=course)
        rival.start_and_wait_until_blocked()
    assert [found.course_id for found in rival.finish()] == [courses[1].pk, courses[3].pk]
    assert drifts() == {}


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_a_recount_that_locks_in_its_own_statement_goes_wrong(
    courses: list[Course], make_students: Make
) -> None:
    """Why the rebuild takes two statements. READ COMMITTED takes one snapshot a statement: at
    the first course, here, and so before it has the lock on the second."""
    first, _, second, *_ = courses
    (newcomer,) = make_students(1)
    both = Course.objects.filter(pk__in=[first.pk, second.pk])
    rival = ConcurrentThread(lambda: both.update(total_enrollments=true_count()))
    with transaction.atomic():
        enroll(student=newcomer, course=second)
        rival.start_and_wait_until_blocked()
    rival.finish()
    assert drifts()[second.title] == -1


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_a_right_course_is_neither_waited_for_nor_held(
    courses: list[Course], make_students: Make
) -> None:
    (newcomer,) = make_students(1)
    with transaction.atomic():
        enroll(student=newcomer, course=courses[0])
        # Would wait for ever: the lock is given back only after it.
        assert len(ConcurrentThread(lambda: list(rebuild())).start_and_finish()) == 2
    assert drifts() == {}


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_a_rebuild_inside_an_old_snapshot_counts_what_is_there_now(
    courses: list[Course], make_students: Make
) -> None:
    """Under REPEATABLE READ a plain read would count what was there when the snapshot began."""
    (newcomer,) = make_students(1)
    connection.close()
    options = connection.settings_dict["OPTIONS"]
    before, options["isolation_level"] = options["isolation_level"], "repeatable read"
    try:
        with transaction.atomic():
            assert Course.objects.count() == 5
            ConcurrentThread(lambda: enroll(student=newcomer, course=courses[1])).start_and_finish()
            found = list(rebuild())
        assert (found[0].stored, found[0].true) == (6, 4)
        assert drifts() == {}
    finally:
        connection.close()
        options["isolation_level"] = before
