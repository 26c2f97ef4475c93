import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS
from django.template.defaultfilters import pluralize

from courses.counts.audit import run_audit
from courses.counts.drift import BATCH_SIZE, Batch, DriftedCourse
from courses.management.base import AppCommand, positive_int, printable, seconds
from courses.managers import CourseQuerySet
from courses.models import CountRun, Course


class Command(AppCommand):
    help = (
        "Corrects the stored count of each drifted course without interrupting the site. Counts "
        "drift if something changes the tables without the services, such as an SQL client, a "
        "restored backup or another program. Exit status: 0, or 1 if --check found drift, or 2 "
        "after an error."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--course-id",
            type=positive_int,
            nargs="+",
            action="extend",
            metavar="ID",
            dest="course_ids",
            help="only these courses (default: all)",
        )
        parser.add_argument(
            "--check",
            action="store_true",
            help="change nothing, and exit with status 1 if a course drifted",
        )
        parser.add_argument(
            "--batch-size",
            type=positive_int,
            default=BATCH_SIZE,
            metavar="N",
            help="number of courses per query (default: %(default)s)",
        )
        parser.add_argument(
            "--pause",
            type=seconds,
            default=0.0,
            metavar="SECONDS",
            help="sleep between batches, to spare a busy database (default: %(default)s)",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="print one JSON object per drifted course and line, and nothing else",
        )

    def handle(
        self,
        *,
        course_ids: list[int] | None,
        check: bool,
        batch_size: int,
        pause: float,
        as_json: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        courses = self._select_courses(course_ids)
        total = (Course.objects.using(DEFAULT_DB_ALIAS) if courses is None else courses).count()
        drifted = courses_checked = 0
        with self.progress(total=total, unit="course") as bar:

            def count_batch(batch: Batch) -> None:
                nonlocal courses_checked
                courses_checked += len(batch.course_ids)
                bar.update(len(batch.course_ids))

            for course in run_audit(
                kind=CountRun.Kind.CHECK if check else CountRun.Kind.REBUILD,
                actor=f"rebuild_counts: {self.actor_name()}",
                # With a higher verbosity, the summary reports the drift.
                log_drift=not verbosity,
                courses=courses,
                batch_size=batch_size,
                pause=pause,
                on_batch=count_batch,
            ):
                drifted += 1
                line = _describe(course, check=check)
                if as_json:
                    line = json.dumps(asdict(course) | {"drift": course.drift}, ensure_ascii=False)
                with bar.external_write_mode():
                    self.stdout.write(line)
        if verbosity and not as_json:
            self.stdout.write(self._summary(courses_checked, drifted, check=check))
        if check and drifted:
            sys.exit(1)

    def _select_courses(self, course_ids: list[int] | None) -> CourseQuerySet | None:
        """Return the requested courses, or None for all courses."""
        if course_ids is None:
            return None
        courses = Course.objects.using(DEFAULT_DB_ALIAS)
        if unknown := sorted(set(course_ids) - courses.in_bulk(course_ids).keys()):
            raise self.usage_error(
                f"Course{pluralize(unknown)} {', '.join(map(str, unknown))} "
                f"{pluralize(unknown, 'does,do')} not exist. "
                "List all courses with: manage.py export_courses"
            )
        return courses.filter(pk__in=course_ids)

    def _summary(self, courses_checked: int, drifted: int, *, check: bool) -> str:
        if not courses_checked:
            return self.style.WARNING("No courses were checked, because there are none.")
        checked = f"{courses_checked} course{pluralize(courses_checked)} checked"
        if not drifted:
            return self.style.SUCCESS(f"{checked}: all counts are correct.")
        if not check:
            return self.style.WARNING(f"{checked}: {drifted} drifted and corrected.")
        return self.style.ERROR(
            f"{checked}: {drifted} drifted. "
            f"Correct {pluralize(drifted, 'it,them')} with: manage.py rebuild_counts"
        )


def _describe(course: DriftedCourse, *, check: bool) -> str:
    line = (
        f"Course {course.course_id} “{printable(course.title)}”: "
        f"stored {course.stored}, true {course.true}, drift {course.drift:+d}"
    )
    return line if check else f"{line}: corrected"
