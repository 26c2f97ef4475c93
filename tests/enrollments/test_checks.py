"""The system check that rejects managers without a guard, on real model classes."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, models
from django.test.utils import isolate_apps

from courses.managers import CourseQuerySet
from courses.models import Course
from enrollments.checks import check_managers
from enrollments.managers import EnrollmentEventQuerySet, EnrollmentQuerySet
from enrollments.models import Enrollment, EnrollmentEvent
from tests.support.enrollments import MakeCourse, set_stored_count, stored_count

GUARDS = [
    (Enrollment, EnrollmentQuerySet),
    (EnrollmentEvent, EnrollmentEventQuerySet),
    (Course, CourseQuerySet),
]
every_guard = pytest.mark.parametrize(("parent", "guard"), GUARDS)
proxy_or_child = pytest.mark.parametrize("is_proxy", [True, False], ids=["proxy", "child"])


def subclass(parent: Any, *, is_proxy: bool, meta: Any = None, **names: Any) -> Any:
    options = {"app_label": "enrollments", "proxy": is_proxy} | (meta or {})
    names |= {"__module__": "enrollments.models", "Meta": type("Meta", (), options)}
    return type("Subclass", (parent,), names)


def errors_of(define: Callable[[], Any]) -> list[str]:
    """Return the messages of the check for an app with the model that `define` creates."""
    with isolate_apps("enrollments") as isolated:
        define()
        errors = check_managers(app_configs=isolated.get_app_configs())
    assert {error.id for error in errors} <= {"enrollments.E001"}
    return [f"{error.msg} {error.hint}" for error in errors]


def test_the_project_passes() -> None:
    assert check_managers(app_configs=None) == []
    call_command("check")


@every_guard
@proxy_or_child
@pytest.mark.parametrize("name", ["objects", "extra"])
def test_a_manager_without_the_guard_is_an_error(
    parent: Any, guard: Any, is_proxy: bool, name: str
) -> None:
    managers = {name: models.Manager()}
    errors = errors_of(lambda: subclass(parent, is_proxy=is_proxy, **managers))
    assert len(errors) == 1
    assert f"“{name}” bypasses the guard of {parent.__name__}" in errors[0]
    assert f"{guard.__name__}.as_manager()" in errors[0]


@every_guard
@proxy_or_child
def test_guarded_and_inherited_managers_are_no_errors(
    parent: Any, guard: Any, is_proxy: bool
) -> None:
    class ActiveManager(models.Manager.from_queryset(guard)):  # type: ignore[misc]
        def get_queryset(self) -> Any:
            return super().get_queryset().filter(pk__gt=0)

    class Extended(guard):
        pass

    for managers in ({}, {"active": ActiveManager()}, {"objects": Extended.as_manager()}):
        assert errors_of(lambda: subclass(parent, is_proxy=is_proxy, **managers)) == []  # noqa: B023


def test_a_base_manager_without_the_guard_is_an_error() -> None:
    """Relations write through it."""
    errors = errors_of(
        lambda: subclass(
            Enrollment,
            is_proxy=True,
            meta={"base_manager_name": "raw"},
            raw=models.Manager(),
            objects=EnrollmentQuerySet.as_manager(),
        )
    )
    assert len(errors) == 1
    assert "“raw”" in errors[0]


@pytest.mark.django_db(transaction=True)
def test_saving_a_stale_child_of_a_course_keeps_its_count(make_course: MakeCourse) -> None:
    with isolate_apps("enrollments"):
        Child = subclass(Course, is_proxy=False, note=models.TextField())  # noqa: N806
    with connection.schema_editor() as editor:
        editor.create_model(Child)
    try:
        child = Child.objects.create(title="Child", slug="child", note="")
        set_stored_count(child, 7)
        child.title = "Changed"
        child.save()
        assert stored_count(child) == 7
        # A child is added to a course that exists.
        course = make_course()
        set_stored_count(course, 5)
        Child(course_ptr=course, title="Course", slug=course.slug, note="").save()
        assert stored_count(course) == 5
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Child)
