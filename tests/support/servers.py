"""Run a private MariaDB, which offers TLS, and a private Redis on free ports.

    python -m tests.support.servers COMMAND [ARG…]   run COMMAND with DATABASE_URL and REDIS_URL set
    python -m tests.support.servers --sets 2 COMMAND [ARG…]
                                                     run two of both, one for each process of
                                                     pytest -n 2
    python -m tests.support.servers --install        install missing programs
    python -m tests.support.cluster COMMAND [ARG…]   the same with a cluster of three MariaDB nodes

Servers that already run on this machine are not used, and no configuration file is read. All data
is deleted at the end.
"""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from tests.support.programs import (
    BROWSER,
    CLUSTER,
    HEADERS,
    SERVERS,
    WEB,
    MissingPrograms,
    ServerError,
    find_program,
    find_redis,
    install,
    require,
    unpack,
)
from tests.support.signals import Terminated, defer_signals, raise_on_signals

HOST = "127.0.0.1"
START_SECONDS = 60
STOP_SECONDS = 10


@dataclass(kw_only=True)
class Server:
    """A server process that can be killed, paused and started again on the same port."""

    name: ClassVar[str]
    greeting: ClassVar[bytes]  # makes the server send something

    port: int
    url: str
    folder: Path = field(repr=False)
    command: Sequence[str] = field(repr=False)
    executable: str | None = field(repr=False)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the server and return when it is ready. Does nothing if it already runs."""
        if self.is_running():
            return
        with defer_signals():
            self.process = _spawn(self.command, executable=self.executable, folder=self.folder)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if not self.is_running() or time.monotonic() > deadline:
                self.kill()
                raise _start_error(name=self.name, folder=self.folder)
            time.sleep(0.02)

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def signal(self, number: signal.Signals, /) -> None:
        """Send a signal: SIGSTOP makes the server hang, SIGCONT resumes it."""
        if self.process is not None:
            self.process.send_signal(number)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def is_ready(self) -> bool:
        """Return whether the server answers. It may accept connections before that."""
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1) as client:
            client.sendall(self.greeting)
            return bool(client.recv(1)) and self.is_running()
        return False


class MariaDB(Server):
    name = "mariadb"
    greeting = b""


class Redis(Server):
    name = "redis"
    greeting = b"PING\r\n"


@contextmanager
def mariadb(*, options: Sequence[str] = ()) -> Iterator[MariaDB]:
    """Run a MariaDB with one database and a user who has all privileges.

    `options` are arguments of mariadbd. Raises MissingPrograms, or ServerError if MariaDB does not
    start.
    """
    require(SERVERS)
    with server_folder(name=MariaDB.name) as folder:
        port, password = free_port(), secrets.token_hex(16)
        init_file = create_data(folder=folder, password=password)
        server = MariaDB(
            port=port,
            url=database_url(port=port, password=password),
            folder=folder,
            executable=find_program("mariadbd"),
            command=[
                "mariadbd",
                "--no-defaults",
                *mariadbd_options(folder=folder, port=port),
                f"--init-file={init_file}",
                "--skip-log-bin",
                "--innodb-buffer-pool-size=256M",
                # Commits survive SIGKILL, but not a power cut.
                "--innodb-flush-log-at-trx-commit=2",
                # The default before MariaDB 11.6.2. Older servers do not know the option.
                "--loose-innodb-snapshot-isolation=OFF",
                *options,
            ],
        )
        with serving(server):
            yield server


def create_data(*, folder: Path, password: str) -> Path:
    """Create MariaDB's data files; return the SQL file that creates the database and its user."""
    run_in_folder(
        name=MariaDB.name,
        folder=folder,
        executable=find_program("mariadb-install-db"),
        command=[
            "mariadb-install-db",
            "--no-defaults",
            *data_options(folder=folder),
            # root can connect only through the private socket.
            "--auth-root-authentication-method=socket",
            "--skip-test-db",
        ],
    )
    init_file = folder / "init.sql"
    init_file.write_text(
        "CREATE DATABASE IF NOT EXISTS catalog;\n"
        f"CREATE USER IF NOT EXISTS catalog@'%' IDENTIFIED BY '{password}';\n"
        "GRANT ALL ON *.* TO catalog@'%' WITH GRANT OPTION;\n"
    )
    return init_file


