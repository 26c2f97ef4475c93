"""Force conflicts between the nodes of a cluster one by one, then run the stress test on it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection, transaction
from django.test import Client

from courses.counts.drift import rebuild, recount_locked
from courses.models import Course
from enrollments.models import Enrollment
from enrollments.services import (
    BulkResult,
    CourseFull,
    enroll,
    enroll_many,
    erase_student,
    unenroll,
)
from tests.support.cluster import Cluster, cluster
from tests.support.commands import PROJECT
from tests.support.counts import drift_by_title
from tests.support.databases import connected_to
from tests.support.pages import message_texts
from tests.support.threads import ConcurrentThread

RunOnSecondNode = Callable[[Callable[[], Any]], Any]

pytestmark = pytest.mark.mariadb


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    with cluster() as servers:
        yield servers


@pytest.fixture
def run_on_second_node(servers: Cluster, db: None) -> Iterator[RunOnSecondNode]:
    """Connect the test to the first node; return a function that runs work on the second."""
    second_node = urlsplit(servers.node_urls[1])

    def run(work: Callable[[], Any]) -> Any:
        def connect_and_work() -> Any:
            connection.settings_dict = connection.settings_dict | {"PORT": second_node.port}
            return work()

        return ConcurrentThread(connect_and_work).start_and_finish()

    with connected_to(servers.node_urls[0]):
        yield run
        assert drift_by_title() == {}
        for student in get_user_model().objects.filter(enrollments__isnull=False).distinct():
            erase_student(student=student)
        Course.objects.all().delete()
        get_user_model().objects.all().delete()


@pytest.fixture
def students(run_on_second_node: Any) -> list[Any]:
    return [get_user_model().objects.create(username=f"s{number}") for number in range(3)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("service", [enroll, unenroll])
@pytest.mark.parametrize("damage", [0, 5], ids=["correct", "drifted"])
def test_rebuild_rolls_back_if_another_node_changes_the_course(
    run_on_second_node: RunOnSecondNode, students: list[Any], service: Any, damage: int
) -> None:
    course = Course.objects.create(title="Busy", slug="busy")
    enroll_many(course=course, students=students[:2])
    Course.objects.filter(pk=course.pk).update(total_enrollments=2 + damage)
    student = students[2] if service is enroll else students[0]

    def recount_during_service() -> None:
        with transaction.atomic():
            list(Course.objects.select_for_update().filter(pk=course.pk))
            recount_locked(course_pks=[course.pk])
            run_on_second_node(lambda: service(student=student, course=course))

    conflict = pytest.raises(OperationalError, match="1213")
    # Recounting a correct course writes nothing, so there may be no conflict.
    with conflict if damage else suppress(OperationalError):
        recount_during_service()
    list(rebuild())
    assert drift_by_title() == {}


@pytest.mark.django_db(transaction=True)
def test_last_seat_goes_to_one_student(
    run_on_second_node: RunOnSecondNode, students: list[Any]
) -> None:
    course = Course.objects.create(title="Busy", slug="busy", capacity=1)

    def enroll_on_both_nodes() -> None:
        with transaction.atomic():
            enroll(student=students[0], course=course)
            run_on_second_node(lambda: enroll(student=students[1], course=course))

    with pytest.raises(OperationalError, match="1213"):
        enroll_on_both_nodes()
    assert Enrollment.objects.get().student == students[1]
    with pytest.raises(CourseFull):
        enroll(student=students[0], course=course)


@pytest.mark.django_db(transaction=True)
def test_student_enrolled_on_two_nodes_gets_one_row(
    run_on_second_node: RunOnSecondNode, students: list[Any]
) -> None:
    course = Course.objects.create(title="Busy", slug="busy")

    def enroll_on_both_nodes() -> None:
        with transaction.atomic():
            enroll(student=students[0], course=course)
            run_on_second_node(lambda: enroll(student=students[0], course=course))

    with pytest.raises(OperationalError, match="1213"):
        enroll_on_both_nodes()
    assert enroll(student=students[0], course=course)[1] is False
    assert Enrollment.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("call", "result"),
    [
        (lambda s, c: enroll(student=s, course=c)[1], True),
        (lambda s, c: enroll_many(course=c, students=[s]), BulkResult(created=1)),
        (lambda s, c: erase_student(student=s), 0),
    ],
    ids=["enroll", "enroll_many", "erase_student"],
)
def test_row_erased_on_another_node_is_not_counted(
    run_on_second_node: RunOnSecondNode,
    servers: Cluster,
    students: list[Any],
    call: Any,
    result: Any,
) -> None:
    """Erasing a withdrawn row does not update the course, so the nodes see no conflict."""
    course = Course.objects.create(title="Busy", slug="busy")
    student = students[0]
    enroll(student=student, course=course)
    unenroll(student=student, course=course)
    erased = []

    def erase_before_write(execute: Any, sql: str, *arguments: Any) -> Any:
        if not erased and sql.startswith(("UPDATE `enrollments_", "DELETE FROM `enrollments_")):
            erased.append(run_on_second_node(lambda: erase_student(student=student)))
            while servers.nodes[0].query("SELECT COUNT(*) FROM enrollments_enrollment") != "0\n":
                pass
        return execute(sql, *arguments)

    with connection.execute_wrapper(erase_before_write):
        assert call(student, course) == result
    assert erased == [1]
    assert drift_by_title() == {}


@pytest.mark.django_db(transaction=True)
def test_admin_form_with_a_conflict_at_commit_is_saved_and_logged_once(
    run_on_second_node: RunOnSecondNode, students: list[Any], client: Client
) -> None:
    course = Course.objects.create(title="Busy", slug="busy")
    client.force_login(get_user_model().objects.create_superuser("staff"))
    commit, enrolled = connection._commit, []

    def enroll_before_commit() -> None:
        if not enrolled:
            enrolled.append(run_on_second_node(lambda: enroll(student=students[0], course=course)))
        commit()

    connection._commit = enroll_before_commit
    try:
        response = client.post(
            f"/admin/courses/course/{course.pk}/change/",
            {"title": "New", "slug": "busy"},
            follow=True,
        )
    finally:
        connection._commit = commit
    assert enrolled
    assert len(message_texts(response)) == LogEntry.objects.count() == 1
    course.refresh_from_db()
    assert (course.title, course.total_enrollments) == ("New", 1)
    LogEntry.objects.all().delete()


@pytest.mark.timeout(180)
def test_killed_nodes_violate_no_guarantee() -> None:
    command = [sys.executable, "-m", "tests.system.stress", "--cluster"]
    result = subprocess.run(
        [*command, "--seconds", "20", "--kill", "8", "--writers", "4"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "retries" in result.stdout
