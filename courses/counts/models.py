"""Recorded checks and rebuilds, and the drifted courses that they found.

`courses.counts.audit` is the only code that writes these tables.
"""

from datetime import timedelta
from typing import Self

from django.db import models
from django.db.models import Exists, OuterRef
from django.utils import timezone
from django.utils.formats import date_format


class CountRun(models.Model):
    """One check or rebuild."""

    class Kind(models.TextChoices):
        CHECK = "check"
        REBUILD = "rebuild"

    kind = models.CharField(max_length=7, choices=Kind)
    actor = models.CharField(max_length=200, help_text="The command or the admin user that ran it.")
    started_at = models.DateTimeField(db_index=True)
    finished_at = models.DateTimeField(
        null=True, help_text="Empty while the run continues, and if it was interrupted."
    )
    is_full = models.BooleanField(
        "all courses", default=False, help_text="Whether the run checked every course."
    )
    courses_checked = models.PositiveBigIntegerField(default=0)
    drifted = models.PositiveBigIntegerField(
        "drifted courses", default=0, help_text="Number of drifted courses that the run found."
    )
    corrected = models.PositiveBigIntegerField(
        "corrected courses", default=0, help_text="Number of drifted courses that it corrected."
    )
    # Other programs can store counts that no course reaches. The sum must hold them.
    absolute_drift = models.PositiveBigIntegerField(
        "total error", default=0, help_text="Sum of all drifts without their signs, in enrollments."
    )

    class Meta:
        verbose_name = "check or rebuild"
        verbose_name_plural = "checks and rebuilds"

    def __str__(self) -> str:
        started_at = date_format(timezone.localtime(self.started_at), "DATETIME_FORMAT")
        return f"{self.get_kind_display()} by {self.actor}, {started_at}"

    @property
    def is_rebuild(self) -> bool:
        return self.kind == self.Kind.REBUILD

    @property
    def duration(self) -> timedelta | None:
        return self.finished_at - self.started_at if self.finished_at else None

    @property
    def uncorrected(self) -> int:
        """Number of drifted courses that the run found and did not correct."""
        return self.drifted - self.corrected


class CountDiscrepancyQuerySet(models.QuerySet):
    def open(self) -> Self:
        """Keep one unresolved discrepancy of each course that still exists.

        Two checks that run at the same time may both add a row for a course. The next check
        merges them.
        """
        unresolved = self.model._default_manager.filter(resolved_at=None)
        earlier = unresolved.filter(course=OuterRef("course"), pk__lt=OuterRef("pk"))
        return self.filter(~Exists(earlier), resolved_at=None, course__isnull=False)


class CountDiscrepancy(models.Model):
    """A drifted course, from the run that found it to the run that found it correct again."""

    run = models.ForeignKey(
        CountRun,
        models.CASCADE,
        related_name="discrepancies",
        help_text="The last run that found the course drifted, or the rebuild that corrected it.",
    )
    # Without a constraint, recording drift does not lock the row of the course, and works for
    # a course that is being deleted.
    course = models.ForeignKey(
        "courses.Course",
        models.SET_NULL,
        null=True,
        db_constraint=False,
        related_name="discrepancies",
    )
    course_title = models.CharField(max_length=200)
    # Wider than the counter itself, because other programs can store any number there.
    stored = models.BigIntegerField()
    true = models.BigIntegerField()
    drift = models.BigIntegerField()
    corrected = models.BooleanField(help_text="Whether a rebuild corrected the stored count.")
    found_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    resolved_at = models.DateTimeField(
        null=True, blank=True, help_text="When the count was correct again. Empty while it is not."
    )

    objects = CountDiscrepancyQuerySet.as_manager()

    class Meta:
        verbose_name = "discrepancy"
        verbose_name_plural = "discrepancies"
        indexes = [models.Index(fields=["resolved_at", "course"], name="count_discrepancy_open")]

    def __str__(self) -> str:
        return f"{self.course_title}: {self.drift:+d}"
