"""Tables of the peers, with the columns and indexes of the project's own.

The peers' have no check constraints, which is in their favour.
"""

from typing import Any

from computedfields.models import ComputedFieldsModel, computed
from django.conf import settings
from django.db import models
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.utils import timezone
from simple_history.models import HistoricalRecords

COUNTED = ["active", "completed"]


class CourseBase(models.Model):
    title = models.CharField(max_length=200)
    slug = models.SlugField(max_length=200, unique=True)
    capacity = models.PositiveIntegerField(null=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.title


class CountedCourse(CourseBase):
    total_enrollments = models.PositiveIntegerField(default=0)

    class Meta:
        abstract = True


class EnrollmentBase(models.Model):
    student = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, related_name="+", db_index=False
    )
    status = models.CharField(max_length=10, default="active")
    enrollment_date = models.DateTimeField(default=timezone.now)
    withdrawal_date = models.DateTimeField(null=True)

    class Meta:
        abstract = True
        constraints = [
            models.UniqueConstraint(fields=["student", "course"], name="%(class)s_unique")
        ]
        indexes = [models.Index(fields=["course", "status"], name="%(class)s_counting")]

    def __str__(self) -> str:
        return f"{self.student_id} in {self.course_id}"


class PlainCourse(CountedCourse):
    """Counted by the code that writes rows."""


class PlainEnrollment(EnrollmentBase):
    course = models.ForeignKey(
        PlainCourse, models.PROTECT, related_name="enrollments", db_index=False
    )


class TrackedEnrollment(EnrollmentBase):
    """Its history is kept by django-simple-history."""

    course = models.ForeignKey(PlainCourse, models.PROTECT, related_name="tracked", db_index=False)
    history = HistoricalRecords(history_change_reason_field=models.CharField(max_length=6))


class SignalCourse(CountedCourse):
    """Counted by a receiver."""


class SignalEnrollment(EnrollmentBase):
    course = models.ForeignKey(
        SignalCourse, models.PROTECT, related_name="enrollments", db_index=False
    )


@receiver(post_save, sender=SignalEnrollment)
def count_rows(instance: SignalEnrollment, **kwargs: Any) -> None:
    course = instance.course
    course.total_enrollments = course.enrollments.filter(status__in=COUNTED).count()
    course.save()


class TriggerCourse(CountedCourse):
    """Counted by a trigger of the database."""


class TriggerEnrollment(EnrollmentBase):
    course = models.ForeignKey(
        TriggerCourse, models.PROTECT, related_name="enrollments", db_index=False
    )


TRIGGER = """
    CREATE TRIGGER count_row AFTER INSERT ON benchmarks_triggerenrollment FOR EACH ROW
    UPDATE benchmarks_triggercourse
    SET total_enrollments = total_enrollments + (NEW.status IN ('active', 'completed'))
    WHERE id = NEW.course_id
"""


class ComputedCourse(ComputedFieldsModel, CourseBase):
    """Counted by django-computedfields."""

    @computed(models.PositiveIntegerField(default=0), depends=[("enrollments", ["status"])])
    def total_enrollments(self) -> int:
        return self.enrollments.filter(status__in=COUNTED).count() if self.pk else 0


class ComputedEnrollment(EnrollmentBase):
    course = models.ForeignKey(
        ComputedCourse, models.PROTECT, related_name="enrollments", db_index=False
    )


TABLES = [
    PlainCourse,
    PlainEnrollment,
    TrackedEnrollment,
    TrackedEnrollment.history.model,
    SignalCourse,
    SignalEnrollment,
    TriggerCourse,
    TriggerEnrollment,
    ComputedCourse,
    ComputedEnrollment,
]
