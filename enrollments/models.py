"""The enrolment row: one student in one course, kept for ever."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from courses.models import Course
from enrollments.querysets import COUNTED_STATUSES, EnrollmentQuerySet, refused


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
    enrollment_date = models.DateTimeField("enrolment date", default=timezone.now)
    withdrawal_date = models.DateTimeField(null=True, blank=True)

    objects = EnrollmentQuerySet.as_manager()

    class Meta:
        # Relations write through the base manager: course.enrollments.add(row).
        base_manager_name = "objects"
        verbose_name = "enrolment"
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
