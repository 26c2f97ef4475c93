"""A storm: writers of every service at once, few courses and students, rebuilds in between.

    python -m tests.system.stress --seconds 180             on a private MariaDB
    python -m tests.system.stress --seconds 180 --damage    while an SQL client puts drift in
    python -m tests.system.stress --seconds 180 --kill 20   while the server is killed every 20 seconds
    python -m tests.system.stress --seconds 180 --cluster --kill 30    on three nodes, all written to
    python -m tests.system.stress --seconds 180 --here      on the database at DATABASE_URL, to be thrown
                                                    away afterwards

Prints what happened, and ends with status 1 when a promise was broken.
"""

import argparse
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any

import django
from django.core.management import call_command

from tests.support.cluster import cluster
from tests.support.servers import Server, mariadb

# Students that all writers use, and that each writer has for itself.
SHARED, OWN = 8, 6
UNKNOWN = "?"


@dataclass
class Report:
    """What one process did and saw, or all of them."""

    outcomes: Counter[str] = field(default_factory=Counter)
    drifted: list[int] = field(default_factory=list)  # number of courses, check by check
    broken: list[str] = field(default_factory=list)  # promises
    rows: dict[tuple[int, int], str | None] = field(default_factory=dict)  # (student, course)

    def add(self, other: "Report") -> None:
        self.outcomes += other.outcomes
        self.drifted += other.drifted
        self.broken += other.broken
        self.rows |= other.rows

    def expect(self, true: bool, promise: str) -> None:
        if not true:
            self.broken.append(promise)


@dataclass(frozen=True)
class Plan:
    """What the processes are told."""

    until: float  # by time.monotonic(), which processes of one machine share
    courses: tuple[int, ...]
    damaged: tuple[int, ...]  # where an SQL client puts drift in
    students: tuple[int, ...]
    seed: int
    killed: bool  # the server goes away at times
    conflicts: bool  # several servers: who doesn't try again gets errors

    def now_and_then(self, work: Callable[[], Any], report: Report, *, pause: float = 0.0) -> None:
        """Do it again and again, until the storm is over."""
        from django.db import OperationalError, connection

        while time.monotonic() < self.until:
            try:
                work()
            except OperationalError as error:
                who = getattr(work, "__name__", "work")
                report.outcomes[f"error {error.args[0]} of {who}"] += 1
                # Writers try again by themselves; who only looks doesn't.
                allowed = self.killed or (self.conflicts and who not in ("step", "edit"))
                report.expect(allowed, f"{who} got {error}")
                connection.close()
                time.sleep(0.1)
            time.sleep(pause)


class Writer:
    """Calls services at random, and knows what the rows of its own students must be."""

    def __init__(self, plan: Plan, own: tuple[int, ...], seed: int, report: Report) -> None:
        self.plan, self.own, self.report = plan, own, report
        self.rng = random.Random(seed)
        self.rows = report.rows
        self.rows |= {(student, course): None for student in own for course in plan.courses}

    def step(self) -> None:
        from enrollments.services import CourseFull, NotEnrolled

        calls = [self.enroll, self.unenroll, self.complete, self.transfer, self.many, self.erase]
        (call,) = self.rng.choices(calls, weights=[8, 8, 2, 3, 3, 1])
        student = self.rng.choice([*self.plan.students, *self.own])
        course, other = self.rng.sample(self.plan.courses, k=2)
        self.report.outcomes["operations"] += 1
        before = dict(self.rows)
        # If the call ends with an error, nobody can tell what became of these.
        for key in before:
            if key[0] == student or call == self.many:
                self.rows[key] = UNKNOWN
        try:
            moved, now = call(before, student, course, other)
            self.report.outcomes["acknowledged" if moved else "nothing to do"] += 1
        except (CourseFull, NotEnrolled):
            self.report.outcomes["refused"] += 1
            now = {}
        self.rows.update({key: now.get(key, before[key]) for key in before})

    def enroll(self, before: Any, student: int, course: int, other: int) -> Any:
        from enrollments.services import enroll

        row, changed = enroll(student=student, course=course)
        self._compare(before, (student, course), changed, counted_before=not changed)
        return changed, {(student, course): row.status}

    def unenroll(self, before: Any, student: int, course: int, other: int) -> Any:
        from enrollments.services import unenroll

        changed = unenroll(student=student, course=course)
        self._compare(before, (student, course), changed, counted_before=changed)
        return changed, {(student, course): "withdrawn"} if changed else {}

    def complete(self, before: Any, student: int, course: int, other: int) -> Any:
        from enrollments.services import set_status

        changed = set_status(student=student, course=course, status="completed")
        return changed, {(student, course): "completed"}

    def transfer(self, before: Any, student: int, course: int, other: int) -> Any:
        from enrollments.services import transfer

        row, changed = transfer(student=student, source=course, target=other)
        left = {(student, course): "withdrawn"} if changed else {}
        return changed, left | {(student, other): row.status}

    def many(self, before: Any, student: int, course: int, other: int) -> Any:
        from enrollments.services import enroll_many, unenroll_many

        some = [*self.rng.sample(self.own, k=3), *self.rng.sample(self.plan.students, k=3)]
        if self.rng.random() < 0.5:
            result = unenroll_many(course=course, students=some)
            left = [
                (key, course) for key in some if before.get((key, course)) not in (None, UNKNOWN)
            ]
            return result.changed, dict.fromkeys(left, "withdrawn")
        result = enroll_many(course=course, students=some)
        entered = {}
        for key in set(some) - set(result.rejected):
            was = before.get((key, course))
            entered[key, course] = {"completed": "completed", UNKNOWN: UNKNOWN}.get(was, "active")
        return result.changed, entered

    def erase(self, before: Any, student: int, course: int, other: int) -> Any:
        from enrollments.services import erase_student

        erased = erase_student(student=student)
        return erased, {(student, key): None for key in self.plan.courses}

    def _compare(
        self, before: Any, key: tuple[int, int], changed: bool, *, counted_before: bool
    ) -> None:
        known = before.get(key, UNKNOWN)
        if known != UNKNOWN:
            self.report.expect(
                (known in ("active", "completed")) == counted_before,
                f"row {key} was {known}, and a service said changed={changed}",
            )


