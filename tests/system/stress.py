"""Run all services concurrently on few courses and students, and check every guarantee.

Writers call random services. At the same time other processes edit courses, check counts and
rebuild them. Exits with status 1 if a guarantee was violated.
"""

import argparse
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any

import django
from django.core.management import call_command

from tests.support.cluster import cluster
from tests.support.servers import Server, mariadb

SHARED_STUDENTS = 8  # used by all writers
OWN_STUDENTS = 6  # per writer, who therefore knows their rows
UNKNOWN = "unknown"  # the status of a row after an unconfirmed call

Rows = dict[tuple[int, int], str | None]  # status by (student, course); None: no row


@dataclass
class Report:
    """What one process did and observed, or the sum of all processes."""

    outcomes: Counter[str] = field(default_factory=Counter)
    drifted: list[int] = field(default_factory=list)  # number of drifted courses of each check
    violations: list[str] = field(default_factory=list)
    rows: Rows = field(default_factory=dict)  # the last confirmed status of the writers' own rows

    def add(self, other: "Report") -> None:
        self.outcomes += other.outcomes
        self.drifted += other.drifted
        self.violations += other.violations
        self.rows |= other.rows

    def expect(self, condition: bool, violation: str) -> None:
        if not condition:
            self.violations.append(violation)

    def __str__(self) -> str:
        return "\n".join(
            [
                *(f"{number:8}  {name}" for name, number in sorted(self.outcomes.items())),
                f"Drifted courses at each check: {' '.join(map(str, self.drifted))}",
                f"Violated guarantees: {len(self.violations)}",
                *self.violations[:20],
            ]
        )


@dataclass(frozen=True)
class Plan:
    """What all processes need to know."""

    deadline: float  # by time.monotonic(), which the processes of a machine share
    courses: tuple[int, ...]
    damaged_courses: tuple[int, ...]  # the only courses that may drift
    students: tuple[int, ...]  # shared by all writers
    seed: int
    kills_servers: bool
    has_conflicts: bool  # nodes of a cluster roll back conflicting transactions

    def repeat(
        self, work: Callable[[], Any], report: Report, *, retries: bool = False, pause: float = 0.0
    ) -> None:
        """Call `work` until the deadline, with `pause` seconds in between.

        `retries` means that `work` retries conflicts itself and must not fail with one.
        """
        from django.db import OperationalError, connection

        while time.monotonic() < self.deadline:
            try:
                work()
            except OperationalError as error:
                report.outcomes[f"error {error.args[0]} of {work.__name__}"] += 1
                is_allowed = self.kills_servers or (self.has_conflicts and not retries)
                report.expect(is_allowed, f"{work.__name__} failed: {error}")
                connection.close()
                time.sleep(0.1)
            time.sleep(pause)


# Processes ---------------------------------------------------------------------------


def write(plan: Plan, own_students: tuple[int, ...], seed: int) -> Report:
    with _report_with_log_counts() as report:
        writer = Writer(plan, own_students, seed, report)
        plan.repeat(writer.call_service, report, retries=True)
    return report


