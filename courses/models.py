"""Courses, and the subjects that they belong to."""

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, models
from django.urls import reverse

from courses.counts.models import CountDiscrepancy, CountRun
from courses.fields import CounterField
from courses.managers import CourseQuerySet

__all__ = ["CountDiscrepancy", "CountRun", "Course", "Subject"]


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
    # Empty: the slug is the ID.
    code = models.CharField(
        "course ID",
        max_length=200,
        blank=True,
        default="",
        db_default="",
        help_text="Course ID in other systems. Imports find the course by it.",
    )
    # An index in Meta begins with the subject.
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
        "Lowering it withdraws nobody, but nobody else can enroll until seats are free.",
    )
    total_enrollments = CounterField(
        help_text="Stored number of enrollments that count. Only the services change it."
    )

    objects = CourseQuerySet.as_manager()

    class Meta:
        # For the orders of the catalog and for imports. InnoDB appends the primary key.
        indexes = [
            models.Index(fields=["total_enrollments"], name="course_popularity"),
            models.Index(fields=["subject", "total_enrollments"], name="course_subject_popularity"),
            models.Index(fields=["title"], name="course_title"),
            models.Index(fields=["code"], name="course_code"),
        ]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        return reverse("course", args=[self.slug])

    def clean(self) -> None:
        if not self.code.isprintable():
            raise ValidationError("The course ID has characters that are not printable.")
        others = Course.objects.using(DEFAULT_DB_ALIAS).exclude(pk=self.pk)
        same_code = others.filter(code__iexact=self.code) if self.code else []
        # MariaDB's comparison ignores accents, too.
        if any(other.code.lower() == self.code.lower() for other in same_code):
            raise ValidationError(f"Another course has the course ID “{self.code}”.")

    @property
    def instructor_name(self) -> str:
        # Not the user name, which is half of what is needed to sign in.
        return self.instructor.get_full_name() if self.instructor else ""

    @property
    def seats_left(self) -> int | None:
        """Number of free seats. Below 0 if the capacity was lowered, None if there is no limit."""
        return None if self.capacity is None else self.capacity - self.total_enrollments

    @property
    def is_full(self) -> bool:
        return self.seats_left is not None and self.seats_left <= 0
