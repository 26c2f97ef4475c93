"""Redis refused, hung, full, flushed and back again: nobody but the log may notice."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.core.cache import caches
from django.test import Client
from redis.exceptions import DataError, ResponseError

from courses.models import Course, Subject
from enrollments.services import enroll, unenroll
from project.cache import FailOpenRedisCache, _breakers
from tests.conftest import drifts
from tests.support.servers import Redis, redis

pytestmark = pytest.mark.mariadb
# A connection and an answer, 0.25 seconds each.
TIMEOUTS = 0.5


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with redis(options=["--maxmemory", "4mb", "--maxmemory-policy", "noeviction"]) as server:
        yield server


@pytest.fixture
def cache(server: Redis, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The site's cache, on a Redis of its own that may be broken; left alone for 0.2 seconds."""
    server.start()
    monkeypatch.setattr(FailOpenRedisCache, "rest", 0.2)
    default = settings.CACHES["default"]
    settings.CACHES = {"default": default | {"LOCATION": server.url}}
    _breakers.clear()
    cache = caches["default"]
    cache.clear()
    yield cache
    server.signal(signal.SIGCONT)
    cache.close()


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cachalot's entries live for a second."""
    from cachalot.settings import cachalot_settings

    monkeypatch.setattr(cachalot_settings, "CACHALOT_TIMEOUT", 1)


def refuse(server: Redis) -> None:
    server.kill()


def hang(server: Redis) -> None:
    server.signal(signal.SIGSTOP)


OPERATIONS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "get": (lambda cache: cache.get("a", "otherwise"), "otherwise"),
    "set": (lambda cache: cache.set("a", 1), None),
    "add": (lambda cache: cache.add("a", 1), False),
    "touch": (lambda cache: cache.touch("a"), False),
    "delete": (lambda cache: cache.delete("a"), False),
    "get_many": (lambda cache: cache.get_many(["a", "b"]), {}),
    "set_many": (lambda cache: cache.set_many({"a": 1, "b": 2}), ["a", "b"]),
    "delete_many": (lambda cache: cache.delete_many(["a"]), None),
    "has_key": (lambda cache: cache.has_key("a"), False),
    "in": (lambda cache: "a" in cache, False),
    "clear": (lambda cache: cache.clear(), False),
    "get_or_set": (lambda cache: cache.get_or_set("a", 5), 5),
}


@pytest.mark.parametrize("fault", [refuse, hang])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_fails_open(
    cache: Any, server: Redis, fault: Callable[[Redis], None], operation: str
) -> None:
    cache.set("a", 1)
    fault(server)
    call, otherwise = OPERATIONS[operation]
    started = time.monotonic()
    assert call(cache) == otherwise
    assert time.monotonic() - started < TIMEOUTS + 0.3


def test_a_number_that_can_not_be_counted_up_is_said(cache: Any, server: Redis) -> None:
    cache.set("n", 1)
    assert cache.incr("n") == 2
    refuse(server)
    with pytest.raises(ValueError, match="'n' not found"):
        cache.incr("n")


def test_while_redis_is_well_it_is_a_cache(cache: Any) -> None:
    cache.set_many({"a": 1, "b": 2})
    assert cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
    assert cache.add("a", 5) is False
    assert cache.touch("a") is True
    assert cache.delete("a") is True
    assert cache.get("a") is None


def test_a_failure_is_waited_for_once_and_logged_once(
    cache: Any, server: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FailOpenRedisCache, "rest", 60)
    hang(server)
    started = time.monotonic()
    for _ in range(1_000):
        cache.get("a")
    assert time.monotonic() - started < TIMEOUTS + 0.3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "going on without the cache" in caplog.text


