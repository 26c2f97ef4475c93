import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from courses.counts import audit
from courses.counts.audit import run_audit
from courses.counts.status import Plot, health, plots
from courses.models import CountRun, Course
from enrollments.services import enroll
from tests.conftest import drifts

Make = Callable[..., Any]
CHECK, REBUILD = CountRun.Kind.CHECK, CountRun.Kind.REBUILD
PAGE = "/admin/courses/course/health/"


@pytest.fixture
def courses(make_course: Make) -> list[Course]:
    return [make_course() for _ in range(4)]


def damage(*courses: Course, by: int = 1) -> None:
    Course.objects.filter(pk__in=[course.pk for course in courses]).update(total_enrollments=by)


def run(kind: CountRun.Kind, *courses: Course, actor: str = "the tests") -> None:
    keys = [course.pk for course in courses]
    asked = Course.objects.filter(pk__in=keys) if courses else None
    list(run_audit(kind=kind, actor=actor, courses=asked))


def known() -> tuple[int, int, list[Course | None]]:
    found = health()
    return found.drifted, found.absolute_drift, [entry.course for entry in found.largest]


def said(client: Client) -> str:
    page = client.get(PAGE)
    assert page.status_code == 200
    return " ".join(page.content.decode().split())


def messages(client: Client) -> list[str]:
    page = client.post(PAGE, follow=True)
    return [str(message) for message in page.context["messages"]]


def test_before_anybody_looked(staff_client: Client, courses: list[Course]) -> None:
    assert "Nobody has looked at all counts yet" in said(staff_client)
    assert (health().is_right, health().drifted) == (False, 0)
    run(CHECK, courses[0])
    assert "Nobody has looked at all counts yet" in said(staff_client)


def test_right_as_of_the_last_look_at_all(staff_client: Client, courses: list[Course]) -> None:
    run(CHECK)
    run(CHECK, courses[0])
    assert "All counts are right" in said(staff_client)
    assert health().whole.courses_checked == 4
    old = timezone.now() - timedelta(days=2)
    CountRun.objects.update(started_at=old)
    page = said(staff_client)
    assert "All counts were right" in page
    assert "That is long ago" in page


def test_wrong_until_it_is_corrected(staff_client: Client, courses: list[Course]) -> None:
    damage(*courses[:3], by=5)
    run(CHECK)
    assert "3 courses with a wrong count" in said(staff_client)
    assert (health().absolute_drift, health().is_right) == (15, False)
    run(REBUILD, courses[0], courses[3])
    page = said(staff_client)
    assert "2 courses with a wrong count" in page
    assert "Since then 1 was corrected." in page
    assert health().absolute_drift == 10
    assert [found.course for found in health().largest] == courses[1:3]
    run(REBUILD, *courses)
    assert "Nothing that was found wrong is left" in said(staff_client)
    assert (health().drifted, health().absolute_drift, health().is_right) == (0, 0, False)
    run(CHECK)
    assert "All counts are right" in said(staff_client)


def test_a_rebuild_is_full_leaves_all_right(staff_client: Client, courses: list[Course]) -> None:
    damage(courses[0])
    run(REBUILD)
    page = said(staff_client)
    assert "All counts are right" in page
    assert "1 had drifted, and was corrected then." in page
    assert (health().whole.stored_sum, health().whole.true_sum) == (0, 0)


def test_a_look_at_a_part_that_finds_drift_is_believed(
    staff_client: Client, courses: list[Course]
) -> None:
    run(CHECK)
    damage(courses[1])
    run(CHECK, courses[1])
    assert "1 course with a wrong count" in said(staff_client)
    run(CHECK, courses[0])
    assert "1 course with a wrong count" in said(staff_client)


def test_a_course_that_was_corrected_and_deleted_hides_no_other(courses: list[Course]) -> None:
    damage(*courses[:2])
    run(CHECK)
    run(REBUILD, courses[0])
    courses[0].delete()
    assert [found.course for found in health().largest if found.course] == [courses[1]]


