"""django-cachalot, with a fix for transactions that fail to begin."""

from functools import wraps

from cachalot.apps import CachalotConfig
from cachalot.cache import cachalot_caches
from django.db import DEFAULT_DB_ALIAS
from django.db.transaction import Atomic


class PatchedCachalotConfig(CachalotConfig):
    """Discard cachalot's transaction cache if the transaction fails to begin.

    Cachalot gives each transaction a private cache before the transaction begins. If the
    database is unavailable, `Atomic.__enter__()` raises and the private cache is never removed.
    The thread then reads ever older results from it (cachalot issue 278).
    Checked on cachalot 2.9.1 and Django 5.2.
    """

    def ready(self) -> None:
        super().ready()
        enter = Atomic.__enter__

        # Cachalot restores `__wrapped__` when it removes its patches, so keep Django's method.
        @wraps(enter.__wrapped__)
        def enter_or_discard(self: Atomic) -> None:
            transaction_caches = cachalot_caches.atomic_caches[self.using or DEFAULT_DB_ALIAS]
            depth = len(transaction_caches)
            try:
                enter(self)
            except BaseException:
                del transaction_caches[depth:]
                raise

        Atomic.__enter__ = enter_or_discard
