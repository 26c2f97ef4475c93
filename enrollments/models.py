"""The enrollment row: one student in one course, kept for ever. And its history."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.exceptions import ObjectDoesNotExist
from django.db import models
from django.db.models import Q
from django.db.models.fields.related_descriptors import ForwardManyToOneDescriptor
from django.utils import timezone

from courses.models import Course
from enrollments.managers import (
    COUNTED_STATUSES,
    EnrollmentEventQuerySet,
    EnrollmentQuerySet,
    refused,
    refused_event,
)


class Enrollment(models.Model):
    """Written by `enrollments.services`, which moves the course's counter with it."""

    class Status(models.TextChoices):
        ACTIVE = "active"
        COMPLETED = "completed"
        WITHDRAWN = "withdrawn"

    # Neither key needs an index of its own: the constraint's begins with the student,
    # the index for counting with the course. On a Galera cluster that index, with the foreign
    # key, is also what makes any write of a row collide with those of its course.
    student = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, related_name="enrollments", db_index=False
    )
    course = models.ForeignKey(Course, models.PROTECT, related_name="enrollments", db_index=False)
    status = models.CharField(max_length=10, choices=Status, default=Status.ACTIVE)
    enrollment_date = models.DateTimeField("enrollment date", default=timezone.now)
    withdrawal_date = models.DateTimeField(null=True, blank=True)

    objects = EnrollmentQuerySet.as_manager()

    class Meta:
        # Relations write through the base manager: course.enrollments.add(row).
        base_manager_name = "objects"
        verbose_name = "enrollment"
        constraints = [
            models.UniqueConstraint(
                fields=["student", "course"], name="enrollment_student_course_unique"
            ),
            models.CheckConstraint(
                condition=Q(status__in=["active", "completed", "withdrawn"]),
                name="enrollment_status_valid",
            ),
            models.CheckConstraint(
                condition=Q(status="withdrawn", withdrawal_date__isnull=False)
                | (~Q(status="withdrawn") & Q(withdrawal_date__isnull=True)),
                name="enrollment_withdrawal_date_if_withdrawn",
            ),
        ]
        indexes = [
            models.Index(fields=["course", "status"], name="enrollment_course_status"),
        ]

    def __str__(self) -> str:
        return f"{self.student} in {self.course} ({self.get_status_display().lower()})"

    @property
    def is_counted(self) -> bool:
        return self.status in COUNTED_STATUSES

    save = refused("save", "enroll() or set_status()")
    delete = refused("delete", "unenroll() or erase_student()")


class NullableRelatedDescriptor(ForwardManyToOneDescriptor):
    def __get__(self, instance: Any, cls: Any = None) -> Any:
        try:
            return super().__get__(instance, cls)
        except ObjectDoesNotExist:
            return None


class UnconstrainedForeignKey(models.ForeignKey):
    """A key of what may be gone: None then, as with `select_related()`.

    Otherwise `dumpdata --natural-foreign` would fail from the first deleted student on.
    """

    forward_related_accessor_class = NullableRelatedDescriptor

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.ForeignKey", args, kwargs


class EnrollmentEvent(models.Model):
    """What was done to an enrollment, when, and who did it. Added by `enrollments.services`."""

    class Action(models.TextChoices):
        ENROLLED = "enrolled"
        REENROLLED = "reenrolled", "Re-enrolled"
        COMPLETED = "completed"
        REOPENED = "reopened"
        WITHDRAWN = "withdrawn"
        TRANSFERRED_OUT = "transferred_out", "Transferred out"
        TRANSFERRED_IN = "transferred_in", "Transferred in"
        DATES_CHANGED = "dates_changed", "Dates changed"
        ERASED = "erased"

    class Source(models.TextChoices):
        WEBSITE = "website"
        ADMIN = "admin"
        API = "api", "API"
        IMPORT = "import"
        SYSTEM = "system"

    # Not known to the database, and not followed by deletions. A foreign key would lock the
    # rows that it names for each event; and that somebody was erased is told by their number,
    # which names nobody any more.
    student = UnconstrainedForeignKey(
        settings.AUTH_USER_MODEL,
        models.DO_NOTHING,
        null=True,
        db_constraint=False,
        related_name="enrollment_events",
    )
    course = UnconstrainedForeignKey(
        Course,
        models.DO_NOTHING,
        null=True,
        db_constraint=False,
        related_name="enrollment_events",
    )
    action = models.CharField(max_length=20, choices=Action)
    # The row as it was then; empty where it was erased.
    status = models.CharField(max_length=10, choices=Enrollment.Status, blank=True)
    enrollment_date = models.DateTimeField("enrollment date", null=True)
    withdrawal_date = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    source = models.CharField(max_length=10, choices=Source)
    actor = models.CharField(
        max_length=150,
        blank=True,
        help_text="The username as it was then; of a command, the account that ran it.",
    )
    other_course = UnconstrainedForeignKey(
        Course,
        models.DO_NOTHING,
        null=True,
        db_constraint=False,
        db_index=False,
        related_name="+",
        help_text="From or to which the student was moved.",
    )

    objects = EnrollmentEventQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = "enrollment event"

    def __str__(self) -> str:
        return f"{self.get_action_display()}, {self.created_at:%Y-%m-%d %H:%M}"

    @property
    def student_name(self) -> str:
        return str(self.student or f"student number {self.student_id}, deleted")

    @property
    def course_name(self) -> str:
        return str(self.course or f"course number {self.course_id}, deleted")

    @property
    def description(self) -> str:
        """What was done, with the other course where there is one."""
        done = self.get_action_display()
        if self.other_course_id is None:
            return done
        return f"{done}: {self.other_course or f'number {self.other_course_id}, deleted'}"

    save = refused_event("save")
    delete = refused_event("delete")
