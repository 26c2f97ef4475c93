from collections.abc import Iterator

import pytest

from tests.support.counts import drift_by_title
from tests.support.history import history_mismatches


@pytest.fixture(autouse=True)
def check_counts_and_history_afterwards(db: None) -> Iterator[None]:
    yield
    assert drift_by_title() == {}
    assert history_mismatches() == set()
