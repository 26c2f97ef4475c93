"""A Redis cache that fails open, so that the site works without Redis."""

import logging
import math
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from django.core.cache.backends.redis import RedisCache
from redis.exceptions import DataError, RedisError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Raised while reading an entry that is truncated or was written by another version of the code.
_UNREADABLE = (
    pickle.PickleError, EOFError, ImportError, AttributeError, LookupError, TypeError, ValueError,
)  # fmt: skip
# Redis reports these for a caller's mistake. They do not mean that Redis failed.
_CALLER_ERRORS = ("WRONGTYPE", "value is not an integer", "value is not a valid", "wrong number of")
LOG_INTERVAL = 60.0  # seconds between two warnings


class FailOpenRedisCache(RedisCache):
    """Django's RedisCache, except that every read misses and every write is lost if Redis fails.

    After a failure, a circuit breaker skips Redis for `cooldown` seconds. A Redis that hangs
    therefore costs one socket timeout per process and cooldown, not one per request.

    An entry can be stale after a lost write, so give every entry a timeout.
    """

    cooldown = 5.0  # seconds

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        # Django creates one cache object per thread. They share the breaker of the process.
        self._breaker = _breakers.setdefault(server, _CircuitBreaker())

    def add(self, *args: Any, **kwargs: Any) -> bool:
        return self._call(super().add, *args, fallback=False, **kwargs)

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        try:
            return self._call(super().get, key, default, version, fallback=default)
        except _UNREADABLE:
            return default

    def set(self, *args: Any, **kwargs: Any) -> None:
        self._call(super().set, *args, fallback=None, **kwargs)

    def touch(self, *args: Any, **kwargs: Any) -> bool:
        return self._call(super().touch, *args, fallback=False, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> bool:
        return self._call(super().delete, *args, fallback=False, **kwargs)

    def get_many(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return self._call(super().get_many, *args, fallback={}, **kwargs)
        except _UNREADABLE:
            return {}

    def has_key(self, *args: Any, **kwargs: Any) -> bool:
        return self._call(super().has_key, *args, fallback=False, **kwargs)

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        value = self._call(super().incr, key, delta, version, fallback=None)
        if value is None:
            raise ValueError(f"Key {key!r} not found")
        return value

    def set_many(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> list[str]:
        return self._call(super().set_many, data, *args, fallback=list(data), **kwargs)

    def delete_many(self, *args: Any, **kwargs: Any) -> None:
        self._call(super().delete_many, *args, fallback=None, **kwargs)

    def clear(self) -> bool:  # type: ignore[override]  # the stubs say None
        return self._call(super().clear, fallback=False)  # type: ignore[arg-type]

    def ping(self) -> bool:
        """Return whether Redis responds. Return False while the circuit is open."""
        return self._call(lambda: self._cache.get_client(None).ping(), fallback=False)

    def _call(self, operation: Callable[..., T], *args: Any, fallback: T, **kwargs: Any) -> T:
        """Call `operation`, or return `fallback` if Redis fails or the circuit is open."""
        if self._breaker.is_open:
            return fallback
        try:
            result = operation(*args, **kwargs)
        except DataError:  # the caller's value cannot be sent
            raise
        except (RedisError, OSError) as error:
            if str(error).startswith(_CALLER_ERRORS):
                raise
            self._breaker.record_failure(error, cooldown=self.cooldown)
            return fallback
        self._breaker.record_success()
        return result


class _CircuitBreaker:
    """The state of one Redis server, shared by all threads of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_until = -math.inf
        self._logged_at = -math.inf
        self._is_failure_logged = False

    @property
    def is_open(self) -> bool:
        return time.monotonic() < self._open_until

    def record_failure(self, error: Exception, *, cooldown: float) -> None:
        with self._lock:
            now = time.monotonic()
            self._open_until = now + cooldown
            should_log = now - self._logged_at > LOG_INTERVAL
            if should_log:
                self._logged_at, self._is_failure_logged = now, True
        if should_log:
            logger.warning(
                "Redis is unavailable (%s). Continuing without the cache and retrying every "
                "%g seconds.",
                error,
                cooldown,
            )

    def record_success(self) -> None:
        if not self._is_failure_logged:
            return
        with self._lock:
            # Another thread may have logged it since.
            should_log, self._is_failure_logged = self._is_failure_logged, False
        if should_log:
            logger.info("Redis is available again.")


_breakers: dict[str, _CircuitBreaker] = {}
