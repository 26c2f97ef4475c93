"""The services against the bare driver and against peers' ways, on a private MariaDB.

    python -m benchmarks                             small, a few minutes
    python -m benchmarks --size large --write        real sizes; docs/benchmarks is written anew
    python -m benchmarks --only writers --rounds 9   one section, more rounds

Prints one table, ratios first, and which targets are met. A ratio is the median of the rounds'
ratios; in each round all ways take turns. Drift is by how much the counts were wrong afterwards.
Nothing is left behind.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import django
from tqdm import tqdm

from benchmarks.sizes import SIZES
from tests.support.servers import MissingPrograms, ServerError, mariadb, redis

SECTIONS = ["writers", "growth", "many", "counting", "catalog", "import"]
DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
HEAD = [
    "# Speed, measured",
    "",
    "Written by `make bench BENCH=--write`; `make bench` prints the same for your machine. Times "
    "are ratios first: × floor is the time as a multiple of that of the same statements through "
    "the bare driver, × ours as a multiple of that of the services; each is the median of the "
    "rounds' ratios, and in each round all ways take turns. Failed are calls that ended with an "
    "error, which the rates leave out; drift is by how much the stored counts were wrong "
    "afterwards. The peers' ways are in `benchmarks/`, written as their users would write them. "
    "The admin on large tables is measured apart: [admin.md](admin.md).",
    "",
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, help="at least 1 (default: the size's)")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be repeated")
    parser.add_argument("--write", action="store_true", help=f"write {DOCS.name} in docs/, too")
    parser.add_argument(
        "--open-university",
        type=Path,
        metavar="FILE",
        help="studentRegistration.csv to import (default: one made up, of the same size)",
    )
    given = parser.parse_args()
    if given.rounds is not None and given.rounds < 1:
        parser.error(f"--rounds takes whole numbers from 1 on, not {given.rounds}")
    if given.write and given.only:
        parser.error("--write needs the whole table: leave out --only")
    if given.open_university and not given.open_university.is_file():
        parser.error(f"{given.open_university} is no file")
    return given


def main() -> int:
    given = arguments()
    try:
        with mariadb() as database, redis() as cache:
            os.environ["DATABASE_URL"] = database.url
            os.environ["BENCHMARKS_REDIS_URL"] = cache.url
            os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
            # Without REDIS_URL the project has no cache: neither helped nor held up by one.
            os.environ.pop("REDIS_URL", None)
            django.setup()
            lines = measured(given)
    except ServerError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2 if isinstance(error, MissingPrograms) else 1
    print("\n".join(lines))
    return 0


def measured(given: argparse.Namespace) -> list[str]:
    from benchmarks import report
    from benchmarks.catalog import catalog
    from benchmarks.counting import counting
    from benchmarks.enrolling import growth, writers
    from benchmarks.importing import importing
    from benchmarks.many import many
    from benchmarks.measuring import Work, measure

    size = SIZES[given.size]
    if given.rounds:
        size = replace(size, rounds=given.rounds, growth_rounds=given.rounds)
    sections: dict[str, Callable[..., Iterator[list[Work]]]] = {
        "writers": writers,
        "growth": growth,
        "many": many,
        "counting": counting,
        "catalog": catalog,
        "import": partial(importing, given=given.open_university),
    }
    # Without folders: it may be published.
    words = [Path(word).name for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", "benchmarks", *words])
    lines = report.where(size=given.size, rounds=size.rounds, command=command)
    works: list[Work] = []
    for name in given.only or SECTIONS:
        rounds = size.growth_rounds if name == "growth" else size.rounds
        for some in sections[name](size):
            total = rounds * sum(len(work.ways) for work in some)
            # Only on a terminal.
            with tqdm(total=total, desc=name, disable=None, leave=False) as bar:
                measure(some, rounds=rounds, done=bar.update)
            works += some
    lines += ["", *report.table(works), "", *report.verdicts(works)]
    points = report.growth(works)
    if points:
        lines += ["", report.described(points)]
    if given.write:
        from benchmarks.plot import plot

        DOCS.mkdir(exist_ok=True)
        plot(points, DOCS / "growth.svg")
        page = [*HEAD, *lines, "", "![Growth of the time of one enrollment](growth.svg)", ""]
        (DOCS / "README.md").write_text("\n".join(page))
    return lines


if __name__ == "__main__":
    # A thread of the progress bar's would be forked with the writers.
    tqdm.monitor_interval = 0
    sys.exit(main())
