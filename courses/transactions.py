"""One transaction, tried again when the database asks for it."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import tenacity
from django.db import DatabaseError, InterfaceError, connection, transaction

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# MySQL's and MariaDB's numbers for "this failed because of others: try again".
_CONFLICTS = {
    1020,  # record has changed since last read
    1205,  # lock wait timeout
    1213,  # deadlock, or a Galera node lost the certification
}
_LOST_CONNECTIONS = {
    1047,  # the Galera node is not ready
    1053,  # server shutdown in progress
    1927,  # connection killed
    2002,  # can't connect through the socket
    2003,  # can't connect to the host
    2006,  # server has gone away
    2013,  # lost connection during query
    2055,  # lost connection at a system call
}
ATTEMPTS = 8
GIVE_UP_AFTER = 30.0  # seconds


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may well succeed when it is tried again."""
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, DatabaseError) or not error.args:
        return False
    code = error.args[0]
    return code in _CONFLICTS | _LOST_CONNECTIONS or "is locked" in str(code)


def _is_somebody_elses() -> bool:
    """Whether a transaction is going on that began before us."""
    autocommit = (
        connection.autocommit if connection.connection else connection.settings_dict["AUTOCOMMIT"]
    )
    return connection.in_atomic_block or not autocommit


def _prepare_next_attempt(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception()
    logger.info("Attempt %d: %s; trying again.", state.attempt_number, error)
    connection.close_if_unusable_or_obsolete()


def in_transaction(function: Callable[P, T]) -> Callable[P, T]:
    """Run `function` in one transaction, whole or not at all.

    Conflicts and lost connections are retried up to ATTEMPTS times within GIVE_UP_AFTER
    seconds, then the last error rises. Only the outermost transaction can be tried
    again, so inside a caller's `atomic()` such an error rises at once, to be retried by
    whoever began the transaction. The answer to COMMIT may have been lost with the
    connection: `function` must be idempotent.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if _is_somebody_elses():
            with transaction.atomic():
                return function(*args, **kwargs)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=1),
            stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(GIVE_UP_AFTER),
            before_sleep=_prepare_next_attempt,
            reraise=True,
        )
        return retrying(transaction.atomic(function), *args, **kwargs)

    return wrapper
