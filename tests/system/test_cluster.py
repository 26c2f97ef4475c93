"""Three nodes: conflicts between them forced one by one, then a storm in which nodes die."""

import os
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

from courses.counts.drift import _correct_now, rebuild
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
from tests.conftest import connected_to, drifts
from tests.support.cluster import Cluster, cluster
from tests.support.threads import ConcurrentThread

pytestmark = pytest.mark.mariadb


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster() as nodes:
        yield nodes


@pytest.fixture
def elsewhere(nodes: Cluster, db: None) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """The test's own connection is on the first node; what this is given is done on the second."""
    second = urlsplit(nodes.node_urls[1])

    def do(work: Callable[[], Any]) -> Any:
        def there() -> Any:
            connection.settings_dict = connection.settings_dict | {"PORT": second.port}
            return work()

        return ConcurrentThread(there).start_and_finish()

    with connected_to(nodes.node_urls[0]):
        yield do
        assert drifts() == {}
        for student in get_user_model().objects.filter(enrollments__isnull=False).distinct():
            erase_student(student=student)
        Course.objects.all().delete()
        get_user_model().objects.all().delete()


@pytest.fixture
def students(elsewhere: Any) -> list[Any]:
    return [get_user_model().objects.create(username=f"s{number}") for number in range(3)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("service", [enroll, unenroll])
@pytest.mark.parametrize("damage", [0, 5], ids=["right", "drifted"])
def test_a_rebuild_that_counted_before_others_wrote_is_undone(
    elsewhere: Any, students: list[Any], service: Any, damage: int
) -> None:
    course = Course.objects.create(title="Hot", slug="hot")
    enroll_many(course=course, students=students[:2])
    Course.objects.filter(pk=course.pk).update(total_enrollments=2 + damage)
    student = students[2] if service is enroll else students[0]

    def correct_meanwhile() -> None:
        with transaction.atomic():
            _correct_now([course.pk])
            elsewhere(lambda: service(student=student, course=course))

    undone = pytest.raises(OperationalError, match="1213")
    # A right course is locked and not written: the other change may as well come afterwards.
    with undone if damage else suppress(OperationalError):
        correct_meanwhile()
    list(rebuild())
    assert drifts() == {}


@pytest.mark.django_db(transaction=True)
def test_the_last_seat_is_given_once(elsewhere: Any, students: list[Any]) -> None:
    course = Course.objects.create(title="Hot", slug="hot", capacity=1)

    def both() -> None:
        with transaction.atomic():
            enroll(student=students[0], course=course)
            elsewhere(lambda: enroll(student=students[1], course=course))

    with pytest.raises(OperationalError, match="1213"):
        both()
    assert Enrollment.objects.get().student == students[1]
    with pytest.raises(CourseFull):
        enroll(student=students[0], course=course)


@pytest.mark.django_db(transaction=True)
def test_a_student_who_is_enrolled_on_two_nodes_is_enrolled_once(
    elsewhere: Any, students: list[Any]
) -> None:
    course = Course.objects.create(title="Hot", slug="hot")

    def both() -> None:
        with transaction.atomic():
            enroll(student=students[0], course=course)
            elsewhere(lambda: enroll(student=students[0], course=course))

    with pytest.raises(OperationalError, match="1213"):
        both()
    assert enroll(student=students[0], course=course)[1] is False
    assert Enrollment.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda s, c: enroll(student=s, course=c)[1], True),
        (lambda s, c: enroll_many(course=c, students=[s]), BulkResult(created=1)),
        (lambda s, c: erase_student(student=s), 0),
    ],
    ids=["enroll", "enroll_many", "erase_student"],
)
def test_a_row_that_is_erased_on_another_node_is_not_counted(
    elsewhere: Any, nodes: Cluster, students: list[Any], call: Any, answer: Any
) -> None:
    """Erasing a withdrawn row moves no counter, so it doesn't collide with us by the course."""
    course = Course.objects.create(title="Hot", slug="hot")
    student = students[0]
    enroll(student=student, course=course)
    unenroll(student=student, course=course)
    erased = []

    def erase_first(execute: Any, sql: str, *arguments: Any) -> Any:
        if not erased and sql.startswith(("UPDATE `enrollments_", "DELETE FROM `enrollments_")):
            erased.append(elsewhere(lambda: erase_student(student=student)))
            while nodes.nodes[0].query("SELECT COUNT(*) FROM enrollments_enrollment") != "0\n":
                pass
        return execute(sql, *arguments)

    with connection.execute_wrapper(erase_first):
        assert call(student, course) == answer
    assert erased == [1]
    assert drifts() == {}


@pytest.mark.django_db(transaction=True)
def test_a_form_that_collides_at_commit_is_saved_and_said_once(
    elsewhere: Any, students: list[Any], client: Client
) -> None:
    course = Course.objects.create(title="Hot", slug="hot")
    client.force_login(get_user_model().objects.create_superuser("staff"))
    commit, enrolled = connection._commit, []

    def commit_after_others() -> None:
        if not enrolled:
            enrolled.append(elsewhere(lambda: enroll(student=students[0], course=course)))
        commit()

    connection._commit = commit_after_others
    try:
        answer = client.post(
            f"/admin/courses/course/{course.pk}/change/",
            {"title": "New", "slug": "hot"},
            follow=True,
        )
    finally:
        connection._commit = commit
    assert enrolled
    assert len(list(answer.context["messages"])) == LogEntry.objects.count() == 1
    course.refresh_from_db()
    assert (course.title, course.total_enrollments) == ("New", 1)
    LogEntry.objects.all().delete()


@pytest.mark.timeout(180)
def test_no_promise_is_broken_when_nodes_die_in_a_storm() -> None:
    stress = [
        "tests.system.stress",
        "--cluster",
        "--seconds",
        "20",
        "--kill",
        "8",
        "--writers",
        "4",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *stress],
        env=os.environ | {"SECRET_KEY": "tests only"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "retries" in done.stdout
