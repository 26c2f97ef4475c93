"""Transactions that are retried after deadlocks, lock timeouts and lost connections."""

import logging
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import tenacity
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction
from django.db.models import QuerySet

from courses.counts.metrics import DEADLOCKS, RETRIES

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_DEADLOCK = 1213  # also: a Galera node whose changes were rejected at COMMIT
# Error codes of MySQL and MariaDB for a transaction that other transactions made fail.
_CONFLICTS = {
    1020,  # record has changed since last read
    1040,  # too many connections
    1203,  # too many connections of this user
    1205,  # lock wait timeout
    _DEADLOCK,
}
_LOST_CONNECTIONS = {
    1047,  # the Galera node is not ready
    1053,  # server shutdown in progress
    1927,  # connection killed
    2002,  # cannot connect through the socket
    2003,  # cannot connect to the host
    2006,  # server has gone away
    2013,  # lost connection during query
    2055,  # lost connection at a system call
}
# MariaDB's client reports both a lost encrypted connection and a failed handshake as this error.
_TLS_ERROR = 2026
# Parts of messages about a certificate or server that stays unacceptable until it is replaced.
_PERMANENT_TLS_ERRORS = ("certificate", "SSL is required")
# Many short attempts: writers of one course on several nodes of a cluster conflict often, and a
# node or server that dies is replaced within seconds.
MAX_ATTEMPTS = 60
RETRY_TIME_LIMIT = 20.0  # seconds

_READ_COMMITTED = "read committed"


def is_transient(error: BaseException) -> bool:
    """Return whether the same transaction may succeed if it is repeated."""
    return (
        _is_lost_connection(error)
        or _error_code(error) in _CONFLICTS
        or (isinstance(error, OperationalError) and "is locked" in str(error))  # SQLite
    )


def reads_latest_rows() -> bool:
    """Return whether a plain read in the current transaction sees everything committed so far.

    Under REPEATABLE READ only a locking read does, once the transaction has read something.
    """
    return (
        connection.vendor != "mysql"
        or connection.isolation_level == _READ_COMMITTED
        or getattr(connection, "is_read_committed_now", False)
    )


def with_latest_rows(queryset: QuerySet) -> QuerySet:
    """Return a queryset that reads the latest committed rows.

    The rows need no locks of their own if the lock of their course is held. They are locked only
    where the isolation level offers no other way to see the latest rows.
    """
    return queryset if reads_latest_rows() else queryset.select_for_update()


