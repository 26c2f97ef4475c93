"""Runs of ways to do one work, interleaved; medians of them."""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

FLOOR, OURS = "floor", "ours"


@dataclass(frozen=True, slots=True)
class Run:
    """What one run did. `seconds` is by the clock on the wall."""

    seconds: float
    done: int
    failed: int = 0
    drift: int = 0  # by how much the stored count was wrong afterwards
    latencies: Sequence[float] = ()  # seconds of each call that succeeded

    @property
    def each(self) -> float:
        """Seconds for one thing done."""
        return self.seconds / self.done if self.done else math.inf


@dataclass(frozen=True)
class Way:
    """One way to do a work. The names FLOOR and OURS may be followed by a comma and more."""

    name: str
    run: Callable[[], Run]

    @property
    def role(self) -> str:
        return self.name.partition(",")[0]


@dataclass
class Work:
    """What all the ways do, and the runs of each, by its place in `ways`."""

    key: str
    title: str  # with the unit that the rate counts
    ways: Sequence[Way]
    runs: list[list[Run]] = field(default_factory=list)
    memory: float | None = None  # MiB that ours takes beyond an idle process, where it is measured

    def of(self, start: str) -> "Result":
        """The result of the first way whose name starts with this."""
        number = next(n for n, way in enumerate(self.ways) if way.name.startswith(start))
        return Result(self, number)

    @property
    def results(self) -> list["Result"]:
        return [Result(self, number) for number in range(len(self.ways))]


@dataclass(frozen=True)
class Result:
    """Medians of one way's runs."""

    work: Work
    number: int

    @property
    def name(self) -> str:
        return self.work.ways[self.number].name

    @property
    def runs(self) -> list[Run]:
        return self.work.runs[self.number]

    def times(self, other: "Result") -> float:
        """Its time as a multiple of another's: the median of the rounds."""
        # Of one round, for what else the machine does changes from round to round.
        pairs = zip(self.runs, other.runs, strict=True)
        return statistics.median(mine.each / its.each for mine, its in pairs)

    @property
    def each(self) -> float:
        return statistics.median(run.each for run in self.runs)

    @property
    def failed(self) -> int:
        return sum(run.failed for run in self.runs)

    @property
    def tried(self) -> int:
        return self.failed + sum(run.done for run in self.runs)

    @property
    def drift(self) -> int:
        return sum(abs(run.drift) for run in self.runs)

    def percentile(self, percent: int) -> float | None:
        """Seconds that so many of the calls took at most."""
        latencies = sorted(latency for run in self.runs for latency in run.latencies)
        return latencies[(len(latencies) - 1) * percent // 100] if latencies else None


def measure(works: Sequence[Work], *, rounds: int, done: Callable[[], object]) -> None:
    """Run all ways of all works `rounds` times, in turns; `done` is called after each run."""
    for work in works:
        work.runs = [[] for _ in work.ways]
    for number in range(rounds):
        for work in works:
            # In another order each time: a way may find the machine as the one before left it.
            for place in random.Random(number).sample(range(len(work.ways)), len(work.ways)):
                work.runs[place].append(work.ways[place].run())
                done()


def timed(function: Callable[[], object], *, done: int = 1) -> Run:
    began = time.perf_counter()
    function()
    return Run(time.perf_counter() - began, done)


def timed_each(calls: Iterable[Callable[[], object]]) -> Run:
    latencies = [timed(call).seconds for call in calls]
    return Run(sum(latencies), len(latencies), latencies=latencies)
