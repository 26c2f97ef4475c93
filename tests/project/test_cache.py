"""The site works while Redis is down, hung, full, or flushed, and logs it."""

import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.test import Client, override_settings
from redis.exceptions import ResponseError

from courses.models import Course, Subject
from enrollments.services import enroll, unenroll
from project.cache import FailOpenRedisCache, SignedSerializer, _breakers, _signature
from tests.support.counts import drift_by_title
from tests.support.servers import Redis, redis

pytestmark = pytest.mark.mariadb
# Settings allow 0.25 seconds to connect and 0.25 seconds to respond.
TIMEOUTS = 0.5  # seconds


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with redis(options=["--maxmemory", "4mb", "--maxmemory-policy", "noeviction"]) as server:
        yield server


@pytest.fixture
def cache(server: Redis, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the site's cache on a private Redis, with a cooldown of 0.2 seconds."""
    server.start()
    monkeypatch.setattr(FailOpenRedisCache, "cooldown", 0.2)
    settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": server.url}}
    _breakers.clear()
    cache = caches["default"]
    cache.clear()
    yield cache
    server.signal(signal.SIGCONT)
    cache.close()


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let cachalot's entries expire after a second."""
    from cachalot.settings import cachalot_settings

    monkeypatch.setattr(cachalot_settings, "CACHALOT_TIMEOUT", 1)


def kill(server: Redis) -> None:
    server.kill()


def hang(server: Redis) -> None:
    server.signal(signal.SIGSTOP)


OPERATIONS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "get": (lambda cache: cache.get("a", "fallback"), "fallback"),
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


@pytest.mark.parametrize("fault", [kill, hang])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_fails_open(
    cache: Any, server: Redis, fault: Callable[[Redis], None], operation: str
) -> None:
    cache.set("a", 1)
    fault(server)
    call, fallback = OPERATIONS[operation]
    start = time.monotonic()
    assert call(cache) == fallback
    assert time.monotonic() - start < TIMEOUTS + 0.3


def test_operations_work_with_redis(cache: Any) -> None:
    cache.set_many({"a": 1, "b": 2})
    assert cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
    assert cache.add("a", 5) is False
    assert cache.touch("a") is True
    assert cache.delete("a") is True
    assert cache.get("a") is None


def test_open_circuit_costs_one_timeout_and_one_warning(
    cache: Any, server: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FailOpenRedisCache, "cooldown", 60)
    hang(server)
    start = time.monotonic()
    for _ in range(1_000):
        cache.get("a")
    assert time.monotonic() - start < TIMEOUTS + 0.3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Bypassing the cache" in caplog.text


def test_cache_is_used_again_after_the_cooldown(cache: Any, server: Redis) -> None:
    kill(server)
    cache.set("a", 1)
    server.start()
    assert cache.get("a", "circuit open") == "circuit open"
    time.sleep(0.25)
    cache.set("a", 2)
    assert cache.get("a") == 2


def test_full_redis_loses_writes_and_logs_once(
    cache: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(200):
        cache.set(f"big-{number}", "x" * 100_000)
        time.sleep(0.005)  # so that the cooldown passes several times
    assert cache.get("big-199") is None
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


class Exploit:
    """A value that creates a file where its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_unsigned_and_unreadable_entries_are_misses(cache: Any, tmp_path: Path) -> None:
    exploit, signed = Exploit(tmp_path / "exploited"), SignedSerializer().dumps([1])
    unknown_class = b"cno_such_module\nThing\n."
    with override_settings(SECRET_KEY="another key"):
        forged = SignedSerializer().dumps(exploit)
    raw = cache._cache.get_client()
    for entry in (
        pickle.dumps([1]),
        pickle.dumps(exploit),
        forged,
        signed[:32] + pickle.dumps(exploit),
        signed[:-1],
        signed[:20],
        b"",
        b"9" * 10_000,
        _signature(unknown_class) + unknown_class,
    ):
        raw.set(":1:a", entry)
        assert cache.get("a", "fallback") == "fallback"
        assert cache.get_many(["a"]) == {}
    assert list(tmp_path.iterdir()) == []
    cache.set("a", [1])
    assert cache.get("a") == [1]


def test_integers_are_counted_by_redis(cache: Any) -> None:
    cache.set("a", 1)
    assert cache.incr("a", 5) == 6
    assert cache.get("a") == 6
    cache.set("b", True)
    assert cache.get("b") is True


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fault", [kill, hang])
def test_services_and_pages_work_without_redis(
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
    (course_on_page,) = page.context["page"].courses
    assert (course_on_page.subject.name, course_on_page.total_enrollments) == ("Arts", 1)
    assert staff_client.get("/admin/courses/course/").status_code == 200
    assert unenroll(student=student, course=course) is True
    assert drift_by_title() == {}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fault", [kill, hang])
def test_entry_is_correct_after_the_timeout_if_redis_missed_an_invalidation(
    cache: Any, server: Redis, short_timeout: None, fault: Callable[[Redis], None]
) -> None:
    """The invalidation is lost, and a Redis that hung still has the old entry."""
    Subject.objects.create(name="Art", slug="art")
    assert Subject.objects.get().name == "Art"
    fault(server)
    Subject.objects.update(name="Arts")
    server.signal(signal.SIGCONT)
    server.start()
    time.sleep(1.1)
    assert Subject.objects.get().name == "Arts"


@pytest.mark.django_db(transaction=True)
def test_restored_old_entries_are_used_until_the_timeout_at_most(
    cache: Any, server: Redis, short_timeout: None, student: Any
) -> None:
    subject = Subject.objects.create(name="Art", slug="art")
    course = Course.objects.create(title="Drawing", slug="drawing", subject=subject)
    assert Subject.objects.get().name == "Art"
    client = cache._cache.get_client()
    backup = {key: (client.dump(key), client.pttl(key)) for key in client.scan_iter()}
    Subject.objects.update(name="Arts")
    enroll(student=student, course=course)
    client.flushall()
    for key, (value, timeout) in backup.items():
        client.restore(key, timeout, value)
    assert Course.objects.get().total_enrollments == 1
    assert drift_by_title() == {}
    time.sleep(1.1)
    assert Subject.objects.get().name == "Arts"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("empty", [lambda s, c: c.clear(), lambda s, c: (s.kill(), s.start())])
def test_emptied_redis_is_filled_again(
    cache: Any, server: Redis, empty: Callable[[Redis, Any], Any]
) -> None:
    Subject.objects.create(name="Art", slug="art")
    assert Subject.objects.get().name == "Art"
    empty(server, cache)
    assert Subject.objects.get().name == "Art"
    Subject.objects.update(name="Arts")
    assert Subject.objects.get().name == "Arts"


@pytest.mark.django_db(transaction=True)
def test_full_redis_does_not_prevent_commits(cache: Any, student: Any, short_timeout: None) -> None:
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
