"""Growth with size, as a small SVG."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.fonttype"] = "none"  # text, not outlines
matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same file for the same figures

from matplotlib import pyplot  # noqa: E402

COLOURS = ["#767676", "#0060b0", "#c04000"]
MARKERS = ["s", "o", "^"]  # for those to whom the colours look alike


def plot(points: Sequence[tuple[int, dict[str, float]]], path: Path) -> None:
    rows = [number for number, _ in points]
    figure, axes = pyplot.subplots(figsize=(7.5, 4), facecolor="white", layout="constrained")
    for name, colour, marker in zip(points[0][1], COLOURS, MARKERS, strict=True):
        times = [milliseconds[name] for _, milliseconds in points]
        axes.plot(rows, times, color=colour, marker=marker, linewidth=2)
        axes.annotate(
            f"{name}\n{times[-1]:.2g} ms",
            (rows[-1], times[-1]),
            xytext=(10, 0),
            textcoords="offset points",
            color=colour,
            verticalalignment="center",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="rows that the course has",
        ylabel="milliseconds, median",
        title="Enrolling one more student",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(right=rows[-1] * 1.1)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
