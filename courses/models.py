"""The catalogue: courses and their subjects."""

from datetime import timedelta

from django.conf import settings
from django.db import models
from django.urls import reverse

from courses.fields import CounterField
from courses.querysets import CourseQuerySet


class Subject(models.Model):
    name = models.CharField(max_length=100, unique=True)
    slug = models.SlugField(max_length=100, unique=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Course(models.Model):
    title = models.CharField(max_length=200)
    slug = models.SlugField(max_length=200, unique=True)
    # An index below begins with it.
    subject = models.ForeignKey(
        Subject, models.PROTECT, null=True, blank=True, related_name="courses", db_index=False
    )
    instructor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="courses_taught",
    )
    capacity = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Number of seats. Leave empty for no limit. "
        "Lowering it sends nobody away: nobody more is enrolled until seats are free.",
    )
    total_enrollments = CounterField(
        help_text="Stored number of enrolments that count. Moved by the services only."
    )

    objects = CourseQuerySet.as_manager()

    class Meta:
        # For the catalogue, which is sorted by them; each also has the primary key in it.
        indexes = [
            models.Index(fields=["total_enrollments"], name="course_popularity"),
            models.Index(fields=["subject", "total_enrollments"], name="course_subject_popularity"),
            models.Index(fields=["title"], name="course_title"),
        ]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        return reverse("course", args=[self.slug])

    @property
    def instructor_name(self) -> str:
        # Not the username: it is half of what is needed to sign in.
        return self.instructor.get_full_name() if self.instructor else ""

    @property
    def seats_left(self) -> int | None:
        """Number of free seats, below 0 where the capacity was lowered. None: no limit."""
        return None if self.capacity is None else self.capacity - self.total_enrollments

    @property
    def is_full(self) -> bool:
        return self.seats_left is not None and self.seats_left <= 0


class CountRun(models.Model):
    """One check or rebuild, in the ledger. Written by `courses.ledger`."""

    class Kind(models.TextChoices):
        CHECK = "check"
        REBUILD = "rebuild"

    kind = models.CharField(max_length=7, choices=Kind)
    by = models.CharField(max_length=200, help_text="The command, or the person in the admin.")
    started_at = models.DateTimeField(db_index=True)
    finished_at = models.DateTimeField(
        null=True, help_text="Empty while it is going on, and where it broke off."
    )
    of_all = models.BooleanField(
        "all courses", default=False, help_text="Whether it has looked at every course."
    )
    looked_at = models.PositiveBigIntegerField(default=0, help_text="Number of courses.")
    drifted = models.PositiveBigIntegerField(default=0, help_text="Number of courses.")
    corrected = models.PositiveBigIntegerField(default=0, help_text="Number of courses.")
    # Others can put more than a course holds into a column: sums have room for it.
    absolute_drift = models.PositiveBigIntegerField(
        default=0, help_text="Sum of what was found too high and too low, in enrolments."
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
        help_text="Rows by day of enrolment, as JSON; kept by the newest only.",
    )

    class Meta:
        verbose_name = "check or rebuild"
        verbose_name_plural = "checks and rebuilds"

    def __str__(self) -> str:
        return f"{self.get_kind_display()} by {self.by}, {self.started_at:%Y-%m-%d %H:%M:%S}"

    @property
    def took(self) -> timedelta | None:
        return self.finished_at - self.started_at if self.finished_at else None

    @property
    def left(self) -> int:
        """Number of courses that it left wrong."""
        return self.drifted - self.corrected


class CountCorrection(models.Model):
    """A course that a run found wrong, in the ledger. Written by `courses.ledger`."""

    run = models.ForeignKey(CountRun, models.CASCADE, related_name="corrections")
    # Not known to the database: it would lock the course's row for each entry, and refuse the
    # entries of a course that was deleted meanwhile.
    course = models.ForeignKey(
        Course, models.SET_NULL, null=True, db_constraint=False, related_name="corrections"
    )
    course_title = models.CharField(max_length=200)
    # Wider than the count itself: nothing that others put there is too much.
    stored = models.BigIntegerField()
    true = models.BigIntegerField()
    drift = models.BigIntegerField()
    corrected = models.BooleanField(help_text="No: a check has found it, and changed nothing.")
    at = models.DateTimeField()

    class Meta:
        verbose_name = "drift found"
        verbose_name_plural = "drifts found"

    def __str__(self) -> str:
        return f"{self.course_title}: {self.drift:+d}"
