from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from courses.models import CountDiscrepancy, CountRun
from tests.support.audits import CHECK, REBUILD, add_drift, run_recorded
from tests.support.commands import assert_usage_error, manage


def test_old_runs_and_discrepancies_are_deleted(
    make_course: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    add_drift(make_course(), make_course())
    run_recorded(REBUILD)
    long_ago = timezone.now() - timedelta(days=401)
    CountRun.objects.update(started_at=long_ago)
    CountDiscrepancy.objects.update(resolved_at=long_ago)
    kept = run_recorded(CHECK)
    call_command("prune_count_runs", "--keep-days", "402")
    assert capsys.readouterr().out == "Deleted 0 runs and 0 discrepancies older than 402 days.\n"
    call_command("prune_count_runs")
    assert capsys.readouterr().out == "Deleted 1 run and 2 discrepancies older than 400 days.\n"
    assert CountRun.objects.get() == kept
    call_command("prune_count_runs", verbosity=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("days", ["0", "-1", "many"])
def test_invalid_numbers_of_days_raise_command_error(db: None, days: str) -> None:
    with pytest.raises(CommandError, match=f"--keep-days: .*'{days}'"):
        call_command("prune_count_runs", "--keep-days", days)


@pytest.mark.django_db(transaction=True)
def test_the_command_runs_as_a_process() -> None:
    assert_usage_error(manage("prune_count_runs", "--keep-days", "0"), "not '0'")
    deleted = "Deleted 0 runs and 0 discrepancies older than 400 days.\n"
    assert manage("prune_count_runs").stdout == deleted
