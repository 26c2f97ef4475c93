"""Run the site with gunicorn.conf.py, as in production, and visit a site over HTTP."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import requests

from tests.support.commands import PROJECT
from tests.support.programs import ServerError
from tests.support.servers import HOST, free_port

TIMEOUT_SECONDS = 30


class Visitor:
    """A browser without JavaScript. It keeps its cookies and follows no redirects."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False  # no proxies

    def get(self, path: str, **headers: str) -> requests.Response:
        return self._request("GET", path, None, headers)

    def post(self, path: str, form: Mapping[str, object], **headers: str) -> requests.Response:
        """Send a form with the token of the page, which is requested first."""
        self.get(path, **headers)
        token = self._session.cookies.get("csrftoken", "")
        return self._request("POST", path, {"csrfmiddlewaretoken": token, **form}, headers)

    def _request(
        self, method: str, path: str, form: Mapping[str, object] | None, headers: Mapping[str, str]
    ) -> requests.Response:
        return self._session.request(
            method,
            f"{self._url}{path}",
            data=form,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            allow_redirects=False,
            timeout=TIMEOUT_SECONDS,
        )


@contextmanager
def running_site(*, log: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Yield the site's URL when the site responds. Raises ServerError if it does not start.

    `env` is added to this process's environment.
    """
    port = free_port()
    url = f"http://{HOST}:{port}"
    with log.open("wb") as file:
        gunicorn = subprocess.Popen(
            [sys.executable, "-m", "gunicorn"],
            cwd=PROJECT,
            env=os.environ | env | {"PORT": str(port)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not _is_alive(url):
                if gunicorn.poll() is not None or time.monotonic() > deadline:
                    last_line = log.read_text().strip().rpartition("\n")[2]
                    raise ServerError(f"gunicorn did not start: {last_line}")
                time.sleep(0.1)
            yield url
        finally:
            gunicorn.terminate()
            gunicorn.wait(TIMEOUT_SECONDS)


def _is_alive(url: str) -> bool:
    with suppress(URLError, ConnectionError), urlopen(f"{url}/healthz", timeout=5) as response:
        return response.status == 200
    return False
