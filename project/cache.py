"""A Redis cache that the site can lose at any moment: it fails open."""

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

# What reading an entry may raise that was written by another version, or cut off.
_UNREADABLE = (
    pickle.PickleError, EOFError, ImportError, AttributeError, LookupError, TypeError, ValueError,
)  # fmt: skip
# Answers of a Redis that is well, to a caller that isn't.
_MISUSES = ("WRONGTYPE", "value is not an integer", "value is not a valid", "wrong number of")
SAY_AGAIN_AFTER = 60.0  # seconds


class _Breaker:
    """Remembers, for the whole process, until when Redis is left alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left_alone_until = -math.inf
        self._said_at = -math.inf
        self._announced = False

    @property
    def is_open(self) -> bool:
        return time.monotonic() < self._left_alone_until

    def failed(self, error: Exception, *, rest: float) -> None:
        with self._lock:
            now = time.monotonic()
            self._left_alone_until = now + rest
            say = now - self._said_at > SAY_AGAIN_AFTER
            if say:
                self._said_at, self._announced = now, True
        if say:
            logger.warning(
                "Redis can't be used (%s): going on without the cache, "
                "trying again every %g seconds.",
                error,
                rest,
            )

    def worked(self) -> None:
        if not self._announced:
            return
        with self._lock:
            say, self._announced = self._announced, False
        if say:
            logger.info("Redis can be used again.")


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
        except DataError:
            raise
        except (RedisError, OSError) as error:
            if str(error).startswith(_MISUSES):
                raise
            self._breaker.failed(error, rest=self.rest)
            return otherwise
        self._breaker.worked()
        return answer

    def add(self, *args: Any, **kwargs: Any) -> bool:
        return self._try(super().add, *args, otherwise=False, **kwargs)

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        try:
            return self._try(super().get, key, default, version, otherwise=default)
        except _UNREADABLE:
            return default

    def set(self, *args: Any, **kwargs: Any) -> None:
        self._try(super().set, *args, otherwise=None, **kwargs)

    def touch(self, *args: Any, **kwargs: Any) -> bool:
        return self._try(super().touch, *args, otherwise=False, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> bool:
        return self._try(super().delete, *args, otherwise=False, **kwargs)

    def get_many(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return self._try(super().get_many, *args, otherwise={}, **kwargs)
        except _UNREADABLE:
            return {}

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

    def clear(self) -> bool:  # type: ignore[override]  # as Redis does, unlike the stubs
        return self._try(super().clear, otherwise=False)  # type: ignore[arg-type]

    def ping(self) -> bool:
        """Whether Redis answers. One that is left alone for now does not."""
        return self._try(lambda: self._cache.get_client(None).ping(), otherwise=False)
