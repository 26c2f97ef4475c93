"""Let thousands of signed-in students enroll in one course at the same time, over HTTP.

Runs a private MariaDB and Redis, gunicorn as in production, and locust for the students. Prints
their responses, the response times and the final counts. Exits with status 1 if a student got a
wrong response or a count is wrong.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

from tests.support.servers import Redis, ServerError, mariadb, redis
from tests.support.site import running_site

SLUG = "popular-course"
TIMEOUT_SECONDS = 120
LOCUSTFILE = Path(__file__).with_name("registration_day_students.py")

Responses = list[tuple[str, float]]  # what the page showed, and the response time in seconds


def main() -> int:
    options = _parse_arguments()
    try:
        with mariadb() as database, redis() as cache, tempfile.TemporaryDirectory() as folder:
            os.environ |= {
                "DATABASE_URL": database.url,
                "REDIS_URL": cache.url,
                "SECRET_KEY": secrets.token_urlsafe(50),
                "HTTPS": "0",
            }
            sessions = Path(folder, "sessions.json")
            sessions.write_text(json.dumps(_prepare_database(options)))
            log = Path(folder, "gunicorn.log")
            with running_site(log=log, env={}) as url:
                cache_to_stop = cache if options.stop_redis else None
                responses = _run_students(url, sessions, options, cache_to_stop)
            return _report(responses, options, log.read_text())
    except ServerError as error:
        print(f"registration_day: {error}", file=sys.stderr)
        return 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="registration_day", description=__doc__)
    parser.add_argument("--students", type=int, default=2_000, help="default: %(default)s")
    parser.add_argument("--seats", type=int, default=500, help="default: %(default)s")
    parser.add_argument(
        "--within", type=float, default=5, help="seconds in which all enroll; default: %(default)s"
    )
    parser.add_argument(
        "--stop-redis", action="store_true", help="stop Redis when half the seats are taken"
    )
    options = parser.parse_args()
    if options.students < 1 or options.seats < 1 or options.within <= 0:
        parser.error("All numbers must be above 0.")
    return options


def _prepare_database(options: argparse.Namespace) -> list[str]:
    """Create the course and the students, sign them in, and return their session keys."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    import django

    django.setup()
    from django.contrib.auth import get_user_model
    from django.contrib.auth.hashers import make_password
    from django.contrib.sessions.models import Session
    from django.core.management import call_command

    from courses.models import Course

    call_command("migrate", verbosity=0)
    Course.objects.create(title="Popular course", slug=SLUG, capacity=options.seats)
    users = get_user_model()._default_manager
    users.bulk_create(
        users.model(username=f"student{number}", password=make_password(None))
        for number in range(options.students)
    )
    # Real sign-ins would take minutes, because hashing passwords is slow on purpose.
    sessions = [_signed_in_session(user) for user in users.all()]
    Session.objects.bulk_create(sessions, batch_size=500)
    return [session.session_key for session in sessions]


def _signed_in_session(user: Any) -> Any:
    from django.conf import settings
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.sessions.backends.db import SessionStore
    from django.contrib.sessions.models import Session

    data = {
        SESSION_KEY: str(user.pk),
        BACKEND_SESSION_KEY: settings.AUTHENTICATION_BACKENDS[-1],
        HASH_SESSION_KEY: user.get_session_auth_hash(),
    }
    return Session(
        session_key=secrets.token_hex(16),
        session_data=SessionStore().encode(data),
        expire_date=datetime.now(UTC) + timedelta(days=1),
    )


def _run_students(
    url: str, sessions: Path, options: argparse.Namespace, cache_to_stop: Redis | None
) -> Responses:
    """Run locust until every student has enrolled or was rejected."""
    responses, log = sessions.with_name("responses.json"), sessions.with_name("locust.log")
    with log.open("wb") as log_file:
        locust = subprocess.Popen(
            [
                *(sys.executable, "-m", "locust", "--locustfile", LOCUSTFILE),
                *("--headless", "--host", url, "--users", str(options.students)),
                *("--spawn-rate", str(max(1, options.students / options.within))),
                *("--run-time", f"{TIMEOUT_SECONDS}s", "--only-summary"),
            ],
            env=os.environ | {"SESSIONS": str(sessions), "RESPONSES": str(responses), "SLUG": SLUG},
            stdout=log_file,
            stderr=subprocess.STDOUT,
        )
    try:
        if cache_to_stop is not None:
            while _stored_count() < options.seats / 2 and locust.poll() is None:
                time.sleep(0.01)
            print(f"Redis stopped when {_stored_count()} seats were taken.")
            cache_to_stop.kill()
        locust.wait(TIMEOUT_SECONDS)
    finally:
        locust.kill()
        locust.wait()
    if not responses.exists():
        raise ServerError(f"locust did not finish: {log.read_text()}")
    return [(page, float(seconds)) for page, seconds in json.loads(responses.read_text())]


def _stored_count() -> int:
    from courses.models import Course

    return Course.objects.get(slug=SLUG).total_enrollments


def _report(responses: Responses, options: argparse.Namespace, log: str) -> int:
    """Print the results; return the exit status."""
    from courses.models import Course

    course = Course.objects.with_drift().get(slug=SLUG)
    enrolled = min(options.students, options.seats)
    pages = Counter(page for page, _ in responses)
    expected = +Counter(
        {"enrolled": enrolled, "full": options.students - enrolled, "catalog": options.students}
    )
    print(f"{options.students} students, {options.seats} seats, all within {options.within:g} s")
    for page, number in pages.most_common():
        print(f"  {number:6} {page}")
    _print_response_times([seconds for page, seconds in responses if page != "catalog"])
    print(
        f"  database: stored {course.total_enrollments}, true {course.true_count}, "
        f"drift {course.drift}; log: {log.count(' ERROR ')} errors"
    )
    is_correct = pages == expected and course.true_count == enrolled and course.drift == 0
    print("All responses and counts are correct." if is_correct else f"WRONG: expected {expected}")
    return 0 if is_correct else 1


def _print_response_times(seconds: list[float]) -> None:
    percentiles = [0.0, *quantiles(seconds, n=100), max(seconds)]
    for percentile in (50, 95, 99, 100):
        print(f"  {percentile:5} % of the responses within {percentiles[percentile]:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
