"""Several requests on one connection, to the servers of development and of production."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import OperationalError

from tests.support.commands import (
    UNREACHABLE_ADDRESS,
    command_environment,
    unmigrated_database,
)
from tests.support.site import running_site

pytestmark = [pytest.mark.sqlite, pytest.mark.django_db(transaction=True)]

UNREACHABLE_DATABASE = f"mysql://nobody:none@{UNREACHABLE_ADDRESS}/none"


@pytest.fixture(params=["runserver", "gunicorn"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a site on which the API's list of courses is a 500."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    if request.param == "runserver":
        monkeypatch = request.getfixturevalue("monkeypatch")
        monkeypatch.setattr("tempfile.tempdir", str(uploads))
        monkeypatch.setattr("courses.api.catalog_page", fail)
        yield request.getfixturevalue("live_server").url
        return
    with (
        unmigrated_database(tmp_path) as database,
        gunicorn(tmp_path, database, TMPDIR=str(uploads)) as url,
    ):
        yield url


def fail(**arguments: Any) -> None:
    raise OperationalError(1054, "Unknown column")


def gunicorn(folder: Path, database_url: str, **env: str) -> Any:
    env |= {"DATABASE_URL": database_url, "HTTPS": "0", "WEB_CONCURRENCY": "1"}
    return running_site(log=folder / "log", env=command_environment() | env)


def connect(url: str) -> Any:
    return closing(HTTPConnection(urlsplit(url).netloc, timeout=10))


def send(connection: HTTPConnection, *arguments: Any) -> tuple[Any, bytes]:
    """Send a request; return the response with the body, as long as Content-Length announces."""
    connection.request(*arguments)
    response = connection.getresponse()
    return response, response.read()


def assert_complete(response: Any, body: bytes, status: int) -> None:
    assert response.status == status
    if response.headers["Content-Type"].startswith("application/json"):
        assert isinstance(json.loads(body), dict)
    else:
        assert body.rstrip().endswith(b"</html>")


FORM = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": f"csrftoken={'t' * 32}"}
REQUESTS: list[tuple[int, tuple[Any, ...]]] = [
    (200, ("GET", "/api/")),
    (404, ("GET", "/api/none")),
    (404, ("POST", "/api/none", b"a=b")),
    (405, ("GET", "/api/courses/x/enrollment")),
    (405, ("POST", "/api/courses", b"a=b")),
    (403, ("POST", "/api/openapi.json", b"a=b")),
    (401, ("PUT", "/api/courses/x/enrollment", b"a=b")),
    (400, ("GET", "/api/courses?size=0")),
    (400, ("GET", "/api/", None, {"Host": "evil.example"})),
    (500, ("GET", "/api/courses")),
    (404, ("GET", "/nowhere")),
    (403, ("POST", "/accounts/sign-in/", b"a=b")),
    (200, ("GET", "/healthz")),
    # gunicorn closes the connection after a long body that nobody read, so this is the last one.
    (400, ("POST", "/api/openapi.json", b"a=" + b"b" * 200_000, FORM)),
]


def test_every_response_is_complete_and_so_is_the_next(url: str) -> None:
    with connect(url) as connection:
        for status, request in REQUESTS:
            assert_complete(*send(connection, *request), status)


def test_api_responses_have_their_length_and_keep_the_connection(url: str) -> None:
    with connect(url) as connection:
        for status, request in REQUESTS:
            if request[1].startswith("/api/") and len(request) < 4:
                response, body = send(connection, *request)
                assert (response.status, response.will_close) == (status, False)
                assert response.headers["Content-Length"] == str(len(body))


def test_head_is_like_get_without_the_body(url: str) -> None:
    with connect(url) as connection:
        for status, (method, path, *options) in REQUESTS:
            if method != "GET":
                continue
            expected, _ = send(connection, "GET", path, *options)
            response, body = send(connection, "HEAD", path, *options)
            assert (response.status, body) == (status, b"")
            for name in ("Content-Type", "Content-Length"):
                assert response.headers[name] == expected.headers[name], path


def test_unchanged_file_is_an_empty_304(url: str) -> None:
    with connect(url) as connection:
        path = "/static/site/site.css"
        modified = send(connection, "GET", path)[0].headers["Last-Modified"]
        response, body = send(connection, "GET", path, None, {"If-Modified-Since": modified})
        assert (response.status, body) == (304, b"")
        assert_complete(*send(connection, "GET", "/api/"), 200)


def test_503_is_complete_and_so_is_the_next(tmp_path: Path) -> None:
    with gunicorn(tmp_path, UNREACHABLE_DATABASE) as url, connect(url) as connection:
        for path in ("/api/courses", "/", "/readyz", "/api/courses"):
            assert_complete(*send(connection, "GET", path), 503)


@pytest.mark.parametrize("charset", ["rot13", "punycode", "utf-16"])
def test_requests_are_decoded_as_utf_8(tmp_path: Path, charset: str) -> None:
    headers = FORM | {"Content-Type": f"{FORM['Content-Type']}; charset={charset}"}
    with gunicorn(tmp_path, UNREACHABLE_DATABASE) as url, connect(url) as connection:
        for status, request in [
            (200, ("GET", "/api/?a", None, headers)),
            (200, ("GET", "/healthz?a", None, headers)),
            (403, ("POST", "/accounts/sign-in/", b"a=b", headers)),
        ]:
            assert_complete(*send(connection, *request), status)


def test_headers_do_not_change_the_path(url: str) -> None:
    with connect(url) as connection:
        headers = {"SCRIPT_NAME": "/prefix", "PATH_INFO": "/"}
        assert_complete(*send(connection, "GET", "/prefix/api/", None, headers), 404)


def test_uploaded_file_is_rejected_and_never_stored(url: str, tmp_path: Path) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "9999999"}
    headers["Cookie"] = f"csrftoken={'t' * 32}"
    with connect(url) as connection:
        # Only the beginning of the file arrives.
        connection.request("POST", "/accounts/sign-in/", form + b"x" * 1_000_000, headers)
        time.sleep(0.5)
        assert list((tmp_path / "uploads").iterdir()) == []
        response = connection.getresponse()
        assert_complete(response, response.read(), 400)
