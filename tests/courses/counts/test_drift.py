from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from courses.counts.drift import Batch, DriftedCourse, find_drift, rebuild
from courses.managers import true_count
from courses.models import Course
from enrollments.services import enroll, enroll_many, unenroll
from tests.support.audits import add_drift
from tests.support.counts import drift_by_title
from tests.support.threads import ConcurrentThread

Make = Callable[..., Any]


@pytest.fixture
def courses(make_course: Make, make_students: Make) -> list[Course]:
    """Return five courses with three students each. The second and the fourth have drifted."""
    students = make_students(3)
    courses = [make_course() for _ in range(5)]
    for course in courses:
        enroll_many(course=course, students=students)
    add_drift(courses[1], by=2)
    add_drift(courses[3], by=-1)
    return courses


def expected_drift(courses: list[Course]) -> list[DriftedCourse]:
    second, fourth = courses[1], courses[3]
    return [
        DriftedCourse(second.pk, second.title, stored=5, true=3),
        DriftedCourse(fourth.pk, fourth.title, stored=2, true=3),
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_find_drift_yields_the_drifted_courses_and_changes_nothing(
    courses: list[Course], batch_size: int
) -> None:
    batches: list[Batch] = []
    drifted = list(find_drift(batch_size=batch_size, on_batch=batches.append))
    assert drifted == expected_drift(courses)
    assert [course.drift for course in drifted] == [2, -1]
    assert sum(len(batch.course_ids) for batch in batches) == 5
    assert max(len(batch.course_ids) for batch in batches) <= batch_size
    assert len(drift_by_title()) == 2


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_rebuild_corrects_the_drifted_courses_and_yields_them(
    courses: list[Course], batch_size: int
) -> None:
    assert list(rebuild(batch_size=batch_size)) == expected_drift(courses)
    assert drift_by_title() == {}
    assert list(rebuild(batch_size=batch_size)) == []


def test_rebuild_locks_at_most_max_locked_courses_in_one_transaction(
    courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    Course.objects.update(total_enrollments=9)
    monkeypatch.setattr("courses.counts.drift.MAX_LOCKED_COURSES", 2)
    with CaptureQueriesContext(connection) as queries:
        assert len(list(rebuild())) == 5
    updates = [query["sql"] for query in queries if query["sql"].startswith("UPDATE")]
    assert len(updates) == 3
    assert drift_by_title() == {}


@pytest.mark.parametrize(("max_rows", "transactions"), [(15, 1), (7, 3), (6, 3), (5, 5), (1, 5)])
def test_rebuild_counts_at_most_max_counted_rows_or_one_course_in_a_transaction(
    courses: list[Course], monkeypatch: pytest.MonkeyPatch, max_rows: int, transactions: int
) -> None:
    Course.objects.update(total_enrollments=9)
    monkeypatch.setattr("courses.counts.drift.MAX_COUNTED_ROWS", max_rows)
    with CaptureQueriesContext(connection) as queries:
        assert len(list(rebuild())) == 5
    updates = [query["sql"] for query in queries if query["sql"].startswith("UPDATE")]
    assert len(updates) == transactions
    assert drift_by_title() == {}


def test_find_drift_calls_on_batch_with_the_courses_of_each_query(courses: list[Course]) -> None:
    batches: list[Batch] = []
    started_at = timezone.now()
    list(find_drift(batch_size=2, on_batch=batches.append))
    pks = [course.pk for course in courses]
    assert [batch.course_ids for batch in batches] == [pks[:2], pks[2:4], pks[4:]]
    second, fourth = expected_drift(courses)
    assert [batch.drifted for batch in batches] == [[second], [fourth], []]
    assert started_at <= batches[0].read_at <= batches[1].read_at <= timezone.now()


@pytest.mark.django_db(transaction=True)
def test_rebuild_calls_on_batch_after_commit_and_before_it_yields_the_corrected_courses(
    courses: list[Course],
) -> None:
    batches: list[Batch] = []

    def on_batch(batch: Batch) -> None:
        assert not connection.in_atomic_block
        batches.append(batch)

    started_at = timezone.now()
    drifted = rebuild(on_batch=on_batch)
    assert next(drifted) == expected_drift(courses)[0]
    correct, corrected = batches
    assert correct.course_ids == [courses[0].pk, courses[2].pk, courses[4].pk]
    assert corrected.course_ids == [courses[1].pk, courses[3].pk]
    assert (correct.drifted, corrected.drifted) == ([], expected_drift(courses))
    assert started_at <= correct.read_at <= corrected.read_at <= timezone.now()


def test_rebuild_pauses_between_batches_but_not_after_the_last(
    courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("courses.counts.drift.time.sleep", pauses.append)
    list(rebuild(batch_size=2, pause=0.5))
    assert pauses == [0.5, 0.5]


def test_rebuild_corrects_only_the_selected_courses(courses: list[Course]) -> None:
    selected = Course.objects.filter(pk__in=[courses[0].pk, courses[1].pk])
    assert [course.course_id for course in rebuild(courses=selected)] == [courses[1].pk]
    assert list(drift_by_title()) == [courses[3].title]


def test_find_drift_yields_a_course_once_if_the_queryset_has_joins(courses: list[Course]) -> None:
    joined = Course.objects.filter(enrollments__status="active")
    assert list(find_drift(courses=joined, batch_size=2)) == expected_drift(courses)


def test_rebuild_only_reads_if_all_counts_are_correct(courses: list[Course]) -> None:
    list(rebuild())
    with CaptureQueriesContext(connection) as queries:
        list(rebuild(batch_size=2))
    assert len(queries) == 3
    assert all(query["sql"].startswith("SELECT") for query in queries)
    assert not any("FOR UPDATE" in query["sql"] for query in queries)


def test_rebuild_yields_nothing_without_courses(db: None) -> None:
    assert list(rebuild()) == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_find_drift_raises_value_error_for_a_batch_size_below_1(db: None, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(find_drift(batch_size=batch_size))


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("service", [enroll, unenroll])
def test_rebuild_counts_a_concurrent_enrollment_or_withdrawal(
    courses: list[Course], make_students: Make, service: Make
) -> None:
    # The snapshot of the recount would be older than the lock of the second course.
    course = courses[3]
    (newcomer,) = make_students(1)
    student = newcomer if service is enroll else course.enrollments.first().student
    thread = ConcurrentThread(lambda: list(rebuild()))
    with transaction.atomic():
        service(student=student, course=course)
        thread.start_and_wait_until_blocked()
    assert [course.course_id for course in thread.finish()] == [courses[1].pk, courses[3].pk]
    assert drift_by_title() == {}


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_recounting_in_the_statement_that_locks_loses_a_concurrent_enrollment(
    courses: list[Course], make_students: Make
) -> None:
    """Show why the rebuild locks in one statement and counts in another.

    Under READ COMMITTED, the statement's snapshot is taken at the first course, before the
    second one is locked.
    """
    first, _, second, *_ = courses
    (newcomer,) = make_students(1)
    both = Course.objects.filter(pk__in=[first.pk, second.pk])
    thread = ConcurrentThread(lambda: both.update(total_enrollments=true_count()))
    with transaction.atomic():
        enroll(student=newcomer, course=second)
        thread.start_and_wait_until_blocked()
    thread.finish()
    assert drift_by_title()[second.title] == -1


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_rebuild_does_not_lock_a_correct_course(courses: list[Course], make_students: Make) -> None:
    (newcomer,) = make_students(1)
    with transaction.atomic():
        enroll(student=newcomer, course=courses[0])
        # A rebuild that needed this lock would wait for the end of this transaction.
        assert len(ConcurrentThread(lambda: list(rebuild())).start_and_finish()) == 2
    assert drift_by_title() == {}


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_rebuild_inside_an_old_snapshot_counts_the_latest_rows(
    courses: list[Course], make_students: Make
) -> None:
    """Under REPEATABLE READ, a plain read would count the rows of the old snapshot."""
    (newcomer,) = make_students(1)
    connection.close()
    options = connection.settings_dict["OPTIONS"]
    isolation_level, options["isolation_level"] = options["isolation_level"], "repeatable read"
    try:
        with transaction.atomic():
            assert Course.objects.count() == 5
            ConcurrentThread(lambda: enroll(student=newcomer, course=courses[1])).start_and_finish()
            drifted = list(rebuild())
        assert (drifted[0].stored, drifted[0].true) == (6, 4)
        assert drift_by_title() == {}
    finally:
        connection.close()
        options["isolation_level"] = isolation_level