def create_certificate(*, folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for HOST; return its file and the file of its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "365", "-subj", f"/CN={HOST}"),
            *("-addext", f"subjectAltName=IP:{HOST}", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def mariadbd_options(*, folder: Path, port: int) -> list[str]:
    certificate, key = create_certificate(folder=folder)
    return [
        *data_options(folder=folder),
        f"--ssl-cert={certificate}",
        f"--ssl-key={key}",
        f"--bind-address={HOST}",
        f"--port={port}",
        # Relative to the data folder, because the length of a socket's path is limited.
        "--socket=socket",
        "--pid-file=pid",
        "--character-set-server=utf8mb4",
    ]


def data_options(*, folder: Path) -> list[str]:
    options = [f"--datadir={folder / 'data'}", f"--tmpdir={folder}", "--skip-name-resolve"]
    return [*options, "--user=root"] if os.geteuid() == 0 else options


def database_url(*, port: int, password: str) -> str:
    return f"mysql://catalog:{password}@{HOST}:{port}/catalog"


@contextmanager
def redis(*, options: Sequence[str] = ()) -> Iterator[Redis]:
    """Run a Redis that stores nothing on disk, so a restart empties it.

    `options` are arguments of redis-server. Raises MissingPrograms, or ServerError if Redis does
    not start.
    """
    require(SERVERS)
    with server_folder(name=Redis.name) as folder:
        port = free_port()
        server = Redis(
            port=port,
            url=f"redis://{HOST}:{port}/0",
            folder=folder,
            executable=find_redis(),
            command=[
                "redis-server",
                *("--bind", HOST, "--port", str(port), "--dir", str(folder)),
                *("--save", "", "--appendonly", "no"),
                *options,
            ],
        )
        with serving(server):
            yield server


@contextmanager
def serving(server: Server) -> Iterator[None]:
    """Start the server, and kill it at the end. A clean shutdown would only take longer."""
    try:
        server.start()
        yield
    finally:
        with defer_signals():
            server.kill()


@contextmanager
def server_folder(*, name: str) -> Iterator[Path]:
    """Create a temporary folder that is also deleted after a signal."""
    with raise_on_signals():
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        try:
            yield folder
        finally:
            with defer_signals():
                shutil.rmtree(folder, ignore_errors=True)


def run_in_folder(
    *, name: str, folder: Path, executable: str | None, command: Sequence[str]
) -> None:
    """Run a command that prepares a server. Raises ServerError with the last line of its log."""
    with defer_signals():
        status = _spawn(command, executable=executable, folder=folder).wait()
    if status != 0:
        raise _start_error(name=name, folder=folder)


def _spawn(
    command: Sequence[str], *, executable: str | None, folder: Path
) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            executable=executable,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must not reach a server that tests still use.
        )


def _start_error(*, name: str, folder: Path) -> ServerError:
    # The folder will be deleted. Keep the log.
    log = (folder / "log").rename(folder.with_suffix(".log"))
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # MariaDB's last line is only "Aborting".
    errors = [line for line in lines if "[ERROR]" in line and not line.endswith("Aborting")]
    reason = (errors or lines or ["no output"])[-1]
    return ServerError(f"{name} did not start: {reason} (log: {log})")


def free_port() -> int:
    """Return a free port below the range that the system assigns to clients.

    A client that reconnects in a loop could otherwise get the port of its own server, and then
    connect to itself.
    """
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
    raise ServerError(f"No port is free on {HOST}.")


# The command line --------------------------------------------------------------------

Environment = Callable[[], AbstractContextManager[dict[str, str]]]


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    with mariadb() as database, redis() as cache:
        yield {"DATABASE_URL": database.url, "REDIS_URL": cache.url}


@contextmanager
def _environments(number: int) -> Iterator[dict[str, str]]:
    """Yield the variables of the first set, and those of all sets by process of pytest-xdist."""
    variables: dict[str, str] = {}
    with ExitStack() as stack:
        for index in range(number):
            urls = stack.enter_context(_environment())
            variables |= {f"{name}_gw{index}": url for name, url in urls.items()}
            variables = urls | variables  # the first set has no suffix, too
        yield variables


def main(
    command: Sequence[str],
    *,
    prog: str = "tests.support.servers",
    environment: Environment = _environment,
) -> int:
    """Run the command with the variables of `environment`; return its exit status."""
    if not command or command[0] in ("-h", "--help"):
        print(sys.modules["__main__"].__doc__.strip())
        return 0 if command else 2
    try:
        if command[0] == "--install":
            install([*SERVERS, *BROWSER, *HEADERS])
            _unpack_optional_programs()
            return 0
        if command[0] == "--sets":
            environment = partial(_environments, int(command[1]))
            command = command[2:]
        if shutil.which(command[0]) is None:
            print(f"{prog}: {command[0]}: command not found", file=sys.stderr)
            return 127
        install(SERVERS)
        status = _run(command, environment)
        return status if status >= 0 else 128 - status
    except ServerError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2 if isinstance(error, MissingPrograms) else 1
    except KeyboardInterrupt as interrupt:
        return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def _unpack_optional_programs() -> None:
    try:
        unpack([*CLUSTER, *WEB])
    except MissingPrograms as error:
        print(f"Tests of the cluster and of nginx will fail: {error}", file=sys.stderr)


def _run(command: Sequence[str], environment: Environment) -> int:
    with raise_on_signals(), environment() as variables:
        child = subprocess.Popen(command, env=os.environ | variables)
        try:
            return child.wait()
        except KeyboardInterrupt as interrupt:
            # A terminal sends Ctrl-C to the command, too. SIGTERM reaches this process only.
            if isinstance(interrupt, Terminated):
                child.terminate()
            for stop in (child.terminate, child.kill):
                try:
                    child.wait(STOP_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    stop()
            child.wait()
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
