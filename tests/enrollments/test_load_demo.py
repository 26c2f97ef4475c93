from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import Client

from courses.models import Course, Subject
from enrollments.models import Enrollment
from tests.conftest import drifts
from tests.support.commands import assert_usage_error, everything, manage

FEW = ["--students", "60"]


@pytest.fixture
def debug(settings: Any) -> None:
    settings.DEBUG = True
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast


def loaded(*arguments: str) -> list[Any]:
    """What the command loads into this database; undone again."""
    with transaction.atomic():
        call_command("load_demo", *arguments)
        courses = Course.objects.order_by("pk").values_list("title", "capacity")
        rows = Enrollment.objects.order_by("pk").values_list(
            "course__title", "student__username", "status"
        )
        data = [*courses, *rows]
        transaction.set_rollback(True)
    return data


@pytest.mark.django_db
@pytest.mark.usefixtures("debug")
class TestWithDebug:
    def test_a_catalog_as_they_are(
        self, capsys: pytest.CaptureFixture[str], client: Client
    ) -> None:
        call_command("load_demo")
        assert capsys.readouterr().out == (
            "Demo data: 90 courses, 3000 students.\n"
            "Sign in to /admin/ as admin with the password admin.\n"
        )
        assert client.login(username="admin", password="admin")
        assert client.get("/admin/", secure=True).status_code == 200
        assert get_user_model().objects.filter(username__startswith="student").count() == 3_000
        courses = list(Course.objects.order_by("-total_enrollments"))
        counts = [course.total_enrollments for course in courses]
        assert counts[0] > 1_000
        # Skewed: the first tenth has more than all the others.
        assert sum(counts[:9]) > sum(counts[9:]) > 0
        full = [course for course in courses if course.total_enrollments == course.capacity]
        assert 5 < len(full) < 45
        assert set(Enrollment.objects.values_list("status", flat=True)) == {
            *Enrollment.Status.values
        }
        assert drifts() == {}

    def test_the_seed_makes_the_data(self) -> None:
        first = loaded("--seed", "1", *FEW)
        assert len(first) > 200
        assert loaded(*FEW) == first
        assert loaded("--seed", "2", *FEW) != first

    def test_is_loaded_once(self) -> None:
        call_command("load_demo", *FEW)
        before = everything()
        call_command("load_demo", "--seed", "2")
        assert everything() == before

    def test_leaves_alone_what_is_there(
        self, capsys: pytest.CaptureFixture[str], make_course: Callable[..., Course]
    ) -> None:
        make_course()
        before = everything()
        call_command("load_demo", *FEW)
        assert everything() == before
        assert capsys.readouterr().out == ""

    def test_people_who_are_there_stay_as_they_are(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        users = get_user_model().objects
        for name in ("admin", "student0001", "student-adviser"):
            users.create_user(name, password="their own")
        before = list(users.order_by("pk").values())
        call_command("load_demo", *FEW)
        assert list(users.order_by("pk").values()[:3]) == before
        assert "Sign in" not in capsys.readouterr().out
        who = set(Enrollment.objects.values_list("student__username", flat=True))
        assert "student-adviser" not in who
        assert who <= {f"student{n:04}" for n in range(1, 61)}

    @pytest.mark.parametrize("students", ["1", "7"])
    def test_few_students_will_do(self, students: str) -> None:
        call_command("load_demo", "--students", students)
        assert Course.objects.count() == 90
        assert drifts() == {}

    @pytest.mark.parametrize("arguments", [["--students", "0"], ["--students", "x"], ["--seed"]])
    def test_bad_input(self, arguments: list[str]) -> None:
        with pytest.raises(CommandError) as refused:
            call_command("load_demo", *arguments)
        assert refused.value.returncode == 2
        assert not any(everything().values())


@pytest.mark.django_db(transaction=True)
class TestProcess:
    def test_is_whole_or_not_there(self, debug: None) -> None:
        """A subject is in the way of the last one, when all others are made."""
        Subject.objects.create(name="Arts", slug="fine-arts")
        before = everything()
        done = manage("load_demo", *FEW, env={"DEBUG": "1"})
        assert_usage_error(done, "clashes with what is there")
        assert everything() == before

    def test_needs_debug(self) -> None:
        assert_usage_error(manage("load_demo", env={"DEBUG": "0"}), "set DEBUG=1")
        assert not any(everything().values())
