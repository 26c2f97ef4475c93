"""With a router that reads from a stale replica, everything that writes or checks still works."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext

from courses.counts.audit import CheckInProgress, run_audit, timed_check
from courses.counts.drift import find_drift, rebuild
from courses.counts.status import chart_days, count_status
from courses.models import CountDiscrepancy, CountRun, Course
from enrollments import services, writing
from enrollments.history import Origin, is_recorded, make_context
from enrollments.models import Enrollment
from enrollments.services import Registration, enroll
from tests.support.audits import CHECK, add_drift
from tests.support.counts import drift_by_title
from tests.support.docs import DOCS, python_blocks
from tests.support.history import history_mismatches
from tests.support.pages import displayed_counts, message_texts, run_action, visible_text
from tests.support.replicas import REPLICA, stale_replica

Make = Callable[..., Any]
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def state(make_course: Make, staff_client: Client, student: Any) -> Iterator[SimpleNamespace]:
    """Copy two courses and a student to the replica, and then change the primary.

    The student enrolls, another user and another course are added, and one count drifts.
    """
    course, damaged = make_course(title="Chosen"), make_course(title="Damaged")
    with stale_replica():
        enrollment, _ = enroll(student=student, course=course)
        add_drift(damaged, by=5)
        yield SimpleNamespace(
            student=student,
            course=course,
            enrollment=enrollment,
            damaged=damaged,
            new_student=get_user_model().objects.create_user("newcomer"),
            new_course=make_course(title="Added"),
            staff_client=staff_client,
        )
    assert not drift_by_title().keys() - {"Damaged"}
    assert history_mismatches() == set()


def primary(model: Any) -> Any:
    return model._default_manager.using(DEFAULT_DB_ALIAS)


def run_check() -> None:
    list(run_audit(kind=CHECK, actor="the tests"))


SERVICES: dict[str, tuple[Callable[..., Any], Any]] = {
    "enroll": (
        lambda state: enroll(student=state.student, course=state.course),
        lambda state: (state.enrollment, False),
    ),
    "enroll_new": (
        lambda state: enroll(student=state.new_student, course=state.new_course)[1],
        True,
    ),
    "unenroll": (
        lambda state: [
            services.unenroll(student=state.student, course=state.course) for _ in range(2)
        ],
        [True, False],
    ),
    "leave": (lambda state: services.leave(student=state.student, course=state.course), True),
    "set_status": (
        lambda state: services.set_status(
            student=state.student, course=state.course, status="completed"
        ),
        True,
    ),
    "transfer": (
        lambda state: services.transfer(
            student=state.student, source=state.course, target=state.new_course
        )[1],
        True,
    ),
    "enroll_many": (
        lambda state: services.enroll_many(
            course=state.course, students=[state.student, state.new_student]
        ),
        services.BulkResult(created=1, unchanged=1),
    ),
    "unenroll_many": (
        lambda state: services.unenroll_many(
            course=state.course, students=[state.student, state.new_student]
        ),
        services.BulkResult(withdrawn=1, unchanged=1),
    ),
    "register_many": (
        lambda state: services.register_many(
            course=state.course,
            registrations=[
                Registration(state.student, None, status="completed", overwrite_dates=False)
            ],
        ),
        services.BulkResult(updated=1),
    ),
    "erase_student": (lambda state: services.erase_student(student=state.student), 1),
    "is_recorded": (
        lambda state: is_recorded(
            writing.enroll_student(
                state.new_student.pk, state.course.pk, make_context(Origin())
            ).events
        ),
        True,
    ),
}
COUNTS: dict[str, tuple[Callable[..., Any], Any]] = {
    "find_drift": (lambda state: [course.title for course in find_drift()], ["Damaged"]),
    "find_drift_of_queryset": (
        lambda state: [
            course.title for course in find_drift(courses=Course.objects.using(REPLICA))
        ],
        ["Damaged"],
    ),
    "rebuild": (lambda state: [course.drift for course in [*rebuild(), *rebuild()]], [5]),
    "rebuild_of_queryset": (
        lambda state: [
            course.drift for course in rebuild(courses=Course.objects.filter(title="Damaged"))
        ],
        [5],
    ),
    "timed_check": (lambda state: timed_check(actor="the tests").drifted, 1),
    "recorded_check": (
        lambda state: (
            run_check(),
            (count_status().drifted, count_status().last_full_run is None),
            max(day.drifted or 0 for day in chart_days()),
        )[1:],
        ((1, False), 1),
    ),
}


@pytest.mark.parametrize("name", SERVICES | COUNTS)
def test_services_and_checks_never_read_the_replica(state: SimpleNamespace, name: str) -> None:
    call, expected = (SERVICES | COUNTS)[name]
    with CaptureQueriesContext(connections[REPLICA]) as queries:
        result = call(state)
    assert result == (expected(state) if callable(expected) else expected)
    assert [query["sql"] for query in queries] == []


def test_another_check_in_progress_is_found(state: SimpleNamespace) -> None:
    primary(CountRun).create(kind=CHECK, actor="x", started_at=state.enrollment.enrollment_date)
    with pytest.raises(CheckInProgress):
        timed_check(actor="the tests")


def test_a_course_that_is_correct_again_is_resolved(state: SimpleNamespace) -> None:
    run_check()
    add_drift(state.damaged, by=-5)
    run_check()
    assert primary(CountDiscrepancy).get().resolved_at is not None


class TestCommands:
    @pytest.fixture(autouse=True)
    def assert_replica_is_unused(self, state: SimpleNamespace) -> Iterator[None]:
        with CaptureQueriesContext(connections[REPLICA]) as queries:
            yield
        assert [query["sql"] for query in queries] == []

    @pytest.fixture
    def run(self, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        def run(*arguments: Any) -> str:
            call_command(*map(str, arguments))
            return capsys.readouterr().out

        return run

    def test_rebuild_counts(self, state: SimpleNamespace, run: Callable[..., str]) -> None:
        with pytest.raises(SystemExit):
            run("rebuild_counts", "--check")
        selected = run("rebuild_counts", "--course-id", state.new_course.pk, state.damaged.pk)
        assert "2 courses checked: 1 drifted and corrected." in selected
        assert "3 courses checked: all counts are correct." in run("rebuild_counts", "--check")
        metrics = run("write_metrics")
        assert "\ncourses_drifted 0\n" in metrics
        assert "\ncourses_enrollments 1\n" in metrics

    def test_prune_count_runs(self, state: SimpleNamespace, run: Callable[..., str]) -> None:
        run_check()
        primary(CountRun).update(started_at="2020-01-01T00:00Z")
        primary(CountDiscrepancy).update(resolved_at="2020-01-01T00:00Z")
        assert "Deleted 1 run and 1 discrepancy" in run("prune_count_runs")

    def test_exports(self, state: SimpleNamespace, run: Callable[..., str]) -> None:
        assert "damaged" not in run("export_enrollments")
        assert f"{state.damaged.pk},{state.damaged.slug},Damaged,,5,0,5" in run("export_courses")

    def test_import(self, state: SimpleNamespace, run: Callable[..., str], tmp_path: Path) -> None:
        rows = [
            f"{state.course.slug},{state.student.username},student,deleted",
            f"{state.new_course.slug},{state.new_student.username},student,active",
            f"{state.new_course.slug},unknown,student,active",
        ]
        path = tmp_path / "enrollments.csv"
        path.write_text("\n".join(["course_id,user_id,role,status", *rows]))
        summary = run("import_enrollments", path)
        assert "3 rows: 0 courses and 1 student created." in summary
        assert "2 created, 0 re-enrolled, 1 withdrawn" in summary

    def test_erase_student(self, state: SimpleNamespace, run: Callable[..., str]) -> None:
        enroll(student=state.new_student, course=state.course)
        assert "Erased 1 enrollment of newcomer." in run("erase_student", "newcomer", "--no-input")

    def test_load_demo(
        self, state: SimpleNamespace, run: Callable[..., str], settings: Any
    ) -> None:
        settings.DEBUG = True
        assert run("load_demo") == ""
        services.erase_student(student=state.student)
        primary(Course).all().delete()
        assert "students." in run("load_demo", "--students", 20)


class TestPages:
    """Sessions and users come from the replica here. It has those who were signed in before."""

    @pytest.fixture
    def student_client(self, student: Any, staff_client: Client) -> Client:
        client = Client()
        client.force_login(student)
        return client

    def test_enrolling_finds_the_course_on_the_primary(
        self, student_client: Client, state: SimpleNamespace
    ) -> None:
        address = state.new_course.slug
        assert student_client.post(f"/courses/{address}/enroll/").status_code == 302
        assert student_client.put(f"/api/courses/{address}/enrollment").status_code == 200
        assert student_client.delete(f"/api/courses/{address}/enrollment").status_code == 204
        assert student_client.post(f"/courses/{state.course.slug}/leave/").status_code == 302
        assert set(primary(Enrollment).values_list("status", flat=True)) == {"withdrawn"}

    def test_pages_may_read_from_the_replica(
        self, student_client: Client, state: SimpleNamespace
    ) -> None:
        assert displayed_counts(student_client.get(f"/courses/{state.course.slug}/")) == [0]


def test_the_documented_router_shows_students_their_own_enrollments(
    student_client: Client, course: Course
) -> None:
    (block,) = python_blocks(DOCS / "configuration.md")
    names: dict[str, Any] = {"__name__": "site_settings"}
    exec(block, names)
    # The settings of the tests have the same dictionary.
    assert names["DATABASES"].pop(REPLICA)["HOST"] == "replica.example.org"
    with stale_replica(names["CatalogRouter"]()):
        page = student_client.post(f"/courses/{course.slug}/enroll/", follow=True)
        assert displayed_counts(page) == [0]
        assert "You are enrolled in" in message_texts(page)[0]
        assert "Enrolled since" in visible_text(page)
        assert course.title in visible_text(student_client.get("/my-courses/"))
        assert student_client.get("/").status_code == 200


class TestAdmin:
    def test_rebuild_counts_action(self, state: SimpleNamespace) -> None:
        page = run_action(state.staff_client, "rebuild_counts", [state.damaged])
        assert message_texts(page) == ["Corrected 1 course."]

    def test_withdraw_action(self, state: SimpleNamespace) -> None:
        form = {"action": "withdraw", "_selected_action": [state.enrollment.pk], "post": "yes"}
        page = state.staff_client.post("/admin/enrollments/enrollment/", form, follow=True)
        assert message_texts(page) == ["Withdrew 1 enrollment."]

    def test_delete_names_the_protected_courses(self, state: SimpleNamespace) -> None:
        form = {"action": "delete_selected", "_selected_action": [state.course.pk]}
        page = state.staff_client.post("/admin/courses/course/", form)
        assert page.context["protected"] == ["enrollments of Chosen"]

    def test_change_form(self, state: SimpleNamespace) -> None:
        address = f"/admin/enrollments/enrollment/{state.enrollment.pk}/change/"
        state.staff_client.post(address, {"status": "completed"})
        assert primary(Enrollment).get().status == "completed"

    def test_lists_and_forms_show_the_primary(self, state: SimpleNamespace) -> None:
        primary(Course).filter(pk=state.course.pk).update(title="Renamed")
        for address in ("", f"{state.course.pk}/change/"):
            page = state.staff_client.get(f"/admin/courses/course/{address}")
            assert "Renamed" in page.content.decode()

    def test_count_health(self, state: SimpleNamespace) -> None:
        page = state.staff_client.post("/admin/courses/countrun/health/", follow=True)
        assert page.context["status"].drifted == 1
        assert len(page.context["runs"]) == 1
