"""Recorded checks and rebuilds, and the drifted courses that they found."""

from datetime import timedelta

from django.db import models


class CountRun(models.Model):
    """One check or rebuild, in the ledger. Written by `courses.counts.audit`."""

    class Kind(models.TextChoices):
        CHECK = "check"
        REBUILD = "rebuild"

    kind = models.CharField(max_length=7, choices=Kind)
    actor = models.CharField(max_length=200, help_text="The command, or the person in the admin.")
    started_at = models.DateTimeField(db_index=True)
    finished_at = models.DateTimeField(
        null=True, help_text="Empty while it is going on, and where it broke off."
    )
    is_full = models.BooleanField(
        "all courses", default=False, help_text="Whether it has looked at every course."
    )
    courses_checked = models.PositiveBigIntegerField(default=0, help_text="Number of courses.")
    drifted = models.PositiveBigIntegerField(default=0, help_text="Number of courses.")
    corrected = models.PositiveBigIntegerField(default=0, help_text="Number of courses.")
    # Others can put more than a course holds into a column: sums have room for it.
    absolute_drift = models.PositiveBigIntegerField(
        default=0, help_text="Sum of what was found too high and too low, in enrollments."
    )
    stored_sum = models.BigIntegerField(
        default=0, help_text="Sum of the stored counts, after what was corrected."
    )
    true_sum = models.BigIntegerField(default=0, help_text="Sum of the true counts.")
    # No JSONField: later Djangos look whether SQLite can JSON before each command, and take a
    # database that others write to for one that can't.
    enrolled_by_day = models.TextField(
        default="",
        editable=False,
        help_text="Rows by day of enrollment, as JSON; kept by the newest only.",
    )

    class Meta:
        verbose_name = "check or rebuild"
        verbose_name_plural = "checks and rebuilds"

    def __str__(self) -> str:
        return f"{self.get_kind_display()} by {self.actor}, {self.started_at:%Y-%m-%d %H:%M:%S}"

    @property
    def duration(self) -> timedelta | None:
        return self.finished_at - self.started_at if self.finished_at else None

    @property
    def uncorrected(self) -> int:
        """Number of courses that it left wrong."""
        return self.drifted - self.corrected


class CountDiscrepancy(models.Model):
    """A course that a run found wrong, in the ledger. Written by `courses.counts.audit`."""

    run = models.ForeignKey(CountRun, models.CASCADE, related_name="discrepancies")
    # Not known to the database: it would lock the course's row for each entry, and refuse the
    # entries of a course that was deleted meanwhile.
    course = models.ForeignKey(
        "courses.Course",
        models.SET_NULL,
        null=True,
        db_constraint=False,
        related_name="discrepancies",
    )
    course_title = models.CharField(max_length=200)
    # Wider than the count itself: nothing that others put there is too much.
    stored = models.BigIntegerField()
    true = models.BigIntegerField()
    drift = models.BigIntegerField()
    corrected = models.BooleanField(help_text="No: a check has found it, and changed nothing.")
    found_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True, blank=True, db_index=True)

    class Meta:
        verbose_name = "drift found"
        verbose_name_plural = "drifts found"

    def __str__(self) -> str:
        return f"{self.course_title}: {self.drift:+d}"
