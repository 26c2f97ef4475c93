"""Measure approaches to the same work in rounds, and compare them by ratios within a round."""

import math
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import django
from django.db import connection
from tqdm import tqdm

# Names of approaches may continue after a colon: "floor: bare driver".
FLOOR, PROJECT = "floor", "this project"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    rounds: int
    writers: dict[int, int]  # number of processes: students that each of them enrolls
    growth: tuple[int, ...]  # enrollments that the courses have before the measurement
    one_by_one: int  # students that the bulk benchmark enrolls one by one
    courses: int  # courses that are checked and rebuilt
    catalog_courses: int
    row_by_row_lines: int  # lines of the import file that are imported row by row


SIZES = {
    "small": Size(
        rounds=3,
        writers={1: 250, 8: 40, 16: 25},
        growth=(10, 1_000, 100_000),
        one_by_one=400,
        courses=1_000,
        catalog_courses=50_000,
        row_by_row_lines=800,
    ),
    "large": Size(
        rounds=5,
        writers={1: 1_000, 8: 150, 16: 100},
        growth=(10, 10_000, 1_000_000),
        one_by_one=2_000,
        courses=5_000,
        catalog_courses=1_000_000,
        row_by_row_lines=3_000,
    ),
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one approach did in one round."""

    seconds: float  # wall-clock time
    items: int  # enrollments, courses, pages or lines that were completed
    failed: int = 0
    drift: int = 0  # stored count − true count afterwards
    latencies: Sequence[float] = ()  # seconds of each completed call

    @property
    def seconds_per_item(self) -> float:
        return self.seconds / self.items if self.items else math.inf


@dataclass
class Approach:
    """One way to do the work of a benchmark. `measurements` has one entry for each round."""

    name: str
    measure: Callable[[], Measurement]
    measurements: list[Measurement] = field(default_factory=list)

    def time_ratio(self, other: "Approach") -> float:
        """Return the time per item as a multiple of the other approach's."""
        # Ratios are taken within a round, because the load of the machine changes between rounds.
        rounds = zip(self.measurements, other.measurements, strict=True)
        return statistics.median(
            mine.seconds_per_item / its.seconds_per_item for mine, its in rounds
        )

    @property
    def rate(self) -> float:
        """Items per second."""
        return 1 / statistics.median(each.seconds_per_item for each in self.measurements)

    @property
    def failed(self) -> int:
        return sum(each.failed for each in self.measurements)

    @property
    def attempted(self) -> int:
        return self.failed + sum(each.items for each in self.measurements)

    @property
    def drift(self) -> int:
        return sum(abs(each.drift) for each in self.measurements)

    def percentile(self, percent: int) -> float:
        """Return the latency in seconds. Raises IndexError if latencies were not measured."""
        latencies = sorted(seconds for each in self.measurements for seconds in each.latencies)
        return latencies[(len(latencies) - 1) * percent // 100]


@dataclass
class Benchmark:
    """Approaches to the same work. One of them is PROJECT, and one is FLOOR if there is one."""

    name: str
    title: str  # with the unit of the rate
    approaches: list[Approach]
    course_size: int = 0  # rows of the course, if benchmarks differ in it
    memory: float = 0  # MiB that the project's command needs, if it was measured

    def __getitem__(self, name: str) -> Approach:
        """Return the approach of this name, or of this name before a colon."""
        return next(each for each in self.approaches if each.name.partition(":")[0] == name)

    @property
    def has_floor(self) -> bool:
        return any(each.name.startswith(FLOOR) for each in self.approaches)

    def ratio(self, slow: str, fast: str) -> float:
        """Return the time of one approach as a multiple of the other's."""
        return self[slow].time_ratio(self[fast])


def run_rounds(*benchmarks: Benchmark, rounds: int) -> None:
    """Measure every approach once in each round, in an order that changes with the round."""
    total = rounds * sum(len(benchmark.approaches) for benchmark in benchmarks)
    # disable=None: draw the progress bar on a terminal only.
    with tqdm(total=total, desc=benchmarks[0].name, disable=None, leave=False) as bar:
        for number in range(rounds):
            for benchmark in benchmarks:
                approaches = benchmark.approaches
                for approach in random.Random(number).sample(approaches, len(approaches)):
                    approach.measurements.append(approach.measure())
                    bar.update()


def timed_approach(
    name: str,
    function: Callable[[], object],
    *,
    calls: int = 1,
    items: int = 1,
    context: Callable[[], AbstractContextManager] = nullcontext,
    count_drift: Callable[[], int] = lambda: 0,
) -> Approach:
    """Return an approach that calls `function` in each round.

    Each call completes `items` items. `context` surrounds the calls, and its own time is not
    measured. The time of `count_drift`, which is called afterwards, is not measured either.
    """

    def measure() -> Measurement:
        latencies = []
        with context():
            for _ in range(calls):
                start = time.perf_counter()
                function()
                latencies.append(time.perf_counter() - start)
        return Measurement(
            seconds=sum(latencies),
            items=calls * items,
            drift=count_drift(),
            latencies=latencies if calls > 1 else (),
        )

    return Approach(name, measure)


def command_memory(*command: str) -> float:
    """Return the MiB that a management command needs in addition to an idle process.

    The command runs on the current database. Needs Linux.
    """
    # A new process, because a used one has freed memory that the command would reuse.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_run_command, connection.settings_dict["NAME"], *command).result()


def _run_command(database: str, *command: str) -> float:
    django.setup()
    from django.core.management import call_command

    connection.settings_dict["NAME"] = database
    connection.ensure_connection()
    idle = _process_memory("VmRSS")
    with open(os.devnull, "w") as devnull:
        call_command(*command, stdout=devnull)
    return _process_memory("VmHWM") - idle


def _process_memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kibibytes) / 1024
