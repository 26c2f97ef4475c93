import json
import sys
from typing import Any

from django.core.management.base import CommandParser
from tqdm import tqdm

from courses.counts.audit import run_audit
from courses.counts.drift import BATCH_SIZE, Batch, Drift
from courses.management.base import AppCommand
from courses.managers import CourseQuerySet
from courses.models import CountRun, Course


class Command(AppCommand):
    help = (
        "Corrects the stored counts that differ from the rows, while the site stays busy. "
        "Counts drift when something writes to the tables past this project: an SQL client, "
        "a restore, another program."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--course-id",
            nargs="+",
            action="extend",
            metavar="ID",
            dest="course_ids",
            help="only these courses (default: all)",
        )
        parser.add_argument(
            "--check",
            action="store_true",
            help="change nothing; exit with status 1 when anything drifted",
        )
        parser.add_argument(
            "--batch-size",
            default=BATCH_SIZE,
            metavar="N",
            help="courses looked at in one query (default: %(default)s)",
        )
        parser.add_argument(
            "--pause",
            default=0.0,
            metavar="SECONDS",
            help="rest between batches, for a database that is busy (default: %(default)s)",
        )
        parser.add_argument(
            "--start-id",
            metavar="ID",
            help="only courses from this id on: to go on where a run was stopped",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="one JSON object a course a line on standard output, and nothing else",
        )

    def handle(
        self,
        *,
        course_ids: list[str] | None,
        check: bool,
        batch_size: str,
        pause: str,
        start_id: str | None,
        as_json: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        courses = self._courses(course_ids, start_id)
        found = courses_checked = 0
        # Counted only for whom it is shown to: a million courses take their time.
        asked = Course.objects if courses is None else courses
        total = asked.count() if self.stderr.isatty() else None
        with self.progress(total=total, unit="course") as bar:

            def batch_done(batch: Batch) -> None:
                nonlocal courses_checked
                courses_checked += batch.courses_checked
                bar.update(batch.courses_checked)
                if verbosity > 1 and not as_json:
                    with tqdm.external_write_mode():
                        self.stdout.write(self._batch(batch, check=check))

            for drift in run_audit(
                kind=CountRun.Kind.CHECK if check else CountRun.Kind.REBUILD,
                actor=f"rebuild_counts by {self.account()}",
                # Else it says so itself, on standard output.
                alarm=not verbosity,
                courses=courses,
                batch_size=self._whole_number(batch_size, "--batch-size"),
                pause=self._seconds(pause),
                batch_done=batch_done,
            ):
                found += 1
                with tqdm.external_write_mode():
                    self.stdout.write(self._line(drift, check=check, as_json=as_json))
        if not as_json and verbosity:
            self.stdout.write(self._summary(courses_checked, found, check=check))
        if check and found:
            sys.exit(1)

    def _courses(self, given: list[str] | None, start_id: str | None) -> CourseQuerySet | None:
        """Those that were asked for; None: all."""
        courses = None if given is None else self._known(given)
        if start_id is None:
            return courses
        first = self._whole_number(start_id, "--start-id")
        return (Course.objects.all() if courses is None else courses).filter(pk__gte=first)

    def _known(self, given: list[str]) -> CourseQuerySet:
        ids = {self._whole_number(value, "--course-id") for value in given}
        known = Course.objects.in_bulk(ids)
        if unknown := sorted(ids - known.keys()):
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            listed = ", ".join(map(str, unknown[:5]))
            raise self.usage_error(f"There is no course with the id {listed}{more}.")
        return Course.objects.filter(pk__in=ids)

    def _whole_number(self, value: str | int, option: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = 0
        if not 0 < number < 2**63:
            raise self.usage_error(f"{option} takes whole numbers from 1 on, not {value!r}.")
        return number

    def _seconds(self, value: str | float) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= 86_400:
            raise self.usage_error(f"--pause takes seconds from 0 to 86400, not {value!r}.")
        return seconds

    def _batch(self, batch: Batch, *, check: bool) -> str:
        seen = f"Courses {batch.first_id} to {batch.last_id}: {batch.courses_checked} looked at"
        if check:
            return f"{seen}, {batch.drifted} drifted"
        return f"{seen}, {batch.drifted} corrected, locked for {batch.locked_for:.3f} s at most"

    def _line(self, found: Drift, *, check: bool, as_json: bool) -> str:
        if as_json:
            return json.dumps(
                {
                    "course_id": found.course_id,
                    "title": found.title,
                    "stored": found.stored,
                    "true": found.true,
                    "drift": found.drift,
                },
                ensure_ascii=False,
            )
        # A course a line, whatever others put into its title.
        title = "".join(sign if sign.isprintable() else " " for sign in found.title)
        line = (
            f"Course {found.course_id} “{title}”: "
            f"stored {found.stored}, true {found.true}, drift {found.drift:+d}"
        )
        return line if check else f"{line}: corrected"

    def _summary(self, courses_checked: int, found: int, *, check: bool) -> str:
        courses = f"{courses_checked} course{'' if courses_checked == 1 else 's'} looked at"
        if not found:
            return self.style.SUCCESS(f"{courses}: all counts are right.")
        if check:
            return self.style.ERROR(f"{courses}: {found} drifted. Correct with: rebuild_counts")
        return self.style.WARNING(f"{courses}: {found} drifted and corrected.")
