from collections.abc import Iterator
from contextlib import contextmanager

from computedfields.apps import ComputedfieldsConfig
from django.db.models.signals import post_save, pre_save


class ComputedFieldsConfig(ComputedfieldsConfig):
    """Listens only while it is measured: it would hear, and slow, every model's `save()`."""

    def ready(self) -> None:
        super().ready()
        pre_save.disconnect(dispatch_uid="COMP_FIELD_PRESAVE")
        post_save.disconnect(dispatch_uid="COMP_FIELD")


@contextmanager
def computed_fields() -> Iterator[None]:
    from computedfields.handlers import get_old_handler, postsave_handler

    pre_save.connect(get_old_handler)
    post_save.connect(postsave_handler)
    try:
        yield
    finally:
        pre_save.disconnect(get_old_handler)
        post_save.disconnect(postsave_handler)