def write(plan: Plan, own: tuple[int, ...], seed: int) -> Report:
    with _report_with_retries() as report:
        plan.now_and_then(Writer(plan, own, seed, report).step, report)
    return report


def edit_courses(plan: Plan) -> Report:
    """Save courses as an admin does, from instances that were read long ago; add new ones."""
    from django.forms import modelform_factory

    from courses.models import Course
    from courses.transactions import retry_transaction

    stale = Course.objects.in_bulk(plan.courses)
    form_class = modelform_factory(Course, fields=["title", "slug", "capacity"])
    rng = random.Random(plan.seed)

    def edit() -> None:
        course = stale[rng.choice(plan.courses)]
        course.title = f"Title {rng.randrange(1_000)}"
        values = {"title": course.title, "slug": course.slug, "capacity": course.capacity}
        # A transaction each, as in the admin: together they would lock against the keys' order.
        for write in (
            course.save,
            lambda: Course.objects.bulk_update(stale.values(), ["title"]),
            form_class(values, instance=course).save,
            lambda: Course.objects.create(title="New", slug=f"new-{time.monotonic_ns()}"),
        ):
            retry_transaction()(write)()
        report.outcomes["edits"] += 1

    with _report_with_retries() as report:
        plan.now_and_then(edit, report, pause=0.05)
    return report


def check(plan: Plan) -> Report:
    from django.db.models import F

    from courses.counts.drift import find_drift
    from courses.models import Course

    def look() -> None:
        drifted = {found.course_id for found in find_drift()}
        report.drifted.append(len(drifted))
        report.outcomes["checks"] += 1
        report.expect(drifted <= set(plan.damaged), f"courses {drifted} drifted")
        oversold = Course.objects.filter(total_enrollments__gt=F("capacity"))
        oversold = oversold.exclude(pk__in=plan.damaged)
        report.expect(not oversold.exists(), "a course was oversold")

    with _report_with_retries() as report:
        plan.now_and_then(look, report, pause=0.2)
    return report


def correct(plan: Plan) -> Report:
    from courses.counts.drift import rebuild

    def once() -> None:
        found = list(rebuild())
        report.outcomes["rebuilds"] += 1
        report.outcomes["corrected"] += len(found)
        right = [each for each in found if each.course_id not in plan.damaged]
        report.expect(not right, f"right courses corrected: {right}")

    with _report_with_retries() as report:
        plan.now_and_then(once, report, pause=0.1)
    return report


def correct_by_script(plan: Plan) -> Report:
    """The SQL script, by MariaDB's client."""
    from tests.support.commands import PROJECT
    from tests.support.commands import mariadb as client

    script = (PROJECT / "enrollments/sql/rebuild_counts.sql").read_text()

    def once() -> None:
        done = client(script)
        if done.returncode:
            report.outcomes["scripts that failed"] += 1
            report.expect(plan.killed or plan.conflicts, f"the script said {done.stderr}")
            return
        lines = [line.split("\t") for line in done.stdout.splitlines()]
        header = ["corrected_course", "title", "stored", "true", "drift"]
        corrected = {int(line[0]) for line in lines if len(line) == len(header) and line != header}
        report.outcomes["scripts"] += 1
        report.outcomes["corrected by script"] += len(corrected)
        report.expect(corrected <= set(plan.damaged), f"right courses corrected: {done.stdout}")

    report = Report()
    plan.now_and_then(once, report, pause=0.3)
    return report


def damage(plan: Plan) -> Report:
    """Put drift in, as an SQL client does."""
    from django.db import connection

    rng = random.Random(plan.seed)

    def once() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE courses_course SET total_enrollments = %s WHERE id = %s",
                [rng.randrange(20), rng.choice(plan.damaged)],
            )
        report.outcomes["damages"] += 1

    report = Report()
    plan.now_and_then(once, report, pause=0.05)
    return report


