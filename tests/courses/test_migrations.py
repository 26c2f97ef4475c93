"""Migrations that change data, run on the tables of the version before."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

Make = Callable[..., Any]
pytestmark = pytest.mark.django_db(transaction=True)


def migrate(name: str) -> Any:
    """Migrate the app to a migration, and return its models at that point."""
    executor = MigrationExecutor(connection)
    executor.migrate([("courses", name)])
    return executor.loader.project_state([("courses", name)]).apps


@pytest.fixture
def latest_schema() -> Iterator[None]:
    latest = MigrationExecutor(connection).loader.graph.leaf_nodes()
    yield
    MigrationExecutor(connection).migrate(latest)


class TestResolveDiscrepancies:
    """0008 keeps the newest uncorrected row of each course open."""

    @pytest.fixture
    def old_apps(self, latest_schema: None) -> Any:
        return migrate("0007_discrepancy_resolution")

    @pytest.fixture
    def make_run(self, old_apps: Any) -> Make:
        model = old_apps.get_model("courses", "CountRun")

        def make(*, minute: int, kind: str = "check", **values: Any) -> Any:
            started_at = self.at(minute)
            finished_at = started_at + timedelta(seconds=50)
            values = {"is_full": True, "finished_at": finished_at} | values
            return model.objects.create(kind=kind, actor="x", started_at=started_at, **values)

        return make

    @pytest.fixture
    def make_row(self, old_apps: Any) -> Make:
        courses = old_apps.get_model("courses", "Course")
        model = old_apps.get_model("courses", "CountDiscrepancy")

        def make(run: Any, title: str, *, second: int = 10) -> int:
            course, _ = courses.objects.get_or_create(slug=title, defaults={"title": title})
            found_at = run.started_at + timedelta(seconds=second)
            return model.objects.create(
                run=run,
                course=course,
                course_title=title,
                stored=1,
                true=0,
                drift=1,
                corrected=run.kind == "rebuild",
                found_at=found_at,
                last_seen_at=found_at,
            ).pk

        return make

    def at(self, minute: int) -> Any:
        return timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=minute - 60)

    def open_rows(self) -> set[int]:
        new = migrate("0008_resolve_discrepancies").get_model("courses", "CountDiscrepancy")
        assert not new.objects.filter(corrected=True, resolved_at=None).exists()
        return set(new.objects.filter(resolved_at=None).values_list("pk", flat=True))

    def test_only_the_newest_row_of_a_course_stays_open(
        self, make_run: Make, make_row: Make
    ) -> None:
        for minute in (1, 2):
            make_row(make_run(minute=minute), "drifted")
        newest = make_row(make_run(minute=3), "drifted")
        assert self.open_rows() == {newest}

    def test_rows_from_before_the_last_full_run_are_resolved(
        self, make_run: Make, make_row: Make
    ) -> None:
        make_row(make_run(minute=1), "correct again")
        last = make_run(minute=2)
        drifted = make_row(last, "drifted")
        partial = make_row(make_run(minute=3, is_full=False), "found later")
        assert self.open_rows() == {drifted, partial}

    def test_corrected_rows_are_resolved(self, make_run: Make, make_row: Make) -> None:
        check = make_run(minute=1)
        make_row(check, "corrected")
        drifted = make_row(check, "drifted")
        make_row(make_run(minute=2, kind="rebuild", is_full=False), "corrected")
        make_row(make_run(minute=3, is_full=False), "drifted again")
        again = make_row(make_run(minute=4, kind="rebuild", is_full=False), "drifted again")
        newest = make_row(make_run(minute=5, is_full=False), "drifted again")
        assert again not in (drifted, newest)
        assert self.open_rows() == {drifted, newest}

    def test_a_correction_during_the_check_resolves_the_row(
        self, make_run: Make, make_row: Make
    ) -> None:
        """The old version recorded the rows of a check when the check had ended."""
        rebuild = make_run(minute=1, kind="rebuild", is_full=False)
        make_row(rebuild, "corrected", second=20)
        make_row(make_run(minute=1), "corrected", second=10)
        assert self.open_rows() == set()

    def test_rows_of_deleted_courses_are_resolved(
        self, old_apps: Any, make_run: Make, make_row: Make
    ) -> None:
        pk = make_row(make_run(minute=1), "deleted")
        rows = old_apps.get_model("courses", "CountDiscrepancy").objects.filter(pk=pk)
        rows.update(course=None)
        assert self.open_rows() == set()

    def test_without_a_full_run_all_uncorrected_courses_stay_open(
        self, make_run: Make, make_row: Make
    ) -> None:
        rows = {
            make_row(make_run(minute=minute, is_full=False), f"course {minute}")
            for minute in (1, 2)
        }
        assert self.open_rows() == rows


def test_ids_of_imported_courses_are_copied_from_their_titles(latest_schema: None) -> None:
    """0011 recognizes them by the slug that the import made from the ID."""
    courses = migrate("0009_remove_count_sums").get_model("courses", "Course").objects
    for title, slug in [
        ("AAA-2013J", "aaa-2013j"),
        ("phys 1", "phys-1-032073de"),
        ("课程一四四七三六", "course-cf37881f"),
        ("Edited", "phys-2-7f0e6d1a"),
        ("Advanced Law", "advanced-law"),
    ]:
        courses.create(title=title, slug=slug)
    courses = migrate("0011_course_codes_from_titles").get_model("courses", "Course").objects
    assert set(courses.exclude(code="").values_list("code", "title")) == {
        (title, title) for title in ("AAA-2013J", "phys 1", "课程一四四七三六")
    }
    assert courses.filter(code="").count() == 2