class Writer:
    """Calls random services, and checks them against the known rows of its own students."""

    def __init__(
        self, plan: Plan, own_students: tuple[int, ...], seed: int, report: Report
    ) -> None:
        self.plan, self.own_students, self.report = plan, own_students, report
        self.random = random.Random(seed)
        self.rows = report.rows
        self.rows |= {
            (student, course): None for student in own_students for course in plan.courses
        }

    def call_service(self) -> None:
        from enrollments.services import CourseFull, NotEnrolled

        calls = [self.enroll, self.unenroll, self.complete, self.transfer, self.bulk, self.erase]
        (call,) = self.random.choices(calls, weights=[8, 8, 2, 3, 3, 1])
        student = self.random.choice([*self.plan.students, *self.own_students])
        course, other = self.random.sample(self.plan.courses, k=2)
        self.report.outcomes["operations"] += 1
        previous = dict(self.rows)
        # If the call fails, nobody knows whether it was committed.
        for key in previous:
            if key[0] == student or call == self.bulk:
                self.rows[key] = UNKNOWN
        try:
            changed, statuses = call(previous, student, course, other)
            self.report.outcomes["changes" if changed else "unchanged"] += 1
        except (CourseFull, NotEnrolled):
            self.report.outcomes["rejected"] += 1
            statuses = {}
        self.rows.update({key: statuses.get(key, previous[key]) for key in previous})

    # Each call returns whether it changed anything, and the new statuses by (student, course).

    def enroll(self, rows: Rows, student: int, course: int, other: int) -> tuple[Any, Rows]:
        from enrollments.services import enroll

        enrollment, changed = enroll(student=student, course=course)
        self._compare(rows, (student, course), changed, was_counted=not changed)
        return changed, {(student, course): enrollment.status}

    def unenroll(self, rows: Rows, student: int, course: int, other: int) -> tuple[Any, Rows]:
        from enrollments.services import unenroll

        changed = unenroll(student=student, course=course)
        self._compare(rows, (student, course), changed, was_counted=changed)
        return changed, {(student, course): "withdrawn"} if changed else {}

    def complete(self, rows: Rows, student: int, course: int, other: int) -> tuple[Any, Rows]:
        from enrollments.services import set_status

        changed = set_status(student=student, course=course, status="completed")
        return changed, {(student, course): "completed"}

    def transfer(self, rows: Rows, student: int, course: int, other: int) -> tuple[Any, Rows]:
        from enrollments.services import transfer

        enrollment, changed = transfer(student=student, source=course, target=other)
        withdrawn: Rows = {(student, course): "withdrawn"} if changed else {}
        return changed, withdrawn | {(student, other): enrollment.status}

    def bulk(self, rows: Rows, student: int, course: int, other: int) -> tuple[Any, Rows]:
        from enrollments.services import enroll_many, unenroll_many

        students = [
            *self.random.sample(self.own_students, k=3),
            *self.random.sample(self.plan.students, k=3),
        ]
        statuses: Rows = {}
        if self.random.random() < 0.5:
            result = unenroll_many(course=course, students=students)
            for key in students:
                if rows.get((key, course)) not in (None, UNKNOWN):
                    statuses[key, course] = "withdrawn"
        else:
            result = enroll_many(course=course, students=students)
            for key in set(students) - set(result.rejected):
                status = rows.get((key, course))
                statuses[key, course] = status if status in ("completed", UNKNOWN) else "active"
        return result.changed, statuses

    def erase(self, rows: Rows, student: int, course: int, other: int) -> tuple[Any, Rows]:
        from enrollments.services import erase_student

        erased = erase_student(student=student)
        return erased, {(student, key): None for key in self.plan.courses}

    def _compare(
        self, rows: Rows, key: tuple[int, int], changed: bool, *, was_counted: bool
    ) -> None:
        status = rows.get(key, UNKNOWN)
        if status != UNKNOWN:
            self.report.expect(
                (status in ("active", "completed")) == was_counted,
                f"Row {key} was {status}, but a service returned changed={changed}",
            )


def edit_courses(plan: Plan) -> Report:
    """Save stale course instances, as the admin does, and add new courses."""
    from django.forms import modelform_factory

    from courses.models import Course
    from courses.transactions import retry_transaction

    stale_courses = Course.objects.in_bulk(plan.courses)
    form_class = modelform_factory(Course, fields=["title", "slug", "capacity"])
    rng = random.Random(plan.seed)

    def edit() -> None:
        course = stale_courses[rng.choice(plan.courses)]
        course.title = f"Title {rng.randrange(1_000)}"
        values = {"title": course.title, "slug": course.slug, "capacity": course.capacity}
        # One transaction each, as in the admin. A single one would lock courses out of order.
        for save in (
            course.save,
            lambda: Course.objects.bulk_update(stale_courses.values(), ["title"]),
            form_class(values, instance=course).save,
            lambda: Course.objects.create(title="New", slug=f"new-{time.monotonic_ns()}"),
        ):
            retry_transaction()(save)()
        report.outcomes["edits"] += 1

    with _report_with_log_counts() as report:
        plan.repeat(edit, report, retries=True, pause=0.05)
    return report


def check_counts(plan: Plan) -> Report:
    from django.db import DEFAULT_DB_ALIAS
    from django.db.models import F

    from courses.counts.drift import find_drift
    from courses.models import Course

    def check() -> None:
        drifted = {course.course_id for course in find_drift()}
        report.drifted.append(len(drifted))
        report.outcomes["checks"] += 1
        report.expect(drifted <= set(plan.damaged_courses), f"Courses {drifted} drifted")
        courses = Course.objects.using(DEFAULT_DB_ALIAS)
        oversold = courses.filter(total_enrollments__gt=F("capacity"))
        oversold = oversold.exclude(pk__in=plan.damaged_courses)
        report.expect(not oversold.exists(), "A course has more students than seats")

    with _report_with_log_counts() as report:
        plan.repeat(check, report, pause=0.2)
    return report


