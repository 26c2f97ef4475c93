"""django-cachalot with one of its holes mended."""

from functools import wraps

from cachalot.apps import CachalotConfig
from cachalot.cache import cachalot_caches
from django.db import DEFAULT_DB_ALIAS
from django.db.transaction import Atomic


class FencedCachalotConfig(CachalotConfig):
    def ready(self) -> None:
        super().ready()
        # Cachalot notes a transaction before it begins. Where beginning fails (the
        # database is away) the note stays, and the thread reads a private, ever older
        # copy of the cache from then on (cachalot issue 278).
        enter = Atomic.__enter__

        @wraps(enter.__wrapped__)  # cachalot unpatches to what stands here
        def enter_or_forget(self: Atomic) -> None:
            notes = cachalot_caches.atomic_caches[self.using or DEFAULT_DB_ALIAS]
            depth = len(notes)
            try:
                enter(self)
            except BaseException:
                del notes[depth:]
                raise

        Atomic.__enter__ = enter_or_forget