def test_it_is_used_again_when_it_is_back(
    cache: Any, server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(server)
    cache.set("a", 1)
    server.start()
    assert cache.get("a", "resting") == "resting"
    time.sleep(0.25)
    with caplog.at_level("INFO", "project.cache"):
        cache.set("a", 2)
    assert cache.get("a") == 2
    assert "Redis can be used again." in caplog.text


def test_a_full_redis_loses_writes_and_nothing_else(
    cache: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(200):
        cache.set(f"big-{number}", "x" * 100_000)
        time.sleep(0.005)  # so that it is tried again now and then
    assert cache.get("big-199") is None
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_what_can_not_be_read_is_not_there(cache: Any, server: Redis) -> None:
    raw = cache._cache.get_client()
    raw.set(":1:cut", b"\x80\x05\x95\x10")
    raw.set(":1:gone", b"cno_such_module\nThing\n.")
    for key in ("cut", "gone"):
        assert cache.get(key, "otherwise") == "otherwise"
        assert cache.get_many([key]) == {}
    assert cache.set("a", 1) is None
    assert cache.get("a") == 1


def test_a_callers_mistake_is_said_and_costs_nobody_the_cache(cache: Any) -> None:
    cache.set("text", "x")
    with pytest.raises(ResponseError, match="not an integer"):
        cache.incr("text")
    assert cache.get("text") == "x"


def test_what_can_not_be_sent_is_said_and_costs_nobody_the_cache(cache: Any) -> None:
    cache.set("n", 1)
    with pytest.raises(DataError, match="must be str, int, float"):
        cache.incr("n", None)
    assert cache.get("n") == 1


def test_threads_that_find_redis_back_at_once_say_so_once(
    cache: Any, server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    breaker = cache._breaker
    breaker.failed(OSError("refused"), rest=0)
    threads = [threading.Thread(target=breaker.worked) for _ in range(8)]
    with caplog.at_level("INFO", "project.cache"):
        with breaker._lock:  # all of them have seen by now that it is to be said
            for thread in threads:
                thread.start()
            time.sleep(0.1)
        for thread in threads:
            thread.join()
    assert caplog.text.count("Redis can be used again.") == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fault", [refuse, hang])
def test_services_and_pages_do_without_redis(
    cache: Any,
    server: Redis,
    client: Client,
    staff_client: Client,
    student: Any,
    fault: Callable[[Redis], None],
) -> None:
    subject = Subject.objects.create(name="Art", slug="art")
    course = Course.objects.create(title="Drawing", slug="drawing", subject=subject)
    fault(server)
    assert enroll(student=student, course=course)[1] is True
    subject.name = "Arts"
    subject.save()
    assert Subject.objects.get().name == "Arts"
    page = client.get("/")
    (shown,) = page.context["page"].courses
    assert (shown.subject.name, shown.total_enrollments) == ("Arts", 1)
    assert staff_client.get("/admin/courses/course/").status_code == 200
    assert unenroll(student=student, course=course) is True
    assert drifts() == {}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fault", [refuse, hang])
def test_what_redis_missed_is_right_again_within_the_lifetime(
    cache: Any, server: Redis, short_lived: None, fault: Callable[[Redis], None]
) -> None:
    """The invalidation is lost, and a Redis that hung comes back with what was there before."""
    Subject.objects.create(name="Art", slug="art")
    assert Subject.objects.get().name == "Art"
    fault(server)
    Subject.objects.update(name="Arts")
    server.signal(signal.SIGCONT)
    server.start()
    time.sleep(1.1)
    assert Subject.objects.get().name == "Arts"


@pytest.mark.django_db(transaction=True)
def test_a_redis_that_comes_back_with_old_data_is_believed_for_the_lifetime_at_most(
    cache: Any, server: Redis, short_lived: None, student: Any
) -> None:
    subject = Subject.objects.create(name="Art", slug="art")
    course = Course.objects.create(title="Drawing", slug="drawing", subject=subject)
    assert Subject.objects.get().name == "Art"
    client = cache._cache.get_client()
    old = {key: (client.dump(key), client.pttl(key)) for key in client.scan_iter()}
    Subject.objects.update(name="Arts")
    enroll(student=student, course=course)
    client.flushall()
    for key, (value, lifetime) in old.items():
        client.restore(key, lifetime, value)
    # Counts don't come from there.
    assert Course.objects.get().total_enrollments == 1
    assert drifts() == {}
    time.sleep(1.1)
    assert Subject.objects.get().name == "Arts"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("lose", [lambda s, c: c.clear(), lambda s, c: (s.kill(), s.start())])
def test_a_redis_that_was_emptied_is_filled_again(
    cache: Any, server: Redis, lose: Callable[[Redis, Any], Any]
) -> None:
    Subject.objects.create(name="Art", slug="art")
    assert Subject.objects.get().name == "Art"
    lose(server, cache)
    assert Subject.objects.get().name == "Art"
    Subject.objects.update(name="Arts")
    assert Subject.objects.get().name == "Arts"


@pytest.mark.django_db(transaction=True)
def test_a_full_redis_fails_no_commit(cache: Any, student: Any, short_lived: None) -> None:
    Subject.objects.create(name="Art", slug="art")
    course = Course.objects.create(title="Drawing", slug="drawing")
    assert Subject.objects.get().name == "Art"
    client = cache._cache.get_client()
    with suppress(ResponseError):
        for number in range(1_000):
            client.set(f"big-{number}", "x" * 100_000)
    Subject.objects.update(name="Arts")
    assert enroll(student=student, course=course)[1] is True
    time.sleep(1.1)
    assert Subject.objects.get().name == "Arts"
