"""A Redis cache that fails open, so that the site works without Redis."""

import hmac
import logging
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from django.core.cache.backends.redis import RedisCache, RedisSerializer
from django.utils.crypto import salted_hmac
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

LOG_INTERVAL = 60.0  # seconds between two warnings
# Raised while reading an entry that has no valid signature, or whose class does not exist here.
_UNREADABLE = (
    pickle.PickleError, EOFError, ImportError, AttributeError, LookupError, TypeError, ValueError,
)  # fmt: skip
_SIGNATURE_BYTES = 32  # SHA-256


@dataclass
class _CircuitBreaker:
    """The state of one Redis server, shared by all threads of the process."""

    open_until: float = -math.inf
    logged_at: float = -math.inf


_breakers: dict[str, _CircuitBreaker] = {}


def _fail_open(method: Callable[..., Any], *, fallback: Any) -> Callable[..., Any]:
    """Return `method`, except that it returns `fallback` if Redis fails or is bypassed."""

    @wraps(method)
    def wrapper(cache: "FailOpenRedisCache", *args: Any, **kwargs: Any) -> Any:
        if time.monotonic() < cache.breaker.open_until:
            return fallback
        try:
            return method(cache, *args, **kwargs)
        except (RedisError, OSError) as error:
            cache.bypass(error)
            return fallback

    return wrapper


class SignedSerializer(RedisSerializer):
    """Sign pickles with SECRET_KEY, and load only signed ones, because loading can run any code.

    Integers are stored as they are, so that Redis can increment them.
    """

    def dumps(self, value: Any) -> Any:
        data = super().dumps(value)
        return _signature(data) + data if isinstance(data, bytes) else data

    def loads(self, data: Any) -> Any:
        """Return the value. Raises UnpicklingError if the signature is not valid."""
        signature, pickled = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
        if hmac.compare_digest(signature, _signature(pickled)):
            return pickle.loads(pickled)
        try:
            return int(data)
        except ValueError as error:
            raise pickle.UnpicklingError("The signature is not valid.") from error


def _signature(data: bytes) -> bytes:
    return salted_hmac(__name__, data, algorithm="sha256").digest()


class FailOpenRedisCache(RedisCache):
    """Django's RedisCache, except that every read misses and every write is lost if Redis fails.

    After a failure, a circuit breaker skips Redis for `cooldown` seconds. A Redis that hangs
    therefore costs one socket timeout per process and cooldown, not one per request.

    An entry can be stale after a lost write, so give every entry a timeout. `incr()` and `decr()`
    still raise the errors of Redis.
    """

    cooldown = 5.0  # seconds

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        # Django creates one cache object per thread. They share the breaker of the process.
        self.breaker = _breakers.setdefault(server, _CircuitBreaker())

    add = _fail_open(RedisCache.add, fallback=False)
    clear = _fail_open(RedisCache.clear, fallback=False)
    delete = _fail_open(RedisCache.delete, fallback=False)
    delete_many = _fail_open(RedisCache.delete_many, fallback=None)
    has_key = _fail_open(RedisCache.has_key, fallback=False)
    ping = _fail_open(lambda cache: cache._cache.get_client().ping(), fallback=False)
    set = _fail_open(RedisCache.set, fallback=None)
    touch = _fail_open(RedisCache.touch, fallback=False)

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        try:
            return _fail_open(RedisCache.get, fallback=default)(self, key, default, version)
        except _UNREADABLE:
            return default

    def get_many(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return _fail_open(RedisCache.get_many, fallback={})(self, *args, **kwargs)
        except _UNREADABLE:
            return {}

    def set_many(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> list[str]:
        failed_keys = list(data)
        return _fail_open(RedisCache.set_many, fallback=failed_keys)(self, data, *args, **kwargs)

    def bypass(self, error: Exception) -> None:
        """Open the circuit for `cooldown` seconds, and log the error once per LOG_INTERVAL."""
        now = time.monotonic()
        self.breaker.open_until = now + self.cooldown
        if now - self.breaker.logged_at > LOG_INTERVAL:
            self.breaker.logged_at = now
            logger.warning(
                "Redis is unavailable (%s). Bypassing the cache and retrying every %g seconds.",
                error,
                self.cooldown,
            )
