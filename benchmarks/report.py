"""What was measured, as text: where, the table, the targets, what growth looks like."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import django
from django.db import connection

from benchmarks.measuring import FLOOR, OURS, Result, Work

HEAD = ("work", "way", "× floor", "× ours", "per second", "failed", "drift", "p50 ms", "p99 ms")
SIGNAL, ROW_FIRST, BY_ROW = "signal", "row first", "row by row"
LOOP, SAFE_LOOP = "loop over courses, COUNT", "loop over courses, lock"
AS_DJANGO = "bare driver, autocommit"


def where(*, size: str, rounds: int, command: str) -> list[str]:
    """The machine, the versions and the server's settings."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT VERSION(), @@innodb_flush_log_at_trx_commit, @@innodb_buffer_pool_size, "
            "@@log_bin"
        )
        version, flush, pool, binary_log = cursor.fetchone()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        f"- {datetime.now(UTC):%Y-%m-%d}, `{command}`: size {size}, {rounds} rounds",
        f"- {_processor()}, {os.cpu_count()} cores, {memory / 2**30:.0f} GiB of memory, "
        f"load average {os.getloadavg()[0]:.1f} at the beginning",
        f"- MariaDB {version}, Python {platform.python_version()}, Django {django.__version__}",
        f"- innodb_flush_log_at_trx_commit={flush}, innodb_buffer_pool_size={pool // 2**20} MiB, "
        f"binary log {'on' if binary_log else 'off'}, READ COMMITTED: the same for all",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(works: Sequence[Work]) -> list[str]:
    """A table that reads well on a terminal and in Markdown."""
    rows = [HEAD, *(row for work in works for row in _rows(work))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "| " + " | ".join(_aligned(row, widths)) + " |"
        for row in [HEAD, ["-" * 3] * len(HEAD), *rows[1:]]
    ]
    rule = ["-" * width + ("-" if column < 2 else ":") for column, width in enumerate(widths)]
    lines[1] = "|-" + "|-".join(rule) + "|"
    return lines


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if column < 2 else cell.rjust(width)


def _rows(work: Work) -> Iterator[Sequence[str]]:
    floor, ours = work.of(FLOOR), work.of(OURS)
    for result in work.results:
        yield (
            work.title if result.number == 0 else "",
            result.name,
            _ratio(result.times(floor)),
            _ratio(result.times(ours)),
            _rounded(1 / result.each),
            f"{result.failed:,} of {result.tried:,}" if result.failed else "0",
            f"{result.drift:,}",
            _milliseconds(result, 50),
            _milliseconds(result, 99),
        )


def _ratio(value: float) -> str:
    """To three digits."""
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}" if value else "0"


def _rounded(value: float) -> str:
    """To three digits."""
    return f"{float(f'{value:.3g}'):,g}" if value < 1e6 else f"{value:,.0f}"


def _milliseconds(result: Result, percent: int) -> str:
    seconds = result.percentile(percent)
    return "" if seconds is None else f"{seconds * 1000:,.2f}"


@dataclass(frozen=True)
class Target:
    """What is to be reached; `value` raises KeyError where the work wasn't measured."""

    text: str
    value: Callable[[Mapping[str, Work]], float | None]
    most: float | None = None
    least: float | None = None
    unit: str = "×"
    # What else the same runs say about a target that was missed.
    aside: Callable[[Mapping[str, Work]], str] | None = None

    def verdict(self, works: Mapping[str, Work]) -> str | None:
        try:
            value = self.value(works)
        except KeyError:
            return None
        if value is None:
            return f"- {self.text}: not measured on this system"
        met = (self.most is None or value <= self.most) and (
            self.least is None or value >= self.least
        )
        aside = f" ({self.aside(works)})" if self.aside and not met else ""
        return (
            f"- {self.text}: {_ratio(value)} {self.unit}, {'met' if met else '**missed**'}{aside}"
        )


def _times(key: str, slow: str, fast: str) -> Callable[[Mapping[str, Work]], float]:
    return lambda works: works[key].of(slow).times(works[key].of(fast))


