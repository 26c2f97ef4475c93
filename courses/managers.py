"""Compare the stored count of courses with the true count of their enrollments."""

from collections.abc import Collection, Iterable
from typing import Any, Self

from django.apps import apps
from django.core.exceptions import FieldError
from django.db import models
from django.db.models import BigIntegerField, F, FloatField, Func, OuterRef, Subquery, Sum
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Cast

from courses.fields import CounterField


class CourseQuerySet(models.QuerySet):
    """Courses. Annotated counts are those in the database at the time of the query."""

    def with_true_count(self) -> Self:
        """Annotate `true_count`, the number of enrollments that count."""
        return self.annotate(true_count=true_count())

    def with_drift(self) -> Self:
        """Annotate `true_count`, and `drift`: stored count − true count. 0 is correct."""
        return self.with_true_count().annotate(drift=drift(F("true_count")))

    def drifted(self) -> Self:
        """Keep the courses whose stored count differs from the true count."""
        return self.with_drift().exclude(drift=0)

    def bulk_update(self, objs: Iterable[Any], fields: Iterable[str], *args: Any, **kw: Any) -> int:
        fields = list(fields)
        self._reject_counters(fields)
        return super().bulk_update(objs, fields, *args, **kw)

    def bulk_create(
        self,
        objs: Iterable[Any],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        update_fields: Collection[str] | None = None,
        unique_fields: Collection[str] | None = None,
    ) -> list[Any]:
        self._reject_counters(update_fields or ())
        return super().bulk_create(
            objs, batch_size, ignore_conflicts, update_conflicts, update_fields, unique_fields
        )

    def _reject_counters(self, fields: Iterable[str]) -> None:
        for name in fields:
            if isinstance(self.model._meta.get_field(name), CounterField):
                raise FieldError(
                    f"{name} cannot be written from instances, which may be stale. Leave it out of "
                    "the fields, and correct wrong counts with: manage.py rebuild_counts"
                )


def true_count() -> Subquery:
    """Return an expression for the number of counted enrollments of the course in the query."""
    enrollment: Any = apps.get_model("courses.Course")._meta.get_field("enrollments").related_model
    # COUNT without GROUP BY returns 0, not NULL, for a course without rows.
    count = Func(F("pk"), function="COUNT", output_field=BigIntegerField())
    counted = enrollment._default_manager.counted().filter(course=OuterRef("pk")).order_by()
    return Subquery(counted.annotate(n=count).values("n"), output_field=BigIntegerField())


def total(expression: Any) -> Sum:
    """Return the sum of integers, as a float, because SQLite cannot add integers beyond 64 bits."""
    return Sum(Cast(expression, FloatField()), default=0.0)


def drift(true: Any = None) -> CombinedExpression:
    """Return an expression for stored count − true count of the course in the query."""
    # MySQL raises error 1690 if the difference of unsigned columns is below 0. Cast first.
    return Cast("total_enrollments", BigIntegerField()) - (true or true_count())
