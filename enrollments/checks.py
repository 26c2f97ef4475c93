"""A system check: proxies and children of guarded models keep the guard of their managers.

Relations write through the base manager, which is one of these managers.
"""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.core.checks import Error, Tags, register
from django.db.models import Model, QuerySet

from courses.managers import CourseQuerySet
from courses.models import Course
from enrollments.managers import EnrollmentEventQuerySet, EnrollmentQuerySet
from enrollments.models import Enrollment, EnrollmentEvent

_GUARDS: dict[type[Model], type[QuerySet]] = {
    Course: CourseQuerySet,
    Enrollment: EnrollmentQuerySet,
    EnrollmentEvent: EnrollmentEventQuerySet,
}


@register(Tags.models)
def check_managers(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[Error]:
    """Reject managers that could write counts, enrollments or history without the services."""
    return [
        Error(
            f"The manager “{manager.name}” bypasses the guard of {guarded.__name__}, so it could "
            "make counts wrong.",
            hint=f"Build it with {guard.__name__}.as_manager(), or from a subclass of "
            f"{guard.__module__}.{guard.__name__}.",
            obj=model,
            id="enrollments.E001",
        )
        for config in app_configs or apps.get_app_configs()
        for model in config.get_models()
        for guarded, guard in _GUARDS.items()
        if issubclass(model, guarded)
        for manager in model._meta.managers
        if not isinstance(manager.get_queryset(), guard)
    ]
