"""Enrollments, their history, and self-registered students."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.exceptions import ObjectDoesNotExist
from django.db import models
from django.db.models import Q
from django.db.models.fields.related_descriptors import ForwardManyToOneDescriptor
from django.utils import timezone
from django.utils.formats import date_format

from courses.models import Course
from enrollments.managers import (
    COUNTED_STATUSES,
    EnrollmentEventQuerySet,
    EnrollmentQuerySet,
    forbid_event_write,
    forbid_write,
)


class Enrollment(models.Model):
    """One student in one course. Only `enrollments.services` writes it, with the counter.

    Withdrawal is a soft delete, and re-enrolling reactivates the row.
    """

    class Status(models.TextChoices):
        ACTIVE = "active"
        COMPLETED = "completed"
        WITHDRAWN = "withdrawn"

    # Neither foreign key needs an index of its own: the index of the constraint begins with the
    # student, and the index for counting begins with the course. On a Galera cluster, the index
    # and the foreign key also make every write of a row conflict with writes of its course.
    student = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, related_name="enrollments", db_index=False
    )
    course = models.ForeignKey(Course, models.PROTECT, related_name="enrollments", db_index=False)
    status = models.CharField(max_length=10, choices=Status, default=Status.ACTIVE)
    enrollment_date = models.DateTimeField("enrollment date", default=timezone.now)
    withdrawal_date = models.DateTimeField(null=True, blank=True)

    objects = EnrollmentQuerySet.as_manager()

    class Meta:
        # Relations write through the base manager: course.enrollments.add(enrollment).
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

    save = forbid_write("save", "enroll() or set_status()")
    delete = forbid_write("delete", "unenroll() or erase_student()")


class SelfRegistration(models.Model):
    """An account that a visitor created, until staff confirm whose it is.

    An import does not enroll such an account, because its name may be another student's number.
    """

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        primary_key=True,
        related_name="self_registration",
    )
    created_at = models.DateTimeField()
    address = models.GenericIPAddressField(
        null=True, help_text="For the limit of sign-ups per hour. Deleted afterwards."
    )

    class Meta:
        verbose_name = "self-registration"
        indexes = [models.Index(fields=["address", "created_at"], name="self_registration_recent")]

    def __str__(self) -> str:
        return str(self.user)


class NullableRelatedDescriptor(ForwardManyToOneDescriptor):
    """Return None for a related object that no longer exists, as `select_related()` does."""

    def __get__(self, instance: Any, cls: Any = None) -> Any:
        try:
            return super().__get__(instance, cls)
        except ObjectDoesNotExist:
            return None


class UnconstrainedForeignKey(models.ForeignKey):
    """A nullable foreign key that the database does not check. Its object may have been deleted.

    Reading the attribute returns None then, so `dumpdata --natural-foreign` works for events that
    outlive their student.
    """

    forward_related_accessor_class = NullableRelatedDescriptor

    def __init__(self, to: Any, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {
            "on_delete": models.DO_NOTHING,
            "null": True,
            "db_constraint": False,
        }
        super().__init__(to, **(defaults | kwargs))

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.ForeignKey", args, kwargs


class EnrollmentEvent(models.Model):
    """One change of an enrollment: what, when and by whom. Only the services add events."""

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

    # Without database constraints, which would lock the student and the course for each event.
    # Erasure events keep only the former user ID.
    student = UnconstrainedForeignKey(
        settings.AUTH_USER_MODEL,
        related_name="enrollment_events",
    )
    course = UnconstrainedForeignKey(
        Course,
        related_name="enrollment_events",
    )
    action = models.CharField(max_length=20, choices=Action)
    # The row after the change. Empty if the row was erased.
    status = models.CharField(max_length=10, choices=Enrollment.Status, blank=True)
    enrollment_date = models.DateTimeField("enrollment date", null=True)
    withdrawal_date = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    source = models.CharField(max_length=10, choices=Source)
    actor = models.CharField(
        max_length=150,
        blank=True,
        help_text="User name at that time, or the operating system account that ran a command.",
    )
    other_course = UnconstrainedForeignKey(
        Course,
        db_index=False,
        related_name="+",
        help_text="The other course of a transfer.",
    )

    objects = EnrollmentEventQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = "enrollment event"

    def __str__(self) -> str:
        created_at = date_format(timezone.localtime(self.created_at), "DATETIME_FORMAT")
        return f"{self.get_action_display()}, {created_at}"

    @property
    def student_name(self) -> str:
        return str(self.student or f"deleted student {self.student_id}")

    @property
    def course_name(self) -> str:
        return str(self.course or f"deleted course {self.course_id}")

    @property
    def description(self) -> str:
        """The action, with the other course of a transfer."""
        action = self.get_action_display()
        if self.other_course_id is None:
            return action
        return f"{action}: {self.other_course or f'deleted course {self.other_course_id}'}"

    save = forbid_event_write("save")
    delete = forbid_event_write("delete")
