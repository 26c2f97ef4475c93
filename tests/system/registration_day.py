"""Registration day: thousands of signed-in students press "Enroll" on one course at once.

    python -m tests.system.registration_day --students 2000 --seats 500
    python -m tests.system.registration_day --stop-redis     Redis is stopped when half the seats are gone

Starts a private MariaDB and Redis, gunicorn as in production, and locust for the students. Prints
what they were told and what the database has; exit status 1 when a promise is broken.
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

from tests.support.servers import Redis, ServerError, mariadb, redis
from tests.support.site import running_site

SLUG = "wanted-by-all"
GIVE_UP_AFTER = 120  # seconds
CROWD = "registration_day_crowd.py"

Told = list[tuple[str, float]]  # an answer, and the seconds until it came


def main() -> int:
    options = _options()
    if options.students < 1 or options.seats < 1 or options.within <= 0:
        print("registration_day: all numbers must be above 0", file=sys.stderr)
        return 2
    try:
        with mariadb() as database, redis() as cache, tempfile.TemporaryDirectory() as folder:
            os.environ |= {
                "DATABASE_URL": database.url,
                "REDIS_URL": cache.url,
                "SECRET_KEY": secrets.token_urlsafe(50),
                "HTTPS": "0",
            }
            students = Path(folder, "students.json")
            students.write_text(json.dumps(_prepare(options)))
            log = Path(folder, "gunicorn.log")
            with running_site(log=log, env={}) as url:
                told = _press(url, students, options, cache if options.stop_redis else None)
            return _judge(told, options, log.read_text())
    except ServerError as error:
        print(f"registration_day: {error}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="registration_day", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--students", type=int, default=2_000)
    parser.add_argument("--seats", type=int, default=500)
    parser.add_argument("--within", type=float, default=5, help="seconds in which all press")
    parser.add_argument("--stop-redis", action="store_true")
    return parser.parse_args()


def _prepare(options: argparse.Namespace) -> list[str]:
    """Make the course and the students, sign them in, and return their session keys."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    import django

    django.setup()
    from django.conf import settings
    from django.contrib.auth import (
        BACKEND_SESSION_KEY,
        HASH_SESSION_KEY,
        SESSION_KEY,
        get_user_model,
    )
    from django.contrib.auth.hashers import make_password
    from django.contrib.sessions.backends.db import SessionStore
    from django.contrib.sessions.models import Session
    from django.core.management import call_command

    from courses.models import Course, Subject

    call_command("migrate", verbosity=0)
    subject = Subject.objects.create(name="Popular things", slug="popular-things")
    Course.objects.create(title="Wanted by all", slug=SLUG, subject=subject, capacity=options.seats)
    users = get_user_model()._default_manager
    users.bulk_create(
        users.model(username=f"student{number}", password=make_password(None))
        for number in range(options.students)
    )
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    keys, sessions = [], []
    for user in users.all():
        keys.append(secrets.token_hex(16))
        data = SessionStore().encode(
            {
                SESSION_KEY: str(user.pk),
                BACKEND_SESSION_KEY: settings.AUTHENTICATION_BACKENDS[-1],
                HASH_SESSION_KEY: user.get_session_auth_hash(),
            }
        )
        sessions.append(Session(session_key=keys[-1], session_data=data, expire_date=tomorrow))
    Session.objects.bulk_create(sessions, batch_size=500)
    return keys


def _press(url: str, students: Path, options: argparse.Namespace, cache: Redis | None) -> Told:
    """Have all students press; return what each was told, and how long it took."""
    answers = students.with_name("answers.json")
    with students.with_name("locust.log").open("wb") as log:
        crowd = subprocess.Popen(
            [
                *(sys.executable, "-m", "locust", "--locustfile", Path(__file__).with_name(CROWD)),
                *("--headless", "--host", url, "--users", str(options.students)),
                *("--spawn-rate", str(max(1, options.students / options.within))),
                *("--run-time", f"{GIVE_UP_AFTER}s", "--only-summary"),
            ],
            env=os.environ | {"STUDENTS": str(students), "ANSWERS": str(answers), "COURSE": SLUG},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        while cache is not None and _stored() < options.seats / 2 and crowd.poll() is None:
            time.sleep(0.01)
        if cache is not None:
            print(f"Redis stopped when {_stored()} seats were taken.")
            cache.kill()
        crowd.wait(GIVE_UP_AFTER)
    finally:
        crowd.kill()
        crowd.wait()
    if not answers.exists():
        raise ServerError(f"locust didn't finish: {(students.with_name('locust.log')).read_text()}")
    return [(said, float(seconds)) for said, seconds in json.loads(answers.read_text())]


def _stored() -> int:
    from courses.models import Course

    return Course.objects.get(slug=SLUG).total_enrollments


def _judge(told: Told, options: argparse.Namespace, log: str) -> int:
    from courses.models import Course

    course = Course.objects.with_drift().get(slug=SLUG)
    said = Counter(answer for answer, _ in told)
    seconds = sorted(seconds for answer, seconds in told if answer != "catalog")
    enrolled = min(options.students, options.seats)
    print(f"{options.students} students, {options.seats} seats, pressed in {options.within:g} s")
    for answer, number in said.most_common():
        print(f"  {number:6} {answer}")
    for share in (50, 95, 99, 100):
        at = seconds[min(len(seconds) - 1, len(seconds) * share // 100)] if seconds else 0
        print(f"  {share:5} % were answered within {at:.2f} s")
    print(
        f"  database: stored {course.total_enrollments}, true {course.true_count}, "
        f"drift {course.drift}; log: {log.count(' ERROR ')} errors"
    )
    wanted = Counter(
        {"enrolled": enrolled, "full": options.students - enrolled, "catalog": options.students}
    )
    right = said == +wanted and course.true_count == enrolled and course.drift == 0
    print("All as promised." if right else f"BROKEN: expected {dict(+wanted)}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