@contextmanager
def _report_with_retries() -> Iterator[Report]:
    """A report that also counts what the project says in its log."""
    report = Report()
    with ExitStack() as stack:
        for name, outcome in (
            ("courses.transactions", "retries"),
            ("enrollments.services", "recounted on the spot"),
        ):
            stack.enter_context(_counted(logging.getLogger(name), report.outcomes, outcome))
        yield report


@contextmanager
def _counted(logger: logging.Logger, outcomes: Counter[str], outcome: str) -> Iterator[None]:
    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            outcomes[outcome] += 1

    handler = Count()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


def stress(
    *,
    seconds: float,
    writers: int,
    seed: int,
    damaging: bool = False,
    meanwhile: Callable[[float], None] | None = None,
    conflicts: bool = False,
) -> Report:
    """Let it storm on Django's database, and return what happened.

    `meanwhile` is called with the end of the storm, by time.monotonic(), and may kill servers.
    """
    from django.contrib.auth import get_user_model
    from django.db import connection

    from courses.counts.drift import find_drift, rebuild
    from courses.models import Course
    from enrollments.models import Enrollment
    from tests.support.history import history_mismatches
    from tests.support.processes import run_in_processes
    from tests.support.threads import deadlocks

    users = get_user_model()._default_manager
    names = [f"storm-{seed}-{number}" for number in range(SHARED + OWN * writers)]
    users.bulk_create([users.model(username=name) for name in names])
    students = tuple(users.filter(username__in=names).order_by("pk").values_list("pk", flat=True))
    courses = tuple(
        Course.objects.create(title="Hot", slug=f"storm-{seed}-{number}", capacity=capacity).pk
        for number, capacity in enumerate([None, None, 10, 3])
    )
    on_mysql = connection.vendor == "mysql"
    deadlocks_before = deadlocks() if on_mysql else 0
    plan = Plan(
        until=time.monotonic() + seconds,
        courses=courses,
        damaged=courses[1:3] if damaging else (),
        students=students[:SHARED],
        seed=seed,
        killed=meanwhile is not None,
        conflicts=conflicts,
    )
    own = [students[SHARED + n * OWN : SHARED + (n + 1) * OWN] for n in range(writers)]
    jobs: list[tuple[Any, ...]] = [
        *((write, plan, own[number], seed * 1_000 + number) for number in range(writers)),
        *((work, plan) for work in (edit_courses, check, correct)),
    ]
    if on_mysql:
        jobs.append((correct_by_script, plan))
    if damaging:
        jobs.append((damage, plan))
    total = Report()
    for report in run_in_processes(
        _call, jobs, meanwhile=(lambda: meanwhile(plan.until)) if meanwhile else None
    ):
        total.add(report)

    if damaging:
        total.outcomes["corrected at the end"] = len(list(rebuild()))
    drifted = list(find_drift())
    total.drifted.append(len(drifted))
    total.expect(not drifted, f"at the end these drifted: {drifted}")
    found = {(row.student_id, row.course_id): row.status for row in Enrollment.objects.all()}
    for key, status in total.rows.items():
        total.expect(
            status in (UNKNOWN, found.get(key)),
            f"row {key} was acknowledged as {status} and is {found.get(key)}",
        )
    wrong = history_mismatches()
    total.expect(not wrong, f"the history tells these rows otherwise: {list(wrong)[:5]}")
    if on_mysql and meanwhile is None and not conflicts:  # else they are many, or forgotten
        total.outcomes["deadlocks"] = deadlocks() - deadlocks_before
    return total


def _call(work: Callable[..., Report], *arguments: Any) -> Report:
    return work(*arguments)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--damage", action="store_true")
    parser.add_argument("--kill", type=float, metavar="SECONDS")
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--here", action="store_true")
    given = parser.parse_args()
    with ExitStack() as stack:
        servers: list[Server] = []
        if given.cluster:
            nodes = stack.enter_context(cluster())
            servers, url = nodes.nodes, nodes.url
        elif not given.here:
            servers = [stack.enter_context(mariadb())]
            url = servers[0].url
        if servers:
            os.environ["DATABASE_URL"] = url
            os.environ.pop("REDIS_URL", None)
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
        django.setup()
        call_command("migrate", verbosity=0)
        report = stress(
            seconds=given.seconds,
            writers=given.writers,
            seed=given.seed,
            damaging=given.damage,
            meanwhile=partial(kill_and_start, servers, every=given.kill) if given.kill else None,
            conflicts=given.cluster,
        )
    print(told(report))
    return 1 if report.broken else 0


def kill_and_start(servers: Sequence[Server], until: float, *, every: float) -> None:
    """Kill one after the other, and start it again: at once where there is no other."""
    for server in cycle(servers):
        if time.monotonic() + every > until:
            return
        time.sleep(every / 2)
        server.kill()
        if len(servers) > 1:
            time.sleep(every / 2)
        server.start()


def told(report: Report) -> str:
    counts = [f"{number:8}  {name}" for name, number in sorted(report.outcomes.items())]
    drifted = " ".join(map(str, report.drifted))
    broken = report.broken or ["none"]
    return "\n".join(
        [*counts, f"drifted courses, check by check: {drifted}", "broken promises:", *broken[:20]]
    )


if __name__ == "__main__":
    sys.exit(main())
