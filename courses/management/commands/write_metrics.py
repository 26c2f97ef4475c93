import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Sum
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from courses.counts.status import health
from courses.management.base import AppCommand
from courses.models import Course


class Command(AppCommand):
    help = (
        "Writes what Prometheus' node exporter reads from a text file: what the last check "
        "found, the number of enrollments, and the counters of the site's processes. Looks into "
        "the ledger and checks nothing itself."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_output_argument(parser)
        parser.add_argument(
            "--counters",
            type=Path,
            metavar="FOLDER",
            help="the site's PROMETHEUS_MULTIPROC_DIR: refusals, retries and deadlocks as well",
        )

    def handle(self, *, output: Path | None, counters: Path | None, **options: Any) -> None:
        text, error = _exposed(_Counts()), ""
        if counters:
            # What is wrong with the site's counters keeps nobody from learning of drift.
            try:
                if not counters.is_dir():
                    raise NotADirectoryError("it is no folder")
                text += _exposed(
                    MultiProcessCollector(None, path=str(counters))  # type: ignore[no-untyped-call]
                )
            except (OSError, RuntimeError, ValueError, struct.error) as unreadable:
                error = (
                    f"--counters: {counters} can't be read ({unreadable}); all else is written. "
                    "The site makes that folder when it starts with PROMETHEUS_MULTIPROC_DIR set."
                )
        with self.output(output) as file:
            file.write(text)
        if error:
            raise self.usage_error(error)


class _Counts(Collector):
    # Not `Gauge`, which in a process with PROMETHEUS_MULTIPROC_DIR leaves its values there,
    # to be told for ever.
    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = health()
        yield GaugeMetricFamily(
            "courses_drifted", "Courses known to have a wrong count.", found.drifted
        )
        yield GaugeMetricFamily(
            "courses_absolute_drift", "By how much they were found wrong.", found.absolute_drift
        )
        # A time and not an age, which would stand still with the file. 0: never.
        checked_at = found.whole.started_at.timestamp() if found.whole else 0
        yield GaugeMetricFamily(
            "courses_last_check_timestamp_seconds", "The last check of all.", checked_at
        )
        stored = Course.objects.aggregate(sum=Sum("total_enrollments"))["sum"] or 0
        yield GaugeMetricFamily("courses_enrollments", "Sum of the stored counts.", stored)


def _exposed(collector: Collector) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry).decode()