def rebuild_counts(plan: Plan) -> Report:
    from courses.counts.drift import rebuild

    def correct() -> None:
        drifted = list(rebuild())
        report.outcomes["rebuilds"] += 1
        report.outcomes["corrected"] += len(drifted)
        wrong = [course for course in drifted if course.course_id not in plan.damaged_courses]
        report.expect(not wrong, f"A rebuild changed correct counts: {wrong}")

    with _report_with_log_counts() as report:
        plan.repeat(correct, report, pause=0.1)
    return report


def rebuild_counts_with_sql(plan: Plan) -> Report:
    """Run enrollments/sql/rebuild_counts.sql with MariaDB's client."""
    from tests.support.commands import PROJECT, mariadb_client

    script = (PROJECT / "enrollments/sql/rebuild_counts.sql").read_text()
    header = ["corrected_course", "title", "stored", "true", "drift"]

    def run_script() -> None:
        result = mariadb_client(script)
        if result.returncode:
            report.outcomes["failed scripts"] += 1
            is_allowed = plan.kills_servers or plan.has_conflicts
            report.expect(is_allowed, f"The SQL script failed: {result.stderr}")
            return
        lines = [line.split("\t") for line in result.stdout.splitlines()]
        corrected = {int(line[0]) for line in lines if len(line) == len(header) and line != header}
        report.outcomes["scripts"] += 1
        report.outcomes["corrected by script"] += len(corrected)
        report.expect(
            corrected <= set(plan.damaged_courses),
            f"The SQL script changed correct counts: {result.stdout}",
        )

    report = Report()
    plan.repeat(run_script, report, pause=0.3)
    return report


def damage_counts(plan: Plan) -> Report:
    """Write wrong counts with SQL."""
    from django.db import connection

    rng = random.Random(plan.seed)

    def damage() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE courses_course SET total_enrollments = %s WHERE id = %s",
                [rng.randrange(20), rng.choice(plan.damaged_courses)],
            )
        report.outcomes["damages"] += 1

    report = Report()
    plan.repeat(damage, report, pause=0.05)
    return report


@contextmanager
def _report_with_log_counts() -> Iterator[Report]:
    """Yield a report that also counts retries and immediate recounts, which are logged."""
    report = Report()
    with (
        _count_records("courses.transactions", report.outcomes, "retries"),
        _count_records("enrollments", report.outcomes, "immediate recounts"),
    ):
        yield report


@contextmanager
def _count_records(name: str, outcomes: Counter[str], outcome: str) -> Iterator[None]:
    class CountingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            outcomes[outcome] += 1

    logger, handler = logging.getLogger(name), CountingHandler()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


# The test ----------------------------------------------------------------------------


def stress(
    *,
    seconds: float,
    writers: int,
    seed: int,
    damages_counts: bool = False,
    kill_servers: Callable[[float], None] | None = None,
    has_conflicts: bool = False,
    has_replica: bool = False,
) -> Report:
    """Run the stress test on Django's database; return what happened.

    `kill_servers` is called with the deadline, by time.monotonic(), while the processes run. With
    `has_replica`, a router sends reads to a copy that is as old as the start.
    """
    from django.db import connection

    from tests.support.processes import run_in_processes
    from tests.support.replicas import stale_replica
    from tests.support.threads import deadlocks

    is_mariadb = connection.vendor == "mysql"
    deadlocks_before = deadlocks() if is_mariadb else 0
    courses = _create_courses(seed)
    students = _create_students(seed, SHARED_STUDENTS + OWN_STUDENTS * writers)
    plan = Plan(
        deadline=time.monotonic() + seconds,
        courses=courses,
        damaged_courses=courses[1:3] if damages_counts else (),
        students=students[:SHARED_STUDENTS],
        seed=seed,
        kills_servers=kill_servers is not None,
        has_conflicts=has_conflicts,
    )
    own_students = [students[SHARED_STUDENTS + n :: writers] for n in range(writers)]
    jobs: list[tuple[Any, ...]] = [
        *((write, plan, own_students[n], seed * 1_000 + n) for n in range(writers)),
        *((work, plan) for work in (edit_courses, check_counts, rebuild_counts)),
        *([(rebuild_counts_with_sql, plan)] if is_mariadb else []),
        *([(damage_counts, plan)] if damages_counts else []),
    ]
    total = Report()
    meanwhile = partial(kill_servers, plan.deadline) if kill_servers else None
    with stale_replica() if has_replica else nullcontext():
        for report in run_in_processes(_call, jobs, meanwhile=meanwhile):
            total.add(report)
    _check_final_state(plan, total)
    # In a cluster conflicts count as deadlocks, and a server that was killed starts at 0 again.
    if is_mariadb and not plan.kills_servers and not plan.has_conflicts:
        total.outcomes["deadlocks"] = deadlocks() - deadlocks_before
    return total


