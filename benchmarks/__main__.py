"""Measure the services against the bare driver and against peers, on a private MariaDB.

    python -m benchmarks                             small size, about two minutes
    python -m benchmarks --size large --write        large size; rewrites docs/benchmarks
    python -m benchmarks --only writers --rounds 9   one section, more rounds

Prints the environment, one table, and which targets are met. docs/benchmarks/README.md explains
how to read the table. The private servers are removed at the end.
"""

import argparse
import os
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import django
from tqdm import tqdm

from benchmarks.measuring import SIZES, Benchmark, Size
from tests.support.servers import MissingPrograms, ServerError, mariadb, redis

SECTIONS = ["writers", "growth", "bulk", "counting", "catalog", "import"]
DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"


def main() -> int:
    options = parse_arguments()
    try:
        with mariadb() as database, redis() as cache:
            os.environ["DATABASE_URL"] = database.url
            os.environ["BENCHMARKS_REDIS_URL"] = cache.url
            os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
            # Without REDIS_URL, the project runs without its own cache.
            os.environ.pop("REDIS_URL", None)
            django.setup()
            run(options)
    except ServerError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2 if isinstance(error, MissingPrograms) else 1
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, help="default: depends on the size")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="can be repeated")
    parser.add_argument("--write", action="store_true", help="rewrite docs/benchmarks")
    parser.add_argument(
        "--open-university",
        type=Path,
        metavar="FILE",
        help="studentRegistration.csv to import (default: a generated file of the same size)",
    )
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1.")
    if options.write and options.only:
        parser.error("--write needs all sections. Remove --only.")
    if options.open_university and not options.open_university.is_file():
        parser.error(f"The file {options.open_university} does not exist.")
    return options


def run(options: argparse.Namespace) -> None:
    # Models can be imported only after django.setup().
    from benchmarks import report

    # Only the names of files, because the folders of this machine do not belong into the docs.
    arguments = [Path(argument).name for argument in sys.argv[1:]]
    environment = report.describe_environment(
        shlex.join(["python", "-m", "benchmarks", *arguments])
    )
    benchmarks = measure(options)
    print(environment, report.render_table(benchmarks), report.list_targets(benchmarks), sep="\n\n")
    if options.write:
        DOCS.mkdir(exist_ok=True)
        (DOCS / "README.md").write_text(report.render_page(benchmarks, environment))
        report.draw_growth(benchmarks, DOCS / "growth.svg")


def measure(options: argparse.Namespace) -> dict[str, Benchmark]:
    from benchmarks import bulk, catalog, counting, enrolling, importing

    functions = {
        "writers": enrolling.measure_writers,
        "growth": enrolling.measure_growth,
        "bulk": bulk.measure_bulk,
        "counting": counting.measure_counting,
        "catalog": catalog.measure_catalog,
        "import": partial(importing.measure_import, path=options.open_university),
    }
    size: Size = SIZES[options.size]
    if options.rounds:
        size = replace(size, rounds=options.rounds)
    return {
        benchmark.name: benchmark
        for section in options.only or SECTIONS
        for benchmark in functions[section](size)
    }


if __name__ == "__main__":
    # The writers are forked, and the monitoring thread of a progress bar would be forked with them.
    tqdm.monitor_interval = 0
    sys.exit(main())
