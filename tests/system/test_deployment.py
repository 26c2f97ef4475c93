"""Run nginx and gunicorn with the files of docs/deployment, with other addresses."""

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
import yaml

from tests.support.commands import PROJECT, command_environment
from tests.support.programs import WEB, find_program, unpack
from tests.support.servers import HOST, create_certificate, free_port

pytestmark = [pytest.mark.mariadb, pytest.mark.django_db(transaction=True)]

DOCS = PROJECT / "docs" / "deployment"
SERVER_NAME = "courses.example.org"
TIMEOUT_SECONDS = 30


class Site(NamedTuple):
    http_port: int
    https_port: int
    gunicorn: subprocess.Popen[bytes]

    def connect(self, client_address: str = HOST) -> Any:
        """Return a context manager with a new connection over HTTPS."""
        return closing(
            http.client.HTTPSConnection(
                HOST,
                self.https_port,
                context=ssl._create_unverified_context(),
                timeout=TIMEOUT_SECONDS,
                source_address=(client_address, 0),
            )
        )

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        body: str = "",
        client_address: str = HOST,
        **headers: str,
    ) -> Any:
        """Send a request on a new connection; return the response."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with self.connect(client_address) as connection:
            connection.request(method, path, body, {"Host": SERVER_NAME} | names)
            response = connection.getresponse()
            response.read()
        return response


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    unpack(WEB)
    http_port, https_port = free_port(), free_port()
    test_variables = command_environment()
    env = documented_variables() | {
        name: test_variables[name] for name in ("DATABASE_URL", "REDIS_URL", "PATH")
    }
    # systemd opens the socket in production.
    env["GUNICORN_CMD_ARGS"] = f"--bind=unix:{tmp_path}/catalog.sock"
    with ExitStack() as stack:
        gunicorn = stack.enter_context(
            running([sys.executable, "-m", "gunicorn"], cwd=PROJECT, env=env)
        )
        stack.enter_context(running(nginx_command(tmp_path, http_port, https_port)))
        site = Site(http_port, https_port, gunicorn)
        wait_until(lambda: site.request("/readyz").status == 200)
        yield site


def documented_variables() -> dict[str, str]:
    lines = (DOCS / "catalog.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@contextmanager
def running(command: list[Any], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def nginx_command(folder: Path, http_port: int, https_port: int) -> list[Any]:
    """Write a certificate and the configuration to the folder; return the command of nginx."""
    certificate, key = create_certificate(folder=folder)
    text = re.sub(r"\n +listen \[.*", "", (DOCS / "nginx.conf").read_text())
    for documented, actual in {
        f"/etc/letsencrypt/live/{SERVER_NAME}/fullchain.pem": certificate,
        f"/etc/letsencrypt/live/{SERVER_NAME}/privkey.pem": key,
        "/run/catalog.sock": folder / "catalog.sock",
        "listen 80;": f"listen {HOST}:{http_port};",
        "listen 443 ssl": f"listen {HOST}:{https_port} ssl",
    }.items():
        assert documented in text
        text = text.replace(documented, str(actual))
    (folder / "site.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    temporary_folders = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        # Let tests choose the visitor's address.
        f"http {{ set_real_ip_from {HOST}; real_ip_header Test-Address; access_log off;\n"
        f"{temporary_folders} include {folder}/site.conf; }}\n"
    )
    return [find_program("nginx"), "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        with suppress(OSError, http.client.HTTPException):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_http_redirects_to_https(site: Site) -> None:
    with closing(http.client.HTTPConnection(HOST, site.http_port)) as connection:
        connection.request("GET", "/courses/x/?a=b", headers={"Host": SERVER_NAME})
        response = connection.getresponse()
        response.read()
    location = f"https://{SERVER_NAME}/courses/x/?a=b"
    assert (response.status, response.headers["Location"]) == (301, location)


def test_https_sends_hsts_and_secure_cookies(site: Site) -> None:
    response = site.request("/accounts/sign-in/")
    assert response.status == 200
    assert "max-age" in response.headers["Strict-Transport-Security"]
    assert "Secure" in response.headers["Set-Cookie"]


@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8:0:1::{}"])
def test_forged_addresses_do_not_bypass_the_sign_in_limit(site: Site, address: str) -> None:
    token = site.request("/accounts/sign-in/").headers["Set-Cookie"].split(";")[0].split("=")[1]
    form = {
        "method": "POST",
        "body": f"username=nobody&password=x&csrfmiddlewaretoken={token}",
        "Content_Type": "application/x-www-form-urlencoded",
        "Cookie": f"csrftoken={token}",
        "Referer": f"https://{SERVER_NAME}/accounts/sign-in/",
    }
    statuses = [
        site.request(
            "/accounts/sign-in/",
            **form,
            Test_Address=address.format(number),
            X_Forwarded_For=f"192.0.2.{number}",
        ).status
        for number in range(11)
    ]
    assert statuses == [200] * 9 + [429] * 2
    # The limit is for the client's address, not for nginx's.
    response = site.request("/accounts/sign-in/", **form, client_address="127.0.0.2")
    assert response.status == 200


def test_headers_reach_the_site_only_if_nginx_set_them(site: Site) -> None:
    # nginx drops names with underscores itself; https is what nginx reports.
    headers = {"SCRIPT_NAME": "/prefix", "X-Forwarded-Proto": "http", "Host": SERVER_NAME}
    with site.connect() as connection:
        connection.request("GET", "/prefix/api/", headers=headers)
        assert connection.getresponse().status == 404


def test_request_bodies_are_short_and_never_stored(site: Site, tmp_path: Path) -> None:
    assert site.request("/", method="POST", body="x" * 200_000).status == 413
    with site.connect() as connection:
        headers = {"Host": SERVER_NAME, "Content-Length": "120000"}
        connection.request("POST", "/accounts/sign-in/", "x" * 100_000, headers)
        time.sleep(0.5)
        assert not [path for path in (tmp_path / "client_body").rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["/accounts/sign-in/", "/accounts/sign-up/", "/admin/login/"])
def test_account_forms_are_limited_per_network(site: Site, path: str) -> None:
    def send(address: str, method: str = "POST") -> int:
        return site.request(path, method=method, Test_Address=address).status

    # Django rejects these forms with 403, because they have no token.
    passed = next(n for n in range(300) if send(f"2001:db8:0:1:a:b:c:{n:x}") == 429)
    assert passed > 60
    assert send("2001:db8:0:1:a:b:c:ffff", "GET") != 429
    assert site.request("/", Test_Address="2001:db8:0:1:a:b:c:ffff").status == 200
    for address in ("2001:db8:0:2:a:b:c:d", "2001:db8::1", "::1", "192.0.2.1"):
        assert send(address) == 403


def test_no_request_fails_during_a_reload(site: Site) -> None:
    def worker_pids() -> set[str]:
        pid = site.gunicorn.pid
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    statuses: list[int] = []
    finished = threading.Event()

    def visit() -> None:
        while not finished.is_set():
            statuses.append(site.request("/").status)

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    try:
        wait_until(lambda: len(statuses) > 20)
        old_pids = worker_pids()
        site.gunicorn.send_signal(signal.SIGHUP)  # as `systemctl reload` does
        wait_until(lambda: len(worker_pids()) == 3 and not worker_pids() & old_pids)
        number = len(statuses)
        wait_until(lambda: len(statuses) > number + 20)
    finally:
        finished.set()
        for visitor in visitors:
            visitor.join()
    assert set(statuses) == {200}


def test_all_services_of_systemd_are_hardened_alike() -> None:
    names = ("catalog", "catalog-check", "catalog-prune")
    texts = [(DOCS / f"{name}.service").read_text().partition("\n[Install]")[0] for name in names]
    hardening = [text[text.index("NoNewPrivileges=") :].rstrip() for text in texts]
    assert len(hardening[0].splitlines()) > 20
    assert set(hardening) == {hardening[0]}


def test_all_containers_are_hardened() -> None:
    for service in yaml.safe_load((PROJECT / "compose.yaml").read_text())["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all("size=" in mount for mount in service["tmpfs"])


def test_compose_and_guide_set_only_variables_that_exist() -> None:
    # gunicorn itself reads FORWARDED_ALLOW_IPS.
    source = (PROJECT / "project" / "settings.py").read_text() + "FORWARDED_ALLOW_IPS"
    source += (PROJECT / "gunicorn.conf.py").read_text()
    compose = (PROJECT / "compose.yaml").read_text()
    site = compose[compose.index("environment: &environment") : compose.index('command: ["py')]
    names = {*documented_variables(), *re.findall(r"^ +([A-Z_]+):", site, re.MULTILINE)}
    assert len(names) == 7
    assert [name for name in names if name not in source] == []
