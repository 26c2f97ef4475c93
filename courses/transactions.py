"""One transaction, tried again when the database asks for it."""

import logging
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Generic, ParamSpec, TypeVar

import tenacity
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction
from django.db.models import QuerySet

from courses.counts.metrics import DEADLOCKS, RETRIES

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_DEADLOCK = 1213  # or a Galera node that lost the certification
# MySQL's and MariaDB's numbers for "this failed because of others: try again".
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
    2002,  # can't connect through the socket
    2003,  # can't connect to the host
    2006,  # server has gone away
    2013,  # lost connection during query
    2055,  # lost connection at a system call
}
# Many short ones: on a cluster, writers of one course on several nodes conflict often, and a
# node or server that died is replaced within seconds.
ATTEMPTS = 60
GIVE_UP_AFTER = 20.0  # seconds

_READ_COMMITTED = "read committed"


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may well succeed when it is tried again."""
    return (
        _is_lost_connection(error)
        or _code(error) in _CONFLICTS
        or (isinstance(error, OperationalError) and "is locked" in str(error))  # SQLite
    )


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, InterfaceError) or _code(error) in _LOST_CONNECTIONS


def _code(error: BaseException) -> object:
    return error.args[0] if isinstance(error, DatabaseError) and error.args else None


def reads_latest_rows() -> bool:
    """Whether a plain read in this transaction sees all that is committed by now.

    If not, because it is REPEATABLE READ and has read before, only a locking read does.
    """
    return (
        connection.vendor != "mysql"
        or connection.isolation_level == _READ_COMMITTED
        or getattr(connection, "made_read_committed", False)
    )


def with_latest_rows(rows: QuerySet) -> QuerySet:
    """Rows as they are now. Their course's lock keeps others away, so they need none."""
    return rows if reads_latest_rows() else rows.select_for_update()


def retry_transaction(
    *, is_own_result: Callable[[T, T], bool] | None = None, idempotent: bool = True
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Run `function` in one transaction on the default database, whole or not at all.

    Conflicts and lost connections are tried again, up to ATTEMPTS times within GIVE_UP_AFTER
    seconds; then the last error rises. Only the outermost transaction can be tried again:
    inside a caller's `atomic()` such an error rises at once, to be tried again by whoever
    began the transaction. What rises after COMMIT, from `on_commit()`, is never tried again.

    The answer to COMMIT may be lost with the connection, and nobody knows then whether it was
    done. A `function` that is not `idempotent` is not tried again after that. For another,
    `is_own_result(earlier, now)` says whether what it found now is what the unanswered attempt
    did; then the earlier result is returned.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            _forget_dead_connection()
            if _is_somebody_elses():
                with transaction.atomic():
                    return function(*args, **kwargs)
            call = _Call(partial(function, *args, **kwargs), idempotent)
            try:
                result = call.attempt()
            except Exception as error:
                result = call.repeat_after(error)
            if is_own_result and call.unanswered and is_own_result(call.unanswered[-1], result):
                return call.unanswered[-1]
            return result

        return wrapper

    return decorate


class _Call(Generic[T]):
    """What became of the attempts at one call."""

    def __init__(self, function: Callable[[], T], idempotent: bool) -> None:
        self._function = function
        self._idempotent = idempotent
        self._began = time.monotonic()
        self.committed = False
        self.unanswered: list[T] = []  # what attempts returned whose COMMIT got no answer

    def attempt(self) -> T:
        connection.made_read_committed = _make_read_committed()
        returned: list[T] = []
        try:
            with transaction.atomic():
                transaction.on_commit(self._end)
                returned.append(self._function())
        except Exception as error:
            if _is_lost_connection(error) and not self.committed:
                self.unanswered += returned
            if _code(error) == _DEADLOCK:
                DEADLOCKS.inc()
            raise
        finally:
            connection.made_read_committed = False
        return returned[0]

    def repeat_after(self, first_error: Exception) -> T:
        """Attempt it again as long as that may help, or raise the error."""
        # Not used for the first attempt, nearly always the only one: it takes a tenth of the
        # time of an enrollment.
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._may_be_repeated_after),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=0.5),
            stop=tenacity.stop_after_attempt(ATTEMPTS)
            | tenacity.stop_after_delay(self._began + GIVE_UP_AFTER - time.monotonic()),
            before_sleep=_prepare_next_attempt,
            reraise=True,
        ):
            with attempt:
                if attempt.retry_state.attempt_number == 1:
                    raise first_error
                result = self.attempt()
        return result

    def _may_be_repeated_after(self, error: BaseException) -> bool:
        return (
            is_transient(error) and not self.committed and (self._idempotent or not self.unanswered)
        )

    def _end(self) -> None:
        # The first of the hooks: those of others may begin transactions of their own.
        self.committed = True
        connection.made_read_committed = False


def _forget_dead_connection() -> None:
    if (
        connection.errors_occurred
        and connection.connection is not None
        and not connection.in_atomic_block
        and not connection.is_usable()
    ):
        connection.close()


def _make_read_committed() -> bool:
    """Make the next transaction READ COMMITTED, where the settings say otherwise.

    What isn't there is locked under REPEATABLE READ as a gap, which others need: deadlocks.
    """
    if connection.vendor != "mysql":
        return False
    connection.ensure_connection()
    if connection.isolation_level == _READ_COMMITTED:
        return False
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    return True


def _is_somebody_elses() -> bool:
    """Whether a transaction is going on that began before us."""
    autocommit = (
        connection.autocommit if connection.connection else connection.settings_dict["AUTOCOMMIT"]
    )
    return connection.in_atomic_block or not autocommit


def _prepare_next_attempt(state: tenacity.RetryCallState) -> None:
    RETRIES.inc()
    error = state.outcome and state.outcome.exception()
    logger.info("Attempt %d: %s; trying again.", state.attempt_number, error)
    connection.close_if_unusable_or_obsolete()
