"""A counter column that saving an instance never changes."""

from typing import Any

from django.db import models
from django.db.models import F


class CounterField(models.PositiveIntegerField):
    """A denormalized count of related rows.

    A new instance starts at 0. After that, `save()`, `update_or_create()` and model forms write
    the column back as the database has it (`F(name)`), so a stale instance cannot overwrite the
    counter. Change it with `QuerySet.update(total=F("total") + 1)`, in one transaction with the
    rows that it counts. Fixtures are loaded as they are written.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"default": 0, "db_default": 0, "editable": False}
        super().__init__(*args, **kwargs)

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        if not add:
            return F(self.attname)
        setattr(model_instance, self.attname, 0)
        return 0
