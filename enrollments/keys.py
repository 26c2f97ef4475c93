"""Convert the `student` and `course` arguments of services to primary keys."""

from collections.abc import Iterable
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import connection
from django.db.models import IntegerField, Model

from courses.models import Course


def course_key(course: Course | int) -> Any:
    """Return the primary key of a course. Raises Course.DoesNotExist for an impossible key."""
    return _to_key(course, Course)


def student_key(student: Model | int) -> Any:
    """Return the primary key of a user. Raises the model's DoesNotExist for an impossible key."""
    return _to_key(student, get_user_model())


def student_keys(students: Iterable[Model | int]) -> list[Any]:
    model = get_user_model()
    keys: list[Any] = [
        student.pk if isinstance(student, model) else student for student in students
    ]
    if {*map(type, keys)} == {int} and isinstance(model._meta.pk, IntegerField):
        # Integer keys only need a range check.
        for key in (min(keys), max(keys)):
            _to_key(key, model)
        return keys
    return [_to_key(key, model) for key in keys]


def _to_key(value: Any, model: Any) -> Any:
    if isinstance(value, model):
        return value.pk
    if isinstance(value, (Model, bool, float)):
        raise TypeError(
            f"Expected a {model.__name__} or its primary key, not a {type(value).__name__}."
        )
    try:
        key = model._meta.pk.to_python(value)
        model._meta.pk.run_validators(key)
        # MySQL rejects keys that its columns cannot hold, and 0.
        model._meta.pk.get_db_prep_value(key, connection)
    except (ValidationError, ValueError):
        raise model.DoesNotExist(f"{model.__name__} {value!r} does not exist.") from None
    return key
