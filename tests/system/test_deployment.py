"""The files of docs/deployment: nginx and gunicorn run with them; only addresses are changed."""

import http.client
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.commands import PROJECT, environment
from tests.support.programs import WEB, find_program, unpack
from tests.support.servers import HOST, free_port

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]

DOCS = PROJECT / "docs" / "deployment"
NAME = "courses.example.org"
START_SECONDS = 30


def variables() -> dict[str, str]:
    lines = (DOCS / "catalog.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Site(NamedTuple):
    http: int
    https: int
    gunicorn: subprocess.Popen[bytes]

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: str = "",
        come_from: str = HOST,
        **headers: str,
    ) -> Any:
        """Ask over TLS, by a connection of one's own; return the answer, read."""
        trusting = ssl._create_unverified_context()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(
            http.client.HTTPSConnection(
                HOST, self.https, context=trusting, timeout=30, source_address=(come_from, 0)
            )
        ) as connection:
            connection.request(method, path, body, {"Host": NAME} | names)
            answer = connection.getresponse()
            answer.read()
        return answer


@contextmanager
def running(command: list[Any], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def eventually(is_so: Callable[[], object]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        with suppress(OSError, http.client.HTTPException):
            if is_so():
                return
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    unpack(WEB)
    served, plain, tls = free_port(), free_port(), free_port()
    ours = environment()
    env = variables() | {name: ours[name] for name in ("DATABASE_URL", "REDIS_URL", "PATH")}
    env["PORT"] = str(served)
    with ExitStack() as stack:
        gunicorn = stack.enter_context(
            running([sys.executable, "-m", "gunicorn"], cwd=PROJECT, env=env)
        )
        stack.enter_context(running(nginx_command(tmp_path, served, plain, tls)))
        site = Site(plain, tls, gunicorn)
        eventually(lambda: site.ask("/readyz").status == 200)
        yield site


def nginx_command(folder: Path, served: int, plain: int, tls: int) -> list[Any]:
    subject = ["-subj", f"/CN={NAME}", "-keyout", folder / "key", "-out", folder / "cert"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject],
        check=True,
        capture_output=True,
    )
    text = re.sub(r"\n +listen \[.*", "", (DOCS / "nginx.conf").read_text())
    for documented, here in {
        f"/etc/letsencrypt/live/{NAME}/fullchain.pem": folder / "cert",
        f"/etc/letsencrypt/live/{NAME}/privkey.pem": folder / "key",
        "127.0.0.1:8000": f"{HOST}:{served}",
        "listen 80;": f"listen {HOST}:{plain};",
        "listen 443 ssl": f"listen {HOST}:{tls} ssl",
    }.items():
        assert documented in text
        text = text.replace(documented, str(here))
    (folder / "site.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    places = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {places} include {folder}/site.conf; }}\n"
    )
    return [find_program("nginx"), "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"]


def test_visitors_come_in_by_https(site: Site) -> None:
    with closing(http.client.HTTPConnection(HOST, site.http)) as plain:
        plain.request("GET", "/courses/x/?a=b", headers={"Host": NAME})
        answer = plain.getresponse()
        answer.read()
    assert (answer.status, answer.headers["Location"]) == (301, f"https://{NAME}/courses/x/?a=b")
    answer = site.ask("/accounts/sign-in/")
    assert answer.status == 200  # and no redirect to where it is already
    assert "max-age" in answer.headers["Strict-Transport-Security"]
    assert "Secure" in answer.headers["Set-Cookie"]


def test_who_guesses_passwords_can_not_hide_behind_other_addresses(site: Site) -> None:
    token = site.ask("/accounts/sign-in/").headers["Set-Cookie"].split(";")[0].split("=")[1]
    form = {
        "method": "POST",
        "body": f"username=nobody&password=x&csrfmiddlewaretoken={token}",
        "Content_Type": "application/x-www-form-urlencoded",
        "Cookie": f"csrftoken={token}",
        "Referer": f"https://{NAME}/accounts/sign-in/",
    }
    told = [
        site.ask("/accounts/sign-in/", **form, X_Forwarded_For=f"192.0.2.{number}").status
        for number in range(11)
    ]
    assert told == [200] * 9 + [429] * 2
    # Somebody else's address is their own, and not that of nginx.
    assert site.ask("/accounts/sign-in/", **form, come_from="127.0.0.2").status == 200


def test_new_code_is_loaded_without_a_break(site: Site) -> None:
    def workers() -> set[str]:
        pid = site.gunicorn.pid
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    told: list[int] = []
    ended = threading.Event()

    def visit() -> None:
        while not ended.is_set():
            told.append(site.ask("/").status)

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    try:
        eventually(lambda: len(told) > 20)
        before = workers()
        site.gunicorn.send_signal(signal.SIGHUP)  # what `systemctl reload` does
        eventually(lambda: len(workers()) == 3 and not workers() & before)
        so_far = len(told)
        eventually(lambda: len(told) > so_far + 20)
    finally:
        ended.set()
        for visitor in visitors:
            visitor.join()
    assert set(told) == {200}


def test_compose_and_the_guide_set_only_what_is_read() -> None:
    read = (PROJECT / "project" / "settings.py").read_text()
    read += (PROJECT / "gunicorn.conf.py").read_text() + "FORWARDED_ALLOW_IPS"  # by gunicorn itself
    compose = (PROJECT / "compose.yaml").read_text()
    of_site = compose[compose.index("environment: &environment") : compose.index('command: ["py')]
    names = {*variables(), *re.findall(r"^ +([A-Z_]+):", of_site, re.MULTILINE)}
    assert len(names) == 7
    assert [name for name in names if name not in read] == []