def _growth(works: Mapping[str, Work]) -> list[tuple[int, Work]]:
    found = [(int(key.split()[1]), work) for key, work in works.items() if key.startswith("growth")]
    if not found:
        raise KeyError("growth")
    return sorted(found, key=lambda each: each[0])


def _flatness(works: Mapping[str, Work], way: str = OURS) -> float:
    medians = [work.of(way).percentile(50) or 0 for _, work in _growth(works)]
    return medians[-1] / medians[0]


TARGETS = [
    Target(
        "enroll, 1 writer, ≤ 2 × the floor's time",
        _times("writers 1", OURS, FLOOR),
        most=2,
        aside=lambda works: (
            "the driver alone, switching autocommit off and on as Django's transactions do: "
            f"{_ratio(_times('writers 1', AS_DJANGO, FLOOR)(works))} ×; the rest is Python's time"
        ),
    ),
    Target(
        "enroll, 16 writers, ≥ 0.5 × the floor's rate", _times("writers 16", FLOOR, OURS), least=0.5
    ),
    Target(
        "enroll, 16 writers, ≥ 5 × the rate of row first",
        _times("writers 16", ROW_FIRST, OURS),
        least=5,
    ),
    Target(
        "enroll, 16 writers, ≥ 5 × the rate of the signal",
        _times("writers 16", SIGNAL, OURS),
        least=5,
    ),
    Target(
        "enroll, no failures of 1, 8 and 16 writers",
        lambda works: sum(works[f"writers {number}"].of(OURS).failed for number in (1, 8, 16)),
        most=0,
        unit="failures",
    ),
    Target("enroll, largest course ≤ 1.1 × the smallest one's time", _flatness, most=1.1),
    Target("enroll_many ≤ 2 × the multi-row INSERT", _times("many", OURS, FLOOR), most=2),
    Target("check ≤ 1.5 × the grouped scan", _times("check", OURS, FLOOR), most=1.5),
    Target(
        "rebuild ≥ 20 × faster than the loop",
        _times("rebuild", LOOP, OURS),
        least=20,
        aside=lambda works: (
            f"the floor itself: {_ratio(_times('rebuild', LOOP, FLOOR)(works))} ×; than the loop "
            "with locks, which is right while others enroll, as ours is: "
            f"{_ratio(_times('rebuild', SAFE_LOOP, OURS)(works))} ×"
        ),
    ),
    Target("import ≥ 10 × faster than row by row", _times("import", BY_ROW, OURS), least=10),
    Target(
        "memory of the import ≤ 100 MiB above the idle process",
        lambda works: works["import"].memory,
        most=100,
        unit="MiB",
    ),
    Target(
        "memory of the rebuild of the catalog ≤ 100 MiB above the idle process",
        lambda works: works["catalog"].memory,
        most=100,
        unit="MiB",
    ),
]


def verdicts(works: Sequence[Work]) -> list[str]:
    by_key = {work.key: work for work in works}
    return [said for target in TARGETS if (said := target.verdict(by_key))]


def growth(works: Sequence[Work]) -> list[tuple[int, dict[str, float]]]:
    """Rows that a course has, and the median milliseconds to enroll one more, by way."""
    try:
        measured = _growth({work.key: work for work in works})
    except KeyError:
        return []
    return [
        (rows, {each.name: (each.percentile(50) or 0) * 1000 for each in work.results})
        for rows, work in measured
    ]


def described(points: Sequence[tuple[int, dict[str, float]]]) -> str:
    """Sentences that say what the plot shows."""
    (fewest, first), (most, last) = points[0], points[-1]
    sentences = [
        f"Median time to enroll one more student in a course of {fewest:,} to {most:,} rows."
    ]
    for name in first:
        sentences.append(
            f"{name[0].upper()}{name[1:]}: from {first[name]:.2f} to {last[name]:.2f} ms, "
            f"{_ratio(last[name] / first[name])} ×."
        )
    sentences.append(
        "The counter is moved by one whatever the course's size, so the first two lines are flat; "
        "the signal counts all rows of the course again for each one that is added."
    )
    return " ".join(sentences)
