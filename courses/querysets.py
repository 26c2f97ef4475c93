"""How a course's stored count is verified against its rows."""

from collections.abc import Iterable
from typing import Any, Self

from django.core.exceptions import FieldError
from django.db import models
from django.db.models import BigIntegerField, F, Func, OuterRef, Subquery
from django.db.models.functions import Cast

from courses.fields import CounterField


class CourseQuerySet(models.QuerySet):
    """Courses. The counts that it annotates are the database's, at the time of the query."""

    def with_true_count(self) -> Self:
        """Annotate `true_count`: the number of rows that count, now."""
        return self._annotate_once(true_count=self._true_count())

    def with_drift(self) -> Self:
        """Annotate `true_count`, and `drift`: stored − true. 0 is right."""
        # Unsigned columns can't be subtracted from below 0 on MySQL: cast first.
        stored = Cast("total_enrollments", BigIntegerField())
        return self.with_true_count()._annotate_once(drift=stored - F("true_count"))

    def drifted(self) -> Self:
        """Keep the courses whose stored count is wrong."""
        return self.with_drift().exclude(drift=0)

    def recount(self) -> int:
        """Set the stored counts to the true ones, and return how many rows that touched.

        Lock the courses in an earlier statement of the same transaction. Without it the
        count is taken from a snapshot that is older than the lock, and a right counter
        is made wrong as soon as somebody enrols at the same time.
        """
        return self.update(total_enrollments=self._true_count())

    def bulk_update(self, objs: Iterable[Any], fields: Iterable[str], *args: Any, **kw: Any) -> int:
        fields = list(fields)
        self._refuse_counters(fields)
        return super().bulk_update(objs, fields, *args, **kw)

    def bulk_create(self, objs: Iterable[Any], *args: Any, **kwargs: Any) -> list[Any]:
        self._refuse_counters(kwargs.get("update_fields") or ())
        return super().bulk_create(objs, *args, **kwargs)

    def _true_count(self) -> Subquery:
        rows = self.model._meta.get_field("enrollments").related_model._default_manager
        # COUNT without GROUP BY: a course without rows gets 0 rather than NULL.
        count = Func(F("pk"), function="COUNT", output_field=BigIntegerField())
        counted = rows.counted().filter(course=OuterRef("pk")).order_by()
        return Subquery(counted.annotate(n=count).values("n"), output_field=BigIntegerField())

    def _annotate_once(self, **annotation: Any) -> Self:
        (name,) = annotation
        return self if name in self.query.annotations else self.annotate(**annotation)

    def _refuse_counters(self, fields: Iterable[str]) -> None:
        for name in fields:
            if isinstance(self.model._meta.get_field(name), CounterField):
                raise FieldError(
                    f"{name} can't be written from instances, which may be stale: leave it out "
                    "of the fields. `manage.py rebuild_counts` repairs it."
                )
