"""The origin that pages, API, admin and commands give to the events of their changes."""

import os
import pwd
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from courses.models import Course
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.services import enroll
from tests.support.commands import assert_usage_error, manage
from tests.support.counts import drift_by_title
from tests.support.enrollments import (
    MakeCourse,
    MakeStudents,
    recorded_actions,
    recorded_origins,
)

pytestmark = pytest.mark.django_db


def test_pages_record_website_and_the_student(
    student_client: Client, student: User, make_course: MakeCourse
) -> None:
    course = make_course(slug="databases")
    student_client.post(f"/courses/{course.slug}/enroll/")
    student_client.post(f"/courses/{course.slug}/leave/")
    assert recorded_actions() == ["enrolled", "withdrawn"]
    assert recorded_origins() == {("website", student.username)}


def test_the_api_records_api_and_the_student(
    student_client: Client, student: User, make_course: MakeCourse
) -> None:
    course = make_course(slug="databases")
    student_client.put(f"/api/courses/{course.slug}/enrollment")
    student_client.delete(f"/api/courses/{course.slug}/enrollment")
    assert recorded_actions() == ["enrolled", "withdrawn"]
    assert recorded_origins() == {("api", student.username)}


def test_the_admin_records_admin_and_the_staff_user(
    staff_client: Client, make_students: MakeStudents, course: Course
) -> None:
    for student in make_students(2):
        staff_client.post(
            reverse("admin:enrollments_enrollment_add"),
            {"student": student.pk, "course": course.pk},
        )
    first, second = Enrollment.objects.order_by("pk")
    staff_client.post(
        reverse("admin:enrollments_enrollment_change", args=[first.pk]), {"status": "completed"}
    )
    staff_client.post(
        reverse("admin:enrollments_enrollment_change", args=[first.pk]), {"status": "withdrawn"}
    )
    staff_client.post(
        reverse("admin:enrollments_enrollment_changelist"),
        {"action": "withdraw", "_selected_action": [second.pk], "post": "yes"},
    )
    assert recorded_actions() == ["enrolled", "enrolled", "completed", "withdrawn", "withdrawn"]
    assert recorded_origins() == {("admin", "staff")}


@pytest.mark.django_db(transaction=True)
class TestCommands:
    ACCOUNT = pwd.getpwuid(os.geteuid()).pw_name

    def test_an_import_records_the_operating_system_account(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SUDO_USER", raising=False)
        path = tmp_path / "enrollments.csv"
        path.write_text("course_id,user_id,role,status\nC,u1,student,active\nC,u2,student,active\n")
        assert manage("import_enrollments", path, "--dry-run").returncode == 0
        assert recorded_actions() == []
        for _ in range(2):
            assert manage("import_enrollments", path).returncode == 0
            assert recorded_actions() == ["enrolled", "enrolled"]
        assert recorded_origins() == {("import", self.ACCOUNT)}

    def test_an_import_with_sudo_records_both_accounts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUDO_USER", "anna")
        path = tmp_path / "enrollments.csv"
        path.write_text("course_id,user_id,role,status\nC,u1,student,active\n")
        assert manage("import_enrollments", path).returncode == 0
        assert recorded_origins() == {("import", f"anna as {self.ACCOUNT}")}

    def test_erase_student_erases_the_named_student_only(
        self, make_students: MakeStudents, course: Course, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUDO_USER", "anna")
        student, other_student = make_students(2)
        for each_student in (student, other_student):
            enroll(student=each_student, course=course)
        result = manage("erase_student", student.username, "--no-input")
        assert result.stdout.startswith(f"Erased 1 enrollment of {student.username}.")
        assert Enrollment.objects.get().student == other_student
        assert drift_by_title() == {}
        event = EnrollmentEvent.objects.get(student=student)
        assert (event.action, event.source) == ("erased", "system")
        assert event.actor == f"anna as {self.ACCOUNT}"

    @pytest.mark.parametrize("username", ["missing", "STUDENT1"], ids=["missing", "other case"])
    def test_erase_student_needs_the_exact_username(
        self, student: User, course: Course, username: str
    ) -> None:
        assert student.username == "student1"
        enroll(student=student, course=course)
        assert_usage_error(manage("erase_student", username), repr(username))
        assert Enrollment.objects.count() == 1
