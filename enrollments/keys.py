"""Convert the `student` and `course` arguments of services to primary keys."""

from collections.abc import Iterable
from decimal import Decimal
from numbers import Integral
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import connection
from django.db.models import IntegerField, Model

from courses.models import Course

# Django would convert some of these to the key of another object: 1.5, True and b"1" to 1.
_REJECTED_TYPES = (Model, bool, float, Decimal, bytes)


def course_key(course: Course | int) -> Any:
    """Return the primary key of a course. Raises Course.DoesNotExist for an impossible key."""
    return _to_key(course, Course)


def student_key(student: Model | int) -> Any:
    """Return the primary key of a user. Raises the model's DoesNotExist for an impossible key."""
    return _to_key(student, get_user_model())


def student_keys(students: Iterable[Model | int]) -> list[Any]:
    model = get_user_model()
    keys = [_instance_key(student, model) for student in students]
    if {*map(type, keys)} == {int} and isinstance(model._meta.pk, IntegerField):
        # Integer keys only need a range check.
        for key in (min(keys), max(keys)):
            _to_key(key, model)
        return keys
    return [_to_key(key, model) for key in keys]


def _instance_key(value: Any, model: Any) -> Any:
    # A child of the model can have a primary key of its own.
    return getattr(value, model._meta.pk.attname) if isinstance(value, model) else value


def _to_key(value: Any, model: Any) -> Any:
    """Convert an instance, a key, or the exact text of a key, such as "1" but not "01"."""
    if isinstance(value, model):
        key = _instance_key(value, model)
        # What was read from the database needs no check.
        return _to_key(key, model) if value._state.adding else key
    if isinstance(value, _REJECTED_TYPES):
        raise TypeError(
            f"Expected a {model.__name__} or its primary key, not a {type(value).__name__}."
        )
    field = model._meta.pk
    try:
        key = field.to_python(value)
        field.run_validators(key)
        # MySQL rejects keys that its columns cannot hold, and 0.
        field.get_db_prep_value(key, connection)
    except (ValidationError, ValueError, OverflowError):
        key = None
    if key is None or not isinstance(value, (str, Integral, type(key))) or str(value) != str(key):
        raise model.DoesNotExist(f"{model.__name__} {value!r:.100} does not exist.")
    return key
