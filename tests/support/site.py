"""The site as in production: gunicorn, as gunicorn.conf.py says, on a free port."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.support.servers import HOST, ServerError, free_port

PROJECT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 30


@contextmanager
def running_site(*, log: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Yield its address when it is ready; `env` goes beside what is set. Raises ServerError."""
    port = free_port()
    url = f"http://{HOST}:{port}"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn"],
            cwd=PROJECT,
            env=os.environ | env | {"PORT": str(port)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            give_up = time.monotonic() + START_SECONDS
            while not _is_ready(url):
                if server.poll() is not None or time.monotonic() > give_up:
                    said = log.read_text().strip().splitlines()
                    raise ServerError(f"gunicorn didn't start: {said[-1:]}")
                time.sleep(0.1)
            yield url
        finally:
            server.terminate()
            server.wait(START_SECONDS)


def _is_ready(url: str) -> bool:
    with suppress(URLError, ConnectionError), urlopen(f"{url}/readyz", timeout=5) as answer:
        return answer.status == 200
    return False