def retry_transaction(
    *, is_own_result: Callable[[Any, Any], bool] | None = None, idempotent: bool = True
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Run the decorated function in one transaction, and retry it after transient errors.

    The transaction runs on the default database under READ COMMITTED. It is repeated up to
    MAX_ATTEMPTS times within RETRY_TIME_LIMIT seconds; then the last error is raised. Only the
    outermost transaction can be repeated: inside a caller's `atomic()` the error is raised at
    once, and whoever began the transaction must repeat it. Errors of `on_commit()` callbacks
    never cause a retry.

    If the connection is lost during COMMIT, nobody knows whether the transaction was committed. A
    function that is not `idempotent` is not repeated then. An idempotent function is repeated.
    `is_own_result(earlier, latest)` then returns whether the unconfirmed attempt with the result
    `earlier` was committed; `latest` is the result of the repetition. If it was, the
    `on_commit()` callbacks of the unconfirmed attempt run, and `earlier` is returned.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            _close_dead_connection()
            if _in_outer_transaction():
                with transaction.atomic():
                    return function(*args, **kwargs)
            call = _Call(partial(function, *args, **kwargs), idempotent)
            try:
                result = call.attempt()
            except Exception as error:
                result = call.retry_after(error)
                for unconfirmed in reversed(call.unconfirmed_results):
                    if is_own_result and is_own_result(unconfirmed.result, result):
                        unconfirmed.run_callbacks()
                        return unconfirmed.result
            return result

        return wrapper

    return decorate


class _Unconfirmed(NamedTuple, Generic[T]):
    """An attempt whose COMMIT was not answered."""

    result: T
    callbacks: list[Callable[[], object]]

    def run_callbacks(self) -> None:
        for callback in self.callbacks:
            callback()


class _Call(Generic[T]):
    """The attempts at one call of a decorated function."""

    def __init__(self, function: Callable[[], T], idempotent: bool) -> None:
        self._function = function
        self._idempotent = idempotent
        self._started = time.monotonic()
        self._committed = False
        self.unconfirmed_results: list[_Unconfirmed[T]] = []

    def attempt(self) -> T:
        connection.is_read_committed_now = _set_read_committed()
        finished: list[_Unconfirmed[T]] = []
        try:
            with transaction.atomic():
                transaction.on_commit(self._record_commit)
                result = self._function()
                finished.append(_Unconfirmed(result, self._pending_callbacks()))
        except Exception as error:
            if _is_lost_connection(error) and not self._committed:
                self.unconfirmed_results += finished
            if _error_code(error) == _DEADLOCK:
                DEADLOCKS.inc()
            raise
        finally:
            connection.is_read_committed_now = False
        return result

    def retry_after(self, first_error: Exception) -> T:
        """Repeat the transaction while that can help, or raise the last error."""
        # Tenacity is not used for the first attempt, which is nearly always the only one: it
        # would add a tenth to the time of an enrollment.
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._can_retry_after),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=0.5),
            stop=tenacity.stop_after_attempt(MAX_ATTEMPTS)
            | tenacity.stop_after_delay(self._started + RETRY_TIME_LIMIT - time.monotonic()),
            before_sleep=_prepare_next_attempt,
            reraise=True,
        ):
            with attempt:
                if attempt.retry_state.attempt_number == 1:
                    raise first_error
                result = self.attempt()
        return result

    def _can_retry_after(self, error: BaseException) -> bool:
        return (
            is_transient(error)
            and not self._committed
            and (self._idempotent or not self.unconfirmed_results)
        )

    def _record_commit(self) -> None:
        # Runs before all other on_commit() callbacks, which may begin transactions of their own.
        self._committed = True
        connection.is_read_committed_now = False

    def _pending_callbacks(self) -> list[Callable[[], object]]:
        # Private API, checked on Django 5.2: a list of (savepoint ids, callback, robust).
        callbacks = [callback for _, callback, _ in connection.run_on_commit]
        return [callback for callback in callbacks if callback != self._record_commit]


def _is_lost_connection(error: BaseException) -> bool:
    code = _error_code(error)
    if code == _TLS_ERROR:
        return not any(text in str(error) for text in _PERMANENT_TLS_ERRORS)
    return isinstance(error, InterfaceError) or code in _LOST_CONNECTIONS


def _error_code(error: BaseException) -> object:
    return error.args[0] if isinstance(error, DatabaseError) and error.args else None


def _in_outer_transaction() -> bool:
    """Return whether a transaction of the caller is open."""
    autocommit = (
        connection.autocommit if connection.connection else connection.settings_dict["AUTOCOMMIT"]
    )
    return connection.in_atomic_block or not autocommit


def _close_dead_connection() -> None:
    if (
        connection.errors_occurred
        and connection.connection is not None
        and not connection.in_atomic_block
        and not connection.is_usable()
    ):
        connection.close()


def _set_read_committed() -> bool:
    """Make the next transaction READ COMMITTED if the settings use another isolation level.

    Under REPEATABLE READ, reading a missing row with a lock locks a gap, which causes deadlocks.
    """
    if connection.vendor != "mysql":
        return False
    connection.ensure_connection()
    if connection.isolation_level == _READ_COMMITTED:
        return False
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    return True


def _prepare_next_attempt(state: tenacity.RetryCallState) -> None:
    RETRIES.inc()
    error = state.outcome and state.outcome.exception()
    logger.info("Attempt %d failed, retrying: %s", state.attempt_number, error)
    connection.close_if_unusable_or_obsolete()