def _create_courses(seed: int) -> tuple[int, ...]:
    from courses.models import Course

    return tuple(
        Course.objects.create(title="Busy", slug=f"stress-{seed}-{n}", capacity=capacity).pk
        for n, capacity in enumerate([None, None, 10, 3])
    )


def _create_students(seed: int, number: int) -> tuple[int, ...]:
    from django.contrib.auth import get_user_model

    users = get_user_model()._default_manager
    names = [f"stress-{seed}-{n}" for n in range(number)]
    users.bulk_create([users.model(username=name) for name in names])
    return tuple(users.filter(username__in=names).order_by("pk").values_list("pk", flat=True))


def _call(work: Callable[..., Report], *arguments: Any) -> Report:
    return work(*arguments)


def _check_final_state(plan: Plan, report: Report) -> None:
    """Compare counts, rows and history with each other and with the confirmed calls."""
    from courses.counts.drift import find_drift, rebuild
    from enrollments.models import Enrollment
    from tests.support.history import history_mismatches

    if plan.damaged_courses:
        report.outcomes["corrected at the end"] = len(list(rebuild()))
    drifted = list(find_drift())
    report.drifted.append(len(drifted))
    report.expect(not drifted, f"Courses drifted at the end: {drifted}")
    rows = {(row.student_id, row.course_id): row.status for row in Enrollment.objects.all()}
    for key, status in report.rows.items():
        report.expect(
            status in (UNKNOWN, rows.get(key)),
            f"Row {key} was confirmed as {status} and is {rows.get(key)}",
        )
    mismatches = history_mismatches()
    report.expect(not mismatches, f"Rows differ from their history: {list(mismatches)[:5]}")


# The command line --------------------------------------------------------------------


def main() -> int:
    options = _parse_arguments()
    with ExitStack() as stack:
        servers: Sequence[Server] = []
        if options.cluster:
            nodes = stack.enter_context(cluster())
            servers, os.environ["DATABASE_URL"] = nodes.nodes, nodes.url
        elif not options.use_database_url:
            servers = [stack.enter_context(mariadb())]
            os.environ["DATABASE_URL"] = servers[0].url
        if servers:
            os.environ.pop("REDIS_URL", None)
        if options.tls:
            os.environ["DATABASE_URL"] += "?ssl_mode=REQUIRED"
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
        django.setup()
        call_command("migrate", verbosity=0)
        if options.tls:
            _require_encryption()
        kill_servers = partial(_kill_servers, servers, options.kill) if options.kill else None
        report = stress(
            seconds=options.seconds,
            writers=options.writers,
            seed=options.seed,
            damages_counts=options.damage,
            kill_servers=kill_servers,
            has_conflicts=options.cluster,
            has_replica=options.replica,
        )
    print(report)
    return 1 if report.violations else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stress", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="default: %(default)s")
    parser.add_argument("--writers", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the random calls")
    parser.add_argument("--damage", action="store_true", help="write wrong counts with SQL")
    parser.add_argument(
        "--kill", type=float, metavar="SECONDS", help="kill a server every so many seconds"
    )
    parser.add_argument("--tls", action="store_true", help="encrypt the connections")
    parser.add_argument("--cluster", action="store_true", help="write to all nodes of a cluster")
    parser.add_argument(
        "--replica", action="store_true", help="read from a replica that lags behind"
    )
    parser.add_argument(
        "--use-database-url",
        action="store_true",
        help="run on the database at DATABASE_URL, which you should discard afterwards, "
        "instead of on a private MariaDB",
    )
    options = parser.parse_args()
    if options.use_database_url and (options.cluster or options.kill or options.tls):
        parser.error("--cluster, --kill and --tls need private servers. Omit --use-database-url.")
    return options


def _require_encryption() -> None:
    """Exit if the connection is not encrypted. MariaDB's client accepts that even if REQUIRED."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SHOW STATUS LIKE 'Ssl_cipher'")
        (_, cipher) = cursor.fetchone()
    if not cipher:
        sys.exit("The connection to the database is not encrypted.")


def _kill_servers(servers: Sequence[Server], interval: float, deadline: float) -> None:
    """Kill the servers in turn, one per interval, and start each again.

    A single server is started immediately, a node only after half an interval.
    """
    for server in cycle(servers):
        if time.monotonic() + interval > deadline:
            return
        time.sleep(interval / 2)
        server.kill()
        if len(servers) > 1:
            time.sleep(interval / 2)
        server.start()


if __name__ == "__main__":
    sys.exit(main())