def test_correcting_one_course_hides_no_other(courses: list[Course]) -> None:
    damage(courses[0])
    run(CHECK)
    damage(courses[1])
    run(CHECK, courses[1])
    run(REBUILD, courses[1])
    assert known() == (1, 1, [courses[0]])
    assert health().wrong.is_full


def test_a_look_at_a_part_hides_nothing_that_was_found_before(
    staff_client: Client, courses: list[Course]
) -> None:
    damage(*courses[:3], by=5)
    run(CHECK)
    damage(courses[3], by=9)
    run(CHECK, courses[3])
    assert known() == (4, 24, [courses[3], *courses[:3]])
    next(run_audit(kind=CHECK, actor="one that was killed", courses=Course.objects.all()))
    assert known()[0] == 4
    run(REBUILD, courses[3])
    assert known() == (3, 15, courses[:3])
    assert "3 courses with a wrong count" in said(staff_client)


def test_what_drifts_again_is_wrong_by_what_was_found_last(courses: list[Course]) -> None:
    damage(*courses[:2], by=5)
    run(CHECK)
    run(REBUILD, courses[0])
    damage(*courses[:2], by=2)
    run(CHECK, *courses[:2])
    assert known() == (2, 4, courses[:2])
    run(REBUILD, courses[0])
    assert known() == (1, 2, [courses[1]])


