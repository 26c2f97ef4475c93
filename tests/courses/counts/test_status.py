import re
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import pytest
from django.db import connection
from django.template.loader import render_to_string
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from courses.counts import status
from courses.counts.audit import run_audit
from courses.counts.status import CHART_DAYS, ChartDay, chart_days, count_status
from courses.models import CountDiscrepancy, CountRun, Course
from tests.support.audits import CHECK, REBUILD, add_drift, run_recorded

Make = Callable[..., Any]


@pytest.fixture
def courses(make_course: Make) -> list[Course]:
    return [make_course() for _ in range(4)]


def drifted() -> tuple[int, int, list[Course]]:
    status = count_status()
    return status.drifted, status.absolute_drift, [row.course for row in status.largest]


class TestCountStatus:
    def test_without_a_full_run_nothing_is_correct(self, courses: list[Course]) -> None:
        run_recorded(CHECK, courses[0])
        status = count_status()
        assert (status.last_full_run, status.checked_at) == (None, None)
        assert (status.is_correct, status.is_stale, status.drifted) == (False, False, 0)

    def test_the_last_full_run_decides(self, courses: list[Course]) -> None:
        run = run_recorded(CHECK)
        run_recorded(CHECK, courses[0])
        status = count_status()
        assert (status.last_full_run, status.checked_at) == (run, run.finished_at)
        assert (status.is_correct, status.is_stale) == (True, False)

    def test_a_result_is_stale_after_a_day(self, courses: list[Course]) -> None:
        run_recorded(CHECK)
        CountRun.objects.update(finished_at=timezone.now() - timedelta(hours=25))
        assert count_status().is_stale

    def test_drifted_courses_are_listed_by_the_size_of_their_drift(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0], by=2)
        add_drift(courses[1], by=3)
        Course.objects.filter(pk=courses[2].pk).update(total_enrollments=0)
        run_recorded(CHECK)
        CountDiscrepancy.objects.filter(course=courses[0]).update(drift=-5)
        assert drifted() == (2, 8, [courses[0], courses[1]])

    def test_drifts_may_have_a_sum_beyond_64_bits(self, courses: list[Course]) -> None:
        add_drift(*courses[:2])
        run_recorded(CHECK)
        CountDiscrepancy.objects.update(drift=2**63 - 1)
        assert drifted() == (2, 2**64, courses[:2])

    def test_at_most_max_listed_discrepancies_are_listed(
        self, courses: list[Course], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(status, "MAX_LISTED_DISCREPANCIES", 2)
        add_drift(*courses)
        run_recorded(CHECK)
        assert drifted() == (4, 4, courses[:2])

    def test_corrected_courses_are_no_longer_drifted(self, courses: list[Course]) -> None:
        add_drift(*courses[:3], by=5)
        run_recorded(CHECK)
        run_recorded(REBUILD, courses[0], courses[3])
        assert drifted() == (2, 10, courses[1:3])
        assert not count_status().is_correct

    def test_correcting_all_courses_one_by_one_needs_a_full_check_to_be_correct(
        self, courses: list[Course]
    ) -> None:
        add_drift(courses[0])
        run_recorded(CHECK)
        run_recorded(REBUILD, courses[0])
        assert drifted() == (0, 0, [])
        assert not count_status().is_correct
        run_recorded(CHECK)
        assert count_status().is_correct

    def test_a_full_rebuild_leaves_all_counts_correct(self, courses: list[Course]) -> None:
        add_drift(courses[0])
        run_recorded(REBUILD)
        assert count_status().is_correct

    def test_drift_found_by_a_partial_check_counts(self, courses: list[Course]) -> None:
        run_recorded(CHECK)
        add_drift(courses[1], by=2)
        run_recorded(CHECK, courses[1])
        run_recorded(CHECK, courses[0])
        assert drifted() == (1, 2, [courses[1]])
        assert not count_status().is_correct

    def test_an_interrupted_check_hides_no_drift(self, courses: list[Course]) -> None:
        add_drift(*courses, by=5)
        run_recorded(CHECK)
        next(run_audit(kind=CHECK, actor="interrupted"))
        assert drifted() == (4, 20, courses)

    def test_duplicate_rows_count_once(self, courses: list[Course]) -> None:
        add_drift(courses[0], by=2)
        run_recorded(CHECK)
        row = CountDiscrepancy.objects.get()
        row.pk = None
        row.save()
        assert drifted() == (1, 2, [courses[0]])

    def test_deleted_courses_are_not_drifted(self, courses: list[Course]) -> None:
        add_drift(*courses[:2])
        run_recorded(CHECK)
        courses[0].delete()
        assert drifted() == (1, 1, [courses[1]])
        courses[1].delete()
        assert drifted() == (0, 0, [])

    def test_the_number_of_queries_is_constant(
        self, courses: list[Course], make_course: Make
    ) -> None:
        def count_queries() -> int:
            with CaptureQueriesContext(connection) as queries:
                count_status()
                chart_days()
            # The catalog's own tables are not read.
            for table in ("courses_course`", 'courses_course"', "enrollments_enrollment"):
                assert not any(f"FROM {table}" in query["sql"] for query in queries)
            return len(queries)

        run_recorded(CHECK)
        expected = count_queries()
        for _ in range(15):
            add_drift(make_course(), *courses)
            run_recorded(CHECK)
        assert count_queries() == expected == 4


def render_chart(days: list[ChartDay], maximum: int) -> list[tuple[str, ...]]:
    """Return the class, the position and the height of each rectangle."""
    context = {"days": days, "maximum": maximum}
    html = render_to_string("admin/courses/counts/chart.html", context)
    return re.findall(r'<rect class="([^"]+)" x="([^"]+)" width="[^"]+" height="([^"]+)"', html)


class TestChart:
    def test_a_day_has_the_worst_run_and_the_sum_of_corrections(self, db: None) -> None:
        for days, drifted, corrected in [(0, 2, 0), (0, 3, 1), (0, 2, 2), (7, 9, 9), (60, 8, 8)]:
            started_at = timezone.now() - timedelta(days=days)
            CountRun.objects.create(
                kind=CHECK,
                actor="the tests",
                started_at=started_at,
                drifted=drifted,
                corrected=corrected,
            )
        today = timezone.now().astimezone(UTC).date()
        days = chart_days()
        assert len(days) == CHART_DAYS
        assert [day for day in days if day.drifted is not None] == [
            ChartDay(today - timedelta(days=7), 9, 9),
            ChartDay(today, 3, 3),
        ]

    def test_a_day_with_a_check_and_no_drift_is_no_gap(self, courses: list[Course]) -> None:
        run_recorded(CHECK)
        days = chart_days()
        assert days[-1].drifted == 0
        shapes = [name for name, *_ in render_chart(days, maximum=0)]
        assert shapes == ["gap"] * (CHART_DAYS - 1)

    @override_settings(TIME_ZONE="Asia/Tokyo")
    def test_days_are_utc_days(self, courses: list[Course]) -> None:
        """MariaDB converts to other time zones only after their tables were loaded."""
        run = run_recorded(CHECK)
        last = chart_days()[-1]
        assert (last.day, last.drifted) == (run.started_at.astimezone(UTC).date(), 0)

    def test_bars_are_scaled_to_the_maximum_and_stay_visible(self) -> None:
        day = timezone.now().date()
        numbers = [(0, 0), (1_000_000, 1), (None, 0), (500_000, 0)]
        days = [ChartDay(day, *pair) for pair in numbers]
        assert render_chart(days, maximum=1_000_000) == [
            ("bar drifted", "1.1", "100"),
            ("bar corrected", "1.5", "3"),
            ("gap", "2", "100"),
            ("bar drifted", "3.1", "51"),
        ]
