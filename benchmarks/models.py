"""Models of the peers, with the columns and indexes of the project's own models.

The peers have no check constraints, which is in their favor.
"""

from typing import Any

from computedfields.models import ComputedFieldsModel, computed
from django.conf import settings
from django.db import models
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.utils import timezone
from simple_history.models import HistoricalRecords

COUNTED_STATUSES = ["active", "completed"]


class CourseBase(models.Model):
    title = models.CharField(max_length=200)
    slug = models.SlugField(max_length=200, unique=True)
    capacity = models.PositiveIntegerField(null=True)
    total_enrollments = models.PositiveIntegerField(default=0)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.title


class PlainCourse(CourseBase):
    """The course of all peers but django-computedfields."""


class EnrollmentBase(models.Model):
    student = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, related_name="+", db_index=False
    )
    course = models.ForeignKey(PlainCourse, models.PROTECT, db_index=False)
    status = models.CharField(max_length=10, default="active")
    enrollment_date = models.DateTimeField(default=timezone.now)
    withdrawal_date = models.DateTimeField(null=True)

    class Meta:
        abstract = True
        constraints = [
            models.UniqueConstraint(fields=["student", "course"], name="%(class)s_unique")
        ]
        indexes = [models.Index(fields=["course", "status"], name="%(class)s_status")]

    def __str__(self) -> str:
        return f"{self.student_id} in {self.course_id}"


class PlainEnrollment(EnrollmentBase):
    """The code that inserts an enrollment updates the counter."""


class TrackedEnrollment(EnrollmentBase):
    """django-simple-history keeps the history."""

    history = HistoricalRecords(history_change_reason_field=models.CharField(max_length=6))


class SignalEnrollment(EnrollmentBase):
    """A signal receiver updates the counter."""


@receiver(post_save, sender=SignalEnrollment)
def update_counter(instance: SignalEnrollment, **kwargs: Any) -> None:
    course = instance.course
    enrollments = course.signalenrollment_set.filter(status__in=COUNTED_STATUSES)
    course.total_enrollments = enrollments.count()
    course.save()


class TriggerEnrollment(EnrollmentBase):
    """A database trigger updates the counter."""


TRIGGER = """
    CREATE TRIGGER update_counter AFTER INSERT ON benchmarks_triggerenrollment FOR EACH ROW
    UPDATE benchmarks_plaincourse
    SET total_enrollments = total_enrollments + (NEW.status IN ('active', 'completed'))
    WHERE id = NEW.course_id
"""


class ComputedCourse(ComputedFieldsModel, CourseBase):
    """django-computedfields updates the counter."""

    @computed(models.PositiveIntegerField(default=0), depends=[("enrollments", ["status"])])
    def total_enrollments(self) -> int:
        return self.enrollments.filter(status__in=COUNTED_STATUSES).count() if self.pk else 0


class ComputedEnrollment(EnrollmentBase):
    course = models.ForeignKey(
        ComputedCourse, models.PROTECT, related_name="enrollments", db_index=False
    )


PEER_MODELS = [
    PlainCourse,
    PlainEnrollment,
    TrackedEnrollment,
    TrackedEnrollment.history.model,
    SignalEnrollment,
    TriggerEnrollment,
    ComputedCourse,
    ComputedEnrollment,
]
