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

from courses.counts.status import count_status
from courses.management.base import AppCommand
from courses.models import Course


class Command(AppCommand):
    help = (
        "Writes metrics for the text file collector of Prometheus' node exporter: the result of "
        "the last check, the number of enrollments, and the counters of the site's processes. "
        "Checks nothing itself."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_output_argument(parser)
        parser.add_argument(
            "--counters",
            type=Path,
            metavar="DIR",
            help="also write the counters in this directory, the PROMETHEUS_MULTIPROC_DIR of the "
            "site: rejections, retries and deadlocks",
        )

    def handle(self, *, output: Path | None, counters: Path | None, **options: Any) -> None:
        metrics, error = _format(_CountCollector()), None
        if counters:
            # Drift must be reported even if the counters are unreadable.
            try:
                metrics += _read_counters(counters)
            except (OSError, RuntimeError, ValueError, struct.error) as reason:
                error = self.usage_error(
                    f"--counters: {counters} can't be read ({reason}). All other metrics are "
                    "written. The site creates the directory when it starts with "
                    "PROMETHEUS_MULTIPROC_DIR set."
                )
        with self.output(output) as file:
            file.write(metrics)
        if error:
            raise error


class _CountCollector(Collector):
    # A prometheus_client.Gauge would also write its value to PROMETHEUS_MULTIPROC_DIR, if this
    # process has one, and the next run would report it again.
    def collect(self) -> Iterator[GaugeMetricFamily]:
        status = count_status()
        yield GaugeMetricFamily("courses_drifted", "Courses known to have drifted.", status.drifted)
        yield GaugeMetricFamily(
            "courses_absolute_drift",
            "Sum of their drifts without the signs, in enrollments.",
            status.absolute_drift,
        )
        # An age would stop growing if this command no longer ran.
        yield GaugeMetricFamily(
            "courses_last_check_timestamp_seconds",
            "Time of the last check of all courses, or 0 if there was none.",
            status.checked_at.timestamp() if status.checked_at else 0,
        )
        enrollments = Course.objects.aggregate(sum=Sum("total_enrollments", default=0))["sum"]
        yield GaugeMetricFamily("courses_enrollments", "Sum of the stored counts.", enrollments)


def _read_counters(directory: Path) -> str:
    if not directory.is_dir():
        raise NotADirectoryError("it is not a directory")
    return _format(
        MultiProcessCollector(None, path=str(directory))  # type: ignore[no-untyped-call]
    )


def _format(collector: Collector) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry).decode()
