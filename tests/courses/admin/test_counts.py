"""The Count health page and the records of checks and rebuilds."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone

from courses.counts import audit
from courses.counts.audit import run_audit
from courses.models import CountDiscrepancy, CountRun, Course
from tests.support.audits import CHECK, REBUILD, add_drift, run_recorded
from tests.support.counts import drift_by_title
from tests.support.pages import message_texts, sign_in_staff, visible_text

Make = Callable[..., Any]


@pytest.fixture
def courses(make_course: Make) -> list[Course]:
    return [make_course() for _ in range(4)]


def count_health_url() -> str:
    return reverse("admin:courses_count_health")


def page_text(client: Client) -> str:
    page = client.get(count_health_url())
    assert page.status_code == 200
    return visible_text(page)


def check_now(client: Client) -> HttpResponse:
    return client.post(count_health_url(), follow=True)


class TestCountHealth:
    def test_before_the_first_full_check(self, staff_client: Client, courses: list[Course]) -> None:
        run_recorded(CHECK, courses[0])
        text = page_text(staff_client)
        assert "No check of all courses has finished yet" in text
        assert "Partial check" in text

    def test_correct_counts_state_the_time_of_the_check(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        run = run_recorded(CHECK, actor="admin: anna")
        text = page_text(staff_client)
        assert f"All counts were correct at {run.finished_at:%H:%M} UTC " in text
        assert "by anna (4 courses)." in text
        assert "old" not in text

    @pytest.mark.parametrize("drift", [0, 1])
    def test_an_old_result_says_so(
        self, staff_client: Client, courses: list[Course], drift: int
    ) -> None:
        add_drift(courses[0], by=drift)
        run_recorded(CHECK)
        finished_at = timezone.now() - timedelta(days=3)
        CountRun.objects.update(finished_at=finished_at)
        text = page_text(staff_client)
        assert "Checked 3 days ago by the tests (4 courses). This result is old." in text
        assert ("1 of 4 courses drifted" in text) == bool(drift)
        assert (f" UTC on {finished_at:%b %-d, %Y} " in text) == (not drift)

    def test_drift_states_courses_and_total_error(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        add_drift(*courses[:3], by=5)
        run_recorded(CHECK)
        assert "3 of 4 courses drifted, by 15 enrollments in total" in page_text(staff_client)
        run_recorded(REBUILD, courses[0], courses[1])
        text = page_text(staff_client)
        assert "1 of 4 courses drifted, by 5 enrollments in total" in text
        assert "Partial rebuild" in text

    def test_drift_found_before_the_first_full_check(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        run_recorded(CHECK, courses[0])
        assert "1 course drifted, by 1 enrollment in total" in page_text(staff_client)

    def test_corrected_drift_asks_for_another_check(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        add_drift(*courses[:2])
        run_recorded(CHECK)
        run_recorded(REBUILD, *courses[:2])
        text = page_text(staff_client)
        assert "No course is known to have drifted" in text
        assert "found 2 drifted courses. They were corrected or deleted since then." in text

    def test_a_full_rebuild_reports_its_corrections(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        run_recorded(REBUILD)
        text = page_text(staff_client)
        assert "All counts were correct at " in text
        assert "The rebuild corrected 1 course." in text

    def test_an_interrupted_run_is_listed_as_unfinished(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        run_recorded(CHECK, actor="<b>someone</b>")
        next(run_audit(kind=REBUILD, actor="the tests"))
        assert "unfinished" in page_text(staff_client)
        page = staff_client.get(count_health_url())
        assert "<td>&lt;b&gt;someone&lt;/b&gt;</td>" in page.content.decode()

    @override_settings(TIME_ZONE="Asia/Tokyo")
    def test_times_are_utc(self, staff_client: Client, courses: list[Course]) -> None:
        run = run_recorded(CHECK)
        text = page_text(staff_client)
        assert f"correct at {run.finished_at:%H:%M} UTC" in text
        assert f" {run.started_at:%b %-d, %Y, %H:%M} " in text

    def test_the_chart_table_lists_only_days_with_checks(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        run_recorded(REBUILD)
        text = page_text(staff_client)
        assert f"Day Drifted Corrected {timezone.now():%b %-d, %Y} 1 1 No counts" in text


class TestCheckNow:
    def test_it_reports_the_result_and_changes_no_count(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        page = check_now(staff_client)
        assert message_texts(page) == ["4 courses checked: all counts are correct."]
        add_drift(courses[0])
        page = check_now(staff_client)
        assert message_texts(page) == ["4 courses checked: 1 drifted."]
        assert "1 of 4 courses drifted" in visible_text(page)
        assert len(drift_by_title()) == 1
        assert CountRun.objects.latest("pk").actor == "admin: staff"

    def test_at_the_time_limit_it_names_the_command_that_checks_all(
        self, staff_client: Client, courses: list[Course], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audit, "CHECK_BATCH_SIZE", 2)
        monkeypatch.setattr(audit.timed_check, "__kwdefaults__", {"seconds": 0})
        assert message_texts(check_now(staff_client)) == [
            "2 courses checked: all counts are correct. The time limit was reached after course "
            f"{courses[1].pk}. Check all courses with: manage.py rebuild_counts --check"
        ]

    def test_it_waits_for_a_running_check(self, staff_client: Client) -> None:
        CountRun.objects.create(kind=CHECK, actor="another", started_at=timezone.now())
        assert message_texts(check_now(staff_client)) == [
            "A check is already running. Reload this page in a few seconds."
        ]
        assert CountRun.objects.count() == 1

    def test_it_requires_a_csrf_token(self, courses: list[Course], django_user_model: Any) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(django_user_model.objects.create_superuser("staff"))
        assert client.post(count_health_url()).status_code == 403


class TestPermissions:
    @pytest.mark.parametrize("state", ["never checked", "drifted", "corrected"])
    def test_view_only_staff_see_no_instruction_that_they_cannot_follow(
        self, client: Client, courses: list[Course], state: str
    ) -> None:
        if state != "never checked":
            add_drift(courses[0])
            run_recorded(CHECK)
        if state == "corrected":
            run_recorded(REBUILD, courses[0])
        runs = CountRun.objects.count()
        sign_in_staff(client, "view_course")
        text = page_text(client)
        for instruction in ("Check now", "Check again", "Correct all", "select courses"):
            assert instruction not in text
        assert "/countrun/" not in client.get(count_health_url()).content.decode().replace(
            count_health_url(), ""
        )
        assert client.post(count_health_url()).status_code == 403
        assert CountRun.objects.count() == runs

    def test_staff_who_may_view_courses_find_the_page(
        self, client: Client, courses: list[Course]
    ) -> None:
        sign_in_staff(client, "view_course")
        for address in ("/admin/", "/admin/courses/course/"):
            page = client.get(address)
            assert f'<a href="{count_health_url()}">' in page.content.decode()

    def test_others_are_rejected(self, client: Client, db: None) -> None:
        assert client.get(count_health_url()).status_code == 302
        sign_in_staff(client, "view_subject")
        assert client.get(count_health_url()).status_code == 403
        assert client.post(count_health_url()).status_code == 403
        assert count_health_url() not in client.get("/admin/").content.decode()


class TestRecords:
    @pytest.mark.parametrize("model", ["countrun", "countdiscrepancy"])
    def test_records_are_read_only(
        self, staff_client: Client, courses: list[Course], model: str
    ) -> None:
        add_drift(courses[0])
        run_recorded(CHECK)
        pk = apps.get_model("courses", model)._default_manager.get().pk
        address = f"/admin/courses/{model}/"
        assert staff_client.get(address).status_code == 200
        assert staff_client.get(f"{address}{pk}/change/").status_code == 200
        assert staff_client.post(f"{address}{pk}/change/", {"actor": "me"}).status_code == 403
        assert staff_client.post(f"{address}{pk}/delete/", {"post": "yes"}).status_code == 403
        assert staff_client.post(f"{address}add/", {}).status_code == 403
        data = {"action": "delete_selected", "_selected_action": pk, "post": "yes"}
        staff_client.post(address, data)
        assert CountRun.objects.get().discrepancies.count() == 1

    def test_courses_and_runs_link_to_their_discrepancies(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        add_drift(*courses[:2], by=3)
        run = run_recorded(CHECK)
        pages = [
            (f"course/{courses[0].pk}", f"course__id__exact={courses[0].pk}"),
            (f"countrun/{run.pk}", f"run__id__exact={run.pk}"),
        ]
        for (name, query), expected in zip(pages, (courses[:1], courses[:2]), strict=True):
            link = f"/admin/courses/countdiscrepancy/?{query}"
            page = staff_client.get(f"/admin/courses/{name}/change/")
            assert f'href="{link}"' in page.content.decode()
            page = staff_client.get(link)
            rows = page.context["cl"].result_list
            assert sorted(row.course_id for row in rows) == [course.pk for course in expected]
            assert "+3" in visible_text(page)

    def test_the_filter_separates_open_and_resolved_discrepancies(
        self, staff_client: Client, courses: list[Course]
    ) -> None:
        add_drift(*courses[:2])
        run_recorded(CHECK)
        run_recorded(REBUILD, courses[0])
        for status, course in (("resolved", courses[0]), ("open", courses[1])):
            path = f"/admin/courses/countdiscrepancy/?status={status}"
            page = staff_client.get(path)
            assert [row.course for row in page.context["cl"].result_list] == [course]
        assert CountDiscrepancy.objects.count() == 2
