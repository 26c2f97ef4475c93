from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import Client

from courses.models import Course, Subject
from enrollments.models import Enrollment
from tests.support.commands import all_rows, assert_usage_error, manage
from tests.support.counts import drift_by_title

FEW_STUDENTS = ["--students", "60"]


@pytest.fixture
def debug(settings: Any) -> None:
    settings.DEBUG = True
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast


def load_and_roll_back(*arguments: str) -> list[Any]:
    """Return the courses and enrollments that the command creates."""
    with transaction.atomic():
        call_command("load_demo", *arguments)
        courses = Course.objects.order_by("pk").values_list("title", "capacity")
        enrollments = Enrollment.objects.order_by("pk").values_list(
            "course__title", "student__username", "status"
        )
        data = [*courses, *enrollments]
        transaction.set_rollback(True)
    return data


@pytest.mark.django_db
@pytest.mark.usefixtures("debug")
class TestWithDebug:
    def test_creates_a_realistic_catalog(
        self, capsys: pytest.CaptureFixture[str], client: Client
    ) -> None:
        call_command("load_demo")
        assert capsys.readouterr().out == (
            "Demo data: 90 courses, 3000 students.\n"
            "Sign in to /admin/ as admin with the password admin.\n"
        )
        form = {"username": "admin", "password": "admin"}
        assert client.post("/admin/login/", form, secure=True).status_code == 302
        assert client.get("/admin/", secure=True).status_code == 200
        assert get_user_model().objects.filter(username__startswith="student").count() == 3_000
        courses = list(Course.objects.order_by("-total_enrollments"))
        counts = [course.total_enrollments for course in courses]
        assert counts[0] > 1_000
        # The distribution is skewed: the first tenth has more students than all others.
        assert sum(counts[:9]) > sum(counts[9:]) > 0
        full = [course for course in courses if course.total_enrollments == course.capacity]
        assert 5 < len(full) < 45
        assert set(Enrollment.objects.values_list("status", flat=True)) == {
            *Enrollment.Status.values
        }
        assert drift_by_title() == {}

    def test_data_is_the_same_every_time(self) -> None:
        first = load_and_roll_back(*FEW_STUDENTS)
        assert len(first) > 200
        assert load_and_roll_back(*FEW_STUDENTS) == first

    def test_second_call_changes_nothing(self) -> None:
        call_command("load_demo", *FEW_STUDENTS)
        before = all_rows()
        call_command("load_demo")
        assert all_rows() == before

    def test_existing_courses_are_unchanged(
        self, capsys: pytest.CaptureFixture[str], make_course: Callable[..., Course]
    ) -> None:
        make_course()
        before = all_rows()
        call_command("load_demo", *FEW_STUDENTS)
        assert all_rows() == before
        assert capsys.readouterr().out == ""

    def test_existing_users_are_unchanged(self, capsys: pytest.CaptureFixture[str]) -> None:
        users = get_user_model().objects
        for name in ("admin", "student0001", "student-adviser"):
            users.create_user(name, password="their own")
        before = list(users.order_by("pk").values())
        call_command("load_demo", *FEW_STUDENTS)
        assert list(users.order_by("pk").values()[:3]) == before
        assert "Sign in" not in capsys.readouterr().out
        enrolled = set(Enrollment.objects.values_list("student__username", flat=True))
        assert "student-adviser" not in enrolled
        assert enrolled <= {f"student{n:04}" for n in range(1, 61)}

    @pytest.mark.parametrize("students", ["1", "7"])
    def test_few_students_are_enough(self, students: str) -> None:
        call_command("load_demo", "--students", students)
        assert Course.objects.count() == 90
        assert drift_by_title() == {}

    @pytest.mark.parametrize(
        "arguments", [["--students", "0"], ["--students", "x"], ["--students"]]
    )
    def test_invalid_arguments_raise(self, arguments: list[str]) -> None:
        with pytest.raises(CommandError):
            call_command("load_demo", *arguments)
        assert not any(all_rows().values())


@pytest.mark.django_db(transaction=True)
class TestProcess:
    def test_conflict_with_existing_data_rolls_back(self) -> None:
        # The last subject to be created has a slug that is taken.
        Subject.objects.create(name="Fine Arts", slug="arts")
        before = all_rows()
        result = manage("load_demo", *FEW_STUDENTS, env={"DEBUG": "1"})
        assert_usage_error(result, "The database rejected a value")
        assert all_rows() == before

    def test_without_debug_exits_with_status_2(self) -> None:
        assert_usage_error(manage("load_demo", env={"DEBUG": "0"}), "Set DEBUG=1")
        assert not any(all_rows().values())
