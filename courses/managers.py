"""How a course's stored count is verified against its rows."""

from collections.abc import Collection, Iterable
from typing import Any, Self

from django.apps import apps
from django.core.exceptions import FieldError
from django.db import models
from django.db.models import BigIntegerField, F, Func, OuterRef, Subquery
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Cast

from courses.fields import CounterField


class CourseQuerySet(models.QuerySet):
    """Courses. The counts that it annotates are the database's, at the time of the query."""

    def with_true_count(self) -> Self:
        """Annotate `true_count`: the number of rows that count, now."""
        return self.annotate(true_count=true_count())

    def with_drift(self) -> Self:
        """Annotate `true_count`, and `drift`: stored − true. 0 is right."""
        return self.with_true_count().annotate(drift=drift(F("true_count")))

    def drifted(self) -> Self:
        """Keep the courses whose stored count is wrong."""
        return self.with_drift().exclude(drift=0)

    def bulk_update(self, objs: Iterable[Any], fields: Iterable[str], *args: Any, **kw: Any) -> int:
        fields = list(fields)
        self._refuse_counters(fields)
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
        update_fields = update_fields and list(update_fields)
        self._refuse_counters(update_fields or ())
        return super().bulk_create(
            objs, batch_size, ignore_conflicts, update_conflicts, update_fields, unique_fields
        )

    def _refuse_counters(self, fields: Iterable[str]) -> None:
        for name in fields:
            if isinstance(self.model._meta.get_field(name), CounterField):
                raise FieldError(
                    f"{name} can't be written from instances, which may be stale: leave it out "
                    "of the fields. `manage.py rebuild_counts` repairs it."
                )


def true_count() -> Subquery:
    """The number of rows that count of the course in the outer query."""
    rows: Any = apps.get_model("courses.Course")._meta.get_field("enrollments").related_model
    # COUNT without GROUP BY: a course without rows gets 0 rather than NULL.
    count = Func(F("pk"), function="COUNT", output_field=BigIntegerField())
    counted = rows._default_manager.counted().filter(course=OuterRef("pk")).order_by()
    return Subquery(counted.annotate(n=count).values("n"), output_field=BigIntegerField())


def drift(true: Any = None) -> CombinedExpression:
    """The stored count of the course in the outer query − the true one."""
    # Unsigned columns can't be subtracted from below 0 on MySQL: cast first.
    return Cast("total_enrollments", BigIntegerField()) - (true or true_count())
