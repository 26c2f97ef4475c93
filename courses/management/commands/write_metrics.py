import struct
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from courses.counts.status import count_status
from courses.management.base import AppCommand
from courses.managers import total
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
        metrics, error = _read_counts(), None
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


def _read_counts() -> str:
    status = count_status()
    # An age would stop growing if this command no longer ran.
    checked_at = status.checked_at.timestamp() if status.checked_at else 0
    courses = Course.objects.using(DEFAULT_DB_ALIAS)
    enrollments = int(courses.aggregate(sum=total("total_enrollments"))["sum"])
    return (
        _gauge("drifted", "Courses known to have drifted.", status.drifted)
        + _gauge("absolute_drift", "Sum of their drifts without the signs.", status.absolute_drift)
        + _gauge("last_check_timestamp_seconds", "Last check of all courses, or 0.", checked_at)
        + _gauge("enrollments", "Sum of the stored counts.", enrollments)
    )


def _gauge(name: str, text: str, value: object) -> str:
    # A prometheus_client.Gauge would also write its value to PROMETHEUS_MULTIPROC_DIR, if this
    # process has one, and the next run would report it again.
    name = f"courses_{name}"
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value}\n"


def _read_counters(directory: Path) -> str:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    return generate_latest(registry).decode()
