from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Sum
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from courses.health import health
from courses.management.one_line import OneLineErrorCommand
from courses.models import Course


class Command(OneLineErrorCommand):
    help = (
        "Writes what Prometheus' node exporter reads from a text file: what the last check "
        "found, the number of enrolments, and the counters of the site's processes. Looks into "
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
        registry = CollectorRegistry()
        self._add_counts(registry)
        if counters:
            if not counters.is_dir():
                raise self.bad_input(
                    f"--counters: {counters} is no folder. The site makes it when it starts with "
                    "PROMETHEUS_MULTIPROC_DIR set."
                )
            MultiProcessCollector(registry, path=str(counters))  # type: ignore[no-untyped-call]
        with self.output(output) as file:
            file.write(generate_latest(registry).decode())

    @staticmethod
    def _add_counts(registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str, value: float) -> None:
            Gauge(name, meaning, registry=registry).set(value)

        found = health()
        gauge("courses_drifted", "Courses known to have a wrong count.", found.drifted)
        gauge("courses_absolute_drift", "By how much they were found wrong.", found.absolute_drift)
        # A time and not an age, which would stand still with the file. 0: never.
        checked_at = found.whole.started_at.timestamp() if found.whole else 0
        gauge("courses_last_check_timestamp_seconds", "The last check of all.", checked_at)
        stored = Course.objects.aggregate(sum=Sum("total_enrollments"))["sum"] or 0
        gauge("courses_enrollments", "Sum of the stored counts.", stored)
