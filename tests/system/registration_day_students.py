"""locust's file for registration_day.py: each student enrolls once, then opens the catalog."""

import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, task
from requests.cookies import create_cookie

from tests.support.servers import HOST

SESSIONS = json.loads(Path(os.environ["SESSIONS"]).read_text())
SLUG = os.environ["SLUG"]

unused_sessions = list(SESSIONS)
responses: list[tuple[str, float]] = []
finished_students = 0


class Student(FastHttpUser):
    connection_timeout = network_timeout = 120  # seconds

    @task
    def enroll(self) -> None:
        global finished_students
        token = secrets.token_hex(16)
        for name, value in {"sessionid": unused_sessions.pop(), "csrftoken": token}.items():
            self.client.cookiejar.set_cookie(create_cookie(name, value, domain=HOST))
        form = {"csrfmiddlewaretoken": token}
        self._request(_classify_page, "POST", f"/courses/{SLUG}/enroll/", data=form)
        self._request(lambda page: "catalog", "GET", "/")
        finished_students += 1
        if finished_students == len(SESSIONS):
            Path(os.environ["RESPONSES"]).write_text(json.dumps(responses))
            # quit() stops this greenlet and waits for it, so it must run in another one.
            gevent.spawn(self.environment.runner.quit)
        # locust would replace a student who returns.
        gevent.sleep(float("inf"))

    def _request(
        self, classify: Callable[[str], str], method: str, path: str, **options: Any
    ) -> None:
        start = time.monotonic()
        response = self.client.request(method, path, **options)
        status = response.status_code  # 0: the connection failed
        page = classify(response.text) if status == 200 else f"status {status}"
        responses.append((page, time.monotonic() - start))


def _classify_page(page: str) -> str:
    is_enrolled = "Leave this course" in page
    if is_enrolled and "You are enrolled in" in page:
        return "enrolled"
    if not is_enrolled and "is full" in page:
        return "full"
    return "other page"
