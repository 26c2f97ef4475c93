"""Run the site with gunicorn.conf.py, as in production, on a free port."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.support.commands import PROJECT
from tests.support.programs import ServerError
from tests.support.servers import HOST, free_port

TIMEOUT_SECONDS = 30


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