def test_of_more_than_is_entered_none_is_taken_for_corrected(
    staff_client: Client, courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST_FOUND", 1)
    damage(courses[0], by=5)
    damage(*courses[1:3], by=2)
    run(CHECK)
    run(CHECK, courses[1])
    assert known() == (3, 9, [courses[0], courses[1]])
    damage(courses[3])
    run(REBUILD, courses[0], courses[3])
    assert known() == (2, 4, [courses[1]])
    assert "check again to see how many are left" in said(staff_client)
    run(REBUILD)
    assert known() == (0, 0, [])


def test_a_deleted_course_is_not_wrong(staff_client: Client, courses: list[Course]) -> None:
    damage(*courses[:2])
    run(CHECK)
    courses[0].delete()
    assert known() == (1, 1, [courses[1]])
    courses[1].delete()
    assert known() == (0, 0, [])
    assert "Nothing that was found wrong is left" in said(staff_client)


def during_a_check(*work: Callable[[], Any]) -> None:
    """Do that after the first course, the second, and so on."""
    steps = iter(work)
    list(
        run_audit(
            kind=CHECK, actor="slow", batch_size=1, batch_done=lambda _: next(steps, lambda: None)()
        )
    )


def test_what_a_slow_check_finds_after_another_has_passed_is_known(courses: list[Course]) -> None:
    damage(courses[0])

    def others() -> None:
        run(REBUILD)
        run(CHECK)
        assert health().is_right
        damage(courses[3], by=7)

    during_a_check(lambda: None, others)
    assert (health().is_right, *known()) == (False, 1, 7, [courses[3]])
    run(CHECK)
    assert known() == (1, 7, [courses[3]])


def test_what_is_found_while_others_correct_it_is_not_wrong_afterwards(
    courses: list[Course],
) -> None:
    damage(courses[0])
    during_a_check(lambda: None, lambda: run(REBUILD, courses[0]))
    assert known() == (0, 0, [])
    damage(courses[0])
    # Over all, after the slow one has seen the first course, and before its end.
    during_a_check(lambda: None, lambda: run(REBUILD))
    assert (health().is_right, *known()) == (True, 0, 0, [])
    damage(*courses[2:])
    slow = run_audit(kind=REBUILD, actor="the tests", batch_size=1)
    next(slow)
    run(CHECK, *courses)
    list(slow)
    assert known() == (0, 0, [])


def test_who_looks_and_who_breaks_off_is_listed(
    staff_client: Client, courses: list[Course]
) -> None:
    damage(courses[0])
    run(CHECK, actor="<b>somebody</b>")
    next(run_audit(kind=REBUILD, actor="the tests"))
    page = said(staff_client)
    assert "<td>&lt;b&gt;somebody&lt;/b&gt;</td>" in page
    assert "not at its end" in page


def test_more_of_anything_needs_no_more_queries(
    staff_client: Client, courses: list[Course], make_course: Make
) -> None:
    def queries() -> int:
        said(staff_client)
        with CaptureQueriesContext(connection) as captured:
            said(staff_client)
        # Not one of the tables that grow with the catalog.
        for table in ("courses_course`", 'courses_course"', "enrollments_enrollment"):
            assert not any(f"FROM {table}" in query["sql"] for query in captured)
        return len(captured)

    damage(courses[0])
    run(CHECK)
    run(REBUILD, courses[0])
    damage(courses[0])
    run(CHECK)
    before = queries()
    for _ in range(15):
        damage(make_course(), *courses)
        run(CHECK)
    run(REBUILD, courses[1])
    damage(courses[1])
    run(CHECK)
    assert queries() == before


# Check now -------------------------------------------------------------------------


def test_check_now_looks_says_and_changes_nothing(
    staff_client: Client, courses: list[Course]
) -> None:
    assert messages(staff_client) == ["4 courses looked at: all counts are right."]
    damage(courses[0])
    assert messages(staff_client) == ["4 courses looked at: 1 drifted."]
    assert len(drifts()) == 1
    assert CountRun.objects.latest("pk").actor == "admin: staff"
    assert "1 course with a wrong count" in said(staff_client)


def test_check_now_ends_when_time_is_up_and_says_how_to_look_at_all(
    staff_client: Client, courses: list[Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "CHECK_BATCH", 2)
    monkeypatch.setattr(audit.timed_check, "__kwdefaults__", {"seconds": 0})
    assert messages(staff_client) == [
        f"2 courses looked at: all counts are right. Time was up after course {courses[1].pk}; "
        "those after it were not looked at. For all of them: manage.py rebuild_counts --check"
    ]


def test_check_now_is_not_done_twice_at_once(staff_client: Client) -> None:
    CountRun.objects.create(kind=CHECK, actor="somebody", started_at=timezone.now())
    assert messages(staff_client) == ["A check is going on: look again in a few seconds."]
    assert CountRun.objects.count() == 1


# Permissions -----------------------------------------------------------------------


def sign_in(client: Client, *permissions: str) -> None:
    user = get_user_model().objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)


def test_who_may_view_courses_sees_it_and_may_not_check(
    client: Client, courses: list[Course]
) -> None:
    run(CHECK)
    sign_in(client, "view_course")
    page = said(client)
    assert "Check now" not in page
    assert "/countrun/" not in page
    assert client.post(PAGE).status_code == 403
    assert CountRun.objects.count() == 1
    assert f'<a href="{PAGE}">' in client.get("/admin/").content.decode()
    assert f'<a href="{PAGE}">' in client.get("/admin/courses/course/").content.decode()


def test_others_do_not(client: Client, db: None) -> None:
    assert client.get(PAGE).status_code == 302
    sign_in(client, "view_subject")
    assert client.get(PAGE).status_code == 403
    assert client.post(PAGE).status_code == 403
    assert PAGE not in client.get("/admin/").content.decode()


def test_a_forged_check_is_refused(courses: list[Course], django_user_model: Any) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(django_user_model.objects.create_superuser("staff"))
    assert strict.post(PAGE).status_code == 403


@pytest.mark.parametrize("model", ["countrun", "countdiscrepancy"])
def test_nobody_writes_the_ledger_by_hand(
    staff_client: Client, courses: list[Course], model: str
) -> None:
    damage(courses[0])
    run(CHECK)
    key = apps.get_model("courses", model)._default_manager.get().pk
    of = f"/admin/courses/{model}/"
    assert staff_client.get(of).status_code == 200
    assert staff_client.get(f"{of}{key}/change/").status_code == 200
    assert staff_client.post(f"{of}{key}/change/", {"actor": "me"}).status_code == 403
    assert staff_client.post(f"{of}{key}/delete/", {"post": "yes"}).status_code == 403
    assert staff_client.post(f"{of}add/", {}).status_code == 403
    data = {"action": "delete_selected", "_selected_action": key, "post": "yes"}
    staff_client.post(of, data)
    assert CountRun.objects.get().discrepancies.count() == 1


def test_a_course_leads_to_its_drifts_and_a_run_to_those_it_found(
    staff_client: Client, courses: list[Course]
) -> None:
    damage(*courses[:2], by=3)
    run(CHECK)
    page = staff_client.get(f"/admin/courses/course/{courses[0].pk}/change/").content.decode()
    link = f"/admin/courses/countdiscrepancy/?course__id__exact={courses[0].pk}"
    assert f'href="{link}"' in page
    listed = staff_client.get(link)
    assert [one.course for one in listed.context["cl"].result_list] == [courses[0]]
    assert "+3" in listed.content.decode()
    done = CountRun.objects.get()
    page = staff_client.get(f"/admin/courses/countrun/{done.pk}/change/").content.decode()
    link = f"/admin/courses/countdiscrepancy/?run__id__exact={done.pk}"
    assert f'href="{link}"' in page
    assert len(staff_client.get(link).context["cl"].result_list) == 2


# Plots -----------------------------------------------------------------------------


def test_plots_have_the_worst_run_and_the_sum_of_corrections_of_each_day(db: None) -> None:
    today, now = timezone.localdate(), timezone.now()
    for ago, drifted, corrected in [(0, 2, 0), (0, 3, 1), (0, 2, 2), (7, 9, 9), (60, 8, 8)]:
        CountRun.objects.create(
            kind=CHECK,
            actor="the tests",
            started_at=now - timedelta(days=ago),
            drifted=drifted,
            corrected=corrected,
        )
    by_name = {plot.name: plot for plot in plots()}
    week_ago = today - timedelta(days=7)
    assert by_name.keys() == {"drifted", "corrected", "runs"}
    assert all(len(plot.numbers) == 60 for plot in by_name.values())
    for name, of_today, of_then, total in [
        ("drifted", 3, 9, 12),
        ("corrected", 3, 9, 12),
        ("runs", 3, 1, 4),
    ]:
        numbers = by_name[name].numbers
        assert (numbers[today], numbers[week_ago], sum(numbers.values())) == (
            of_today,
            of_then,
            total,
        )


@override_settings(TIME_ZONE="Asia/Tokyo")
def test_days_and_times_are_utc_wherever_the_site_is(
    staff_client: Client, courses: list[Course], make_students: Make
) -> None:
    """MariaDB converts to no other zone before somebody has loaded its tables of zones."""
    enroll(student=make_students(1)[0], course=courses[0])
    run(CHECK)
    now = timezone.now()
    assert [plot.numbers[now.date()] for plot in plots()] == [0, 0, 1, 1]
    assert all(plot.last_day == now.date() for plot in plots())
    began = CountRun.objects.get().started_at
    page = said(staff_client)
    assert f"{began:%-d %b %Y, %H:%M:%S} UTC</time>" in page
    assert f"as of {began:%-d %b, %H:%M} UTC" in page
    assert f">{began:%-d %b, %H:%M:%S}</a>" in page


def test_enrollments_by_day_are_those_of_the_last_count(db: None, make_students: Make) -> None:
    today = timezone.localdate()
    days = {today.isoformat(): 7, "2001-01-01": 9}
    done = CountRun.objects.create(
        kind=CHECK,
        actor="the tests",
        started_at=timezone.now(),
        finished_at=timezone.now(),
        enrolled_by_day=json.dumps(days),
    )
    plot = plots()[-1]
    assert (plot.name, plot.as_of, plot.numbers[today]) == ("enrolled", done.finished_at, 7)
    assert sum(plot.numbers.values()) == 7


def test_a_plot_has_a_bar_for_each_day_that_is_not_0() -> None:
    plot = Plot("n", "N", "a day", {1: 0, 2: 1_000_000, 3: 1, 4: 500_000})
    assert plot.width == 40
    assert [(bar["day"], bar["x"], bar["y"], bar["height"]) for bar in plot.bars] == [
        (2, 11, 0, 100),
        (3, 21, 97, 3),
        (4, 31, 50, 50),
    ]
    assert Plot("n", "N", "a day", {1: 0}).bars == []
