"""Cause drift as other programs do, and record checks and rebuilds."""

from typing import Any

from django.db.models import F

from courses.counts.audit import run_audit
from courses.models import CountRun, Course

CHECK, REBUILD = CountRun.Kind.CHECK, CountRun.Kind.REBUILD


def add_drift(*courses: Course, by: int = 1) -> None:
    """Change the stored counts without changing rows."""
    pks = [course.pk for course in courses]
    Course.objects.filter(pk__in=pks).update(total_enrollments=F("total_enrollments") + by)


def run_recorded(kind: CountRun.Kind, *courses: Course, **options: Any) -> CountRun:
    """Run a recorded check or rebuild of these courses (default: all), and return its record."""
    selected = Course.objects.filter(pk__in=[course.pk for course in courses]) if courses else None
    options = {"actor": "the tests", "courses": selected} | options
    list(run_audit(kind=kind, **options))
    return CountRun.objects.latest("pk")
