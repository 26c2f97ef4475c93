"""Report the measurements: environment, table and targets, and the page of the documentation."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import django
import matplotlib
from django.db import connection
from matplotlib.figure import Figure

from benchmarks.counting import LOCKING_LOOP, LOOP
from benchmarks.enrolling import PLAIN_ORM, ROW_FIRST, SIGNAL
from benchmarks.importing import ROW_BY_ROW
from benchmarks.measuring import FLOOR, PROJECT, Approach, Benchmark

Benchmarks = Mapping[str, Benchmark]  # by name

PAGE = Path(__file__).with_name("page.md")
HEAD = ["benchmark", "approach", "× floor", "× project", "per second", "failed", "drift"]
HEAD += ["p50 ms", "p99 ms"]
WRITERS = ["1 writer", "8 writers", "16 writers"]
COLORS = ["#767676", "#0060b0", "#c04000"]
MARKERS = ["s", "o", "^"]  # for readers who cannot tell the colors apart


def render_page(benchmarks: Benchmarks, environment: str) -> str:
    """Return the page of the documentation, in Markdown. It needs all benchmarks."""
    single, crowd = benchmarks["1 writer"], benchmarks["16 writers"]
    row_first = crowd[ROW_FIRST]
    smallest, *_, largest = _growth(benchmarks)
    return PAGE.read_text().format(
        rate=_three_digits(single[PROJECT].rate),
        single_ratio=_ratio(single.ratio(PROJECT, FLOOR)),
        crowd_ratio=_ratio(crowd.ratio(PROJECT, FLOOR)),
        single_plain_orm=_ratio(single.ratio(PLAIN_ORM, PROJECT)),
        crowd_plain_orm=_ratio(crowd.ratio(PLAIN_ORM, PROJECT)),
        project_failed=f"{crowd[PROJECT].failed:,} of {crowd[PROJECT].attempted:,}",
        row_first_failed=f"{row_first.failed:,} of {row_first.attempted:,}",
        smallest=f"{smallest.course_size:,}",
        largest=f"{largest.course_size:,}",
        growth=_ratio(_growth_ratio(benchmarks, PROJECT)),
        signal_growth=_ratio(_growth_ratio(benchmarks, SIGNAL)),
        bulk_ratio=_ratio(benchmarks["bulk"].ratio(PROJECT, FLOOR)),
        check_ratio=_ratio(benchmarks["check"].ratio(PROJECT, FLOOR)),
        locking_loop=_ratio(benchmarks["rebuild"].ratio(LOCKING_LOOP, PROJECT)),
        targets=list_targets(benchmarks),
        environment=environment,
        table=render_table(benchmarks),
    )


def _growth(benchmarks: Benchmarks) -> list[Benchmark]:
    """Return the benchmarks of courses of different sizes, the smallest course first."""
    return [benchmark for benchmark in benchmarks.values() if benchmark.course_size]


def _growth_ratio(benchmarks: Benchmarks, approach: str) -> float:
    """Return the time in the largest course as a multiple of the time in the smallest."""
    medians = [benchmark[approach].percentile(50) for benchmark in _growth(benchmarks)]
    return medians[-1] / medians[0]


def list_targets(benchmarks: Benchmarks) -> str:
    """Return a list of the targets that were measured, and whether they are met."""
    return "\n".join(f"- {line}" for line in _targets(benchmarks))


def _targets(benchmarks: Benchmarks) -> Iterator[str]:
    if "16 writers" in benchmarks:
        single, crowd = benchmarks["1 writer"], benchmarks["16 writers"]
        yield _at_most(
            2, single.ratio(PROJECT, FLOOR), "`enroll()`, 1 writer", "× the floor's time"
        )
        enroll = "`enroll()`, 16 writers"
        yield _at_least(0.5, crowd.ratio(FLOOR, PROJECT), enroll, "× the floor's rate")
        yield _at_least(5, crowd.ratio(ROW_FIRST, PROJECT), enroll, "× the rate of row first")
        yield _at_least(5, crowd.ratio(SIGNAL, PROJECT), enroll, "× the rate of the signal")
        failed = sum(benchmarks[name][PROJECT].failed for name in WRITERS)
        yield _at_most(0, failed, "`enroll()`, 1, 8 and 16 writers", "failed calls")
    if _growth(benchmarks):
        ratio = _growth_ratio(benchmarks, PROJECT)
        yield _at_most(1.1, ratio, "`enroll()`, largest course", "× the time in the smallest")
    if bulk := benchmarks.get("bulk"):
        ratio = bulk.ratio(PROJECT, FLOOR)
        yield _at_most(2, ratio, "`enroll_many()`", "× the time of the multi-row INSERT")
    if check := benchmarks.get("check"):
        yield _at_most(1.5, check.ratio(PROJECT, FLOOR), "Check", "× the time of the grouped scan")
    if rebuild := benchmarks.get("rebuild"):
        yield _at_least(20, rebuild.ratio(LOOP, PROJECT), "Rebuild", "× the rate of the loop")
    if imported := benchmarks.get("import"):
        yield _at_least(10, imported.ratio(ROW_BY_ROW, PROJECT), "Import", "× the rate row by row")
        yield _at_most(100, imported.memory, "Import", "MiB more than an idle process")
    if catalog := benchmarks.get("catalog"):
        subject = "Rebuild of the catalog"
        yield _at_most(100, catalog.memory, subject, "MiB more than an idle process")


def _at_most(limit: float, value: float, subject: str, unit: str) -> str:
    outcome = "met" if value <= limit else "**missed**"
    return f"{subject}: {_ratio(value)} {unit} (target: at most {limit:g}), {outcome}"


def _at_least(limit: float, value: float, subject: str, unit: str) -> str:
    outcome = "met" if value >= limit else "**missed**"
    return f"{subject}: {_ratio(value)} {unit} (target: at least {limit:g}), {outcome}"


def describe_environment(command: str) -> str:
    """Return a list that describes the run, the machine and the server."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT VERSION(), @@innodb_flush_log_at_trx_commit, @@innodb_buffer_pool_size, "
            "@@log_bin"
        )
        version, flush, pool, binary_log = cursor.fetchone()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return "\n".join(
        [
            f"- {datetime.now(UTC):%Y-%m-%d}, `{command}`",
            f"- {_processor()}, {os.cpu_count()} cores, {memory / 2**30:.0f} GiB of memory, "
            f"load average {os.getloadavg()[0]:.1f} at the start",
            f"- MariaDB {version}, Python {platform.python_version()}, Django {django.__version__}",
            f"- For all approaches: innodb_flush_log_at_trx_commit={flush}, "
            f"innodb_buffer_pool_size={pool // 2**20} MiB, "
            f"binary log {'on' if binary_log else 'off'}, READ COMMITTED",
        ]
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def render_table(benchmarks: Benchmarks) -> str:
    """Return a table that is readable on a terminal and in Markdown."""
    rows = [HEAD, *(row for benchmark in benchmarks.values() for row in _rows(benchmark))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = ("| " + " | ".join(_aligned(row, widths)) + " |" for row in rows)
    rule = "|-" + "|-".join("-" * width + ":" for width in widths) + "|"
    # The first two columns are text, the others are numbers.
    rule = rule.replace(":", "-", 2)
    return "\n".join([head, rule, *lines])


def _rows(benchmark: Benchmark) -> Iterator[Sequence[str]]:
    for approach in benchmark.approaches:
        yield (
            benchmark.title if approach is benchmark.approaches[0] else "",
            approach.name,
            _ratio(approach.time_ratio(benchmark[FLOOR])) if benchmark.has_floor else "",
            _ratio(approach.time_ratio(benchmark[PROJECT])),
            _three_digits(approach.rate),
            f"{approach.failed:,} of {approach.attempted:,}" if approach.failed else "0",
            f"{approach.drift:,}",
            _milliseconds(approach, 50),
            _milliseconds(approach, 99),
        )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.ljust(width) if column < 2 else cell.rjust(width)


def _ratio(value: float) -> str:
    """Format a number with three digits, and keep zeros at the end."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}" if value else "0"


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}" if value < 1e6 else f"{value:,.0f}"


def _milliseconds(approach: Approach, percent: int) -> str:
    try:
        return f"{approach.percentile(percent) * 1000:,.2f}"
    except IndexError:
        return ""


def draw_growth(benchmarks: Benchmarks, path: Path) -> None:
    """Draw the time of one enrollment by the size of the course, as an SVG."""
    growth = _growth(benchmarks)
    sizes = [benchmark.course_size for benchmark in growth]
    figure = Figure(figsize=(7.5, 4), facecolor="white", layout="constrained")
    axes = figure.subplots()
    names = [approach.name for approach in growth[0].approaches]
    for number, (name, color, marker) in enumerate(zip(names, COLORS, MARKERS, strict=True)):
        times = [benchmark.approaches[number].percentile(50) * 1000 for benchmark in growth]
        axes.plot(sizes, times, color=color, marker=marker, linewidth=2)
        axes.annotate(
            f"{name}\n{times[-1]:.2g} ms",
            (sizes[-1], times[-1]),
            xytext=(10, 0),
            textcoords="offset points",
            color=color,
            verticalalignment="center",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="rows of the course",
        ylabel="milliseconds, median",
        title="Time to enroll one more student",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(right=sizes[-1] * 1.1)
    # Text instead of outlines, and the same file for the same figures.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "growth"}):
        figure.savefig(path, metadata={"Date": None})
