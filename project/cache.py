"""A Redis cache that the site can lose at any moment: it fails open."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from django.core.cache.backends.redis import RedisCache
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Breaker:
    """Remembers, for the whole process, until when Redis is left alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed_again_at = 0.0
        self._failing = False

    @property
    def is_open(self) -> bool:
        return time.monotonic() < self._closed_again_at

    def failed(self, error: Exception, *, rest: float) -> None:
        with self._lock:
            first, self._failing = not self._failing, True
            self._closed_again_at = time.monotonic() + rest
        if first:
            logger.warning(
                "Redis does not answer (%s): going on without the cache, "
                "trying again every %g seconds.",
                error,
                rest,
            )

    def worked(self) -> None:
        if not self._failing:
            return
        with self._lock:
            last, self._failing = self._failing, False
        if last:
            logger.info("Redis answers again.")


_breakers: dict[str, _Breaker] = {}


class FailOpenRedisCache(RedisCache):
    """Django's RedisCache; where Redis fails, every read misses and every write is lost.

    After a failure Redis is left alone for `rest` seconds, so that a Redis that hangs
    costs one socket timeout a process each time, not one a request. What an entry
    may say after a lost write is bounded by its lifetime: give every entry one.
    """

    rest = 5.0  # seconds

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        # Django makes one cache object a thread; the failure is the process's.
        self._breaker = _breakers.setdefault(server, _Breaker())

    def _try(self, operation: Callable[..., T], *args: Any, otherwise: T, **kwargs: Any) -> T:
        if self._breaker.is_open:
            return otherwise
        try:
            answer = operation(*args, **kwargs)
        except (RedisError, OSError) as error:
            self._breaker.failed(error, rest=self.rest)
            return otherwise
        self._breaker.worked()
        return answer

    def add(self, *args: Any, **kwargs: Any) -> bool:
        return self._try(super().add, *args, otherwise=False, **kwargs)

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        return self._try(super().get, key, default, version, otherwise=default)

    def set(self, *args: Any, **kwargs: Any) -> None:
        self._try(super().set, *args, otherwise=None, **kwargs)

    def touch(self, *args: Any, **kwargs: Any) -> bool:
        return self._try(super().touch, *args, otherwise=False, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> bool:
        return self._try(super().delete, *args, otherwise=False, **kwargs)

    def get_many(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._try(super().get_many, *args, otherwise={}, **kwargs)

    def has_key(self, *args: Any, **kwargs: Any) -> bool:
        return self._try(super().has_key, *args, otherwise=False, **kwargs)

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        value = self._try(super().incr, key, delta, version, otherwise=None)
        if value is None:
            raise ValueError(f"Key {key!r} not found")
        return value

    def set_many(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> list[str]:
        return self._try(super().set_many, data, *args, otherwise=list(data), **kwargs)

    def delete_many(self, *args: Any, **kwargs: Any) -> None:
        self._try(super().delete_many, *args, otherwise=None, **kwargs)

    def clear(self) -> bool:
        return self._try(super().clear, otherwise=False)
