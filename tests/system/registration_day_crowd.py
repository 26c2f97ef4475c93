"""The students of registration_day.py, for locust: each presses once, then sees the catalog."""

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, task
from requests.cookies import create_cookie

from tests.support.servers import HOST

SESSIONS = json.loads(Path(os.environ["STUDENTS"]).read_text())
COURSE = os.environ["COURSE"]
WAITING = list(SESSIONS)
ANSWERS: list[tuple[str, float]] = []
GONE: list[str] = []


class Student(FastHttpUser):
    connection_timeout = network_timeout = 120  # seconds

    @task
    def press(self) -> None:
        session, token = WAITING.pop(), secrets.token_hex(16)
        for name, value in {"sessionid": session, "csrftoken": token}.items():
            self.client.cookiejar.set_cookie(create_cookie(name, value, domain=HOST))
        form = {"csrfmiddlewaretoken": token}
        self._note(self._told, "POST", f"/courses/{COURSE}/enroll/", data=form)
        self._note(lambda page: "catalog", "GET", "/")
        GONE.append(session)
        if len(GONE) == len(SESSIONS):
            Path(os.environ["ANSWERS"]).write_text(json.dumps(ANSWERS))
            # Not from here: it ends us, and would wait for itself.
            gevent.spawn(self.environment.runner.quit)
        # One that ended would be replaced by another.
        gevent.sleep(float("inf"))

    def _note(self, told: Any, method: str, path: str, **kwargs: Any) -> None:
        began = time.monotonic()
        answer = self.client.request(method, path, **kwargs)
        # Status 0: the connection broke.
        said = told(answer.text) if answer.status_code == 200 else f"status {answer.status_code}"
        ANSWERS.append((said, time.monotonic() - began))

    def _told(self, page: str) -> str:
        if "You are enrolled in" in page and "Leave this course" in page:
            return "enrolled"
        if "is full: all" in page and "Leave this course" not in page:
            return "full"
        return "something else"
