"""A private MariaDB and a private Redis on free ports, gone with everything they wrote at the end.

    python -m tests.support.servers COMMAND [ARG…]   run COMMAND with DATABASE_URL and REDIS_URL set
    python -m tests.support.servers --install        only make sure that the programs are there
    python -m tests.support.cluster COMMAND [ARG…]   the same on three MariaDB nodes: see there

Servers that already run here are neither used nor disturbed, and no configuration file is read.
"""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

HOST = "127.0.0.1"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_SECONDS = 60
STOP_SECONDS = 30
COMMAND_SECONDS = 10
# Programs whose packages would start a service: their files, unpacked for us alone.
UNPACKED = Path(__file__).resolve().parent.parent.parent / ".cache" / "cluster"


Environment = Callable[[], AbstractContextManager[dict[str, str]]]


class ServerError(Exception):
    """A server that can't be had; the message is one line."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, to be treated as Ctrl-C is."""


class MissingPrograms(ServerError):
    """Something has to be installed first; the message names it."""


@dataclass(kw_only=True)
class Server:
    """One server process, which can be stopped, killed, paused and started again where it was."""

    name: ClassVar[str]
    hello: ClassVar[bytes]

    port: int
    url: str
    folder: Path = field(repr=False)
    command: Sequence[str] = field(repr=False)
    executable: str | None = field(repr=False)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Return when it answers. Does nothing when it already runs."""
        if self._running():
            return
        with _undisturbed():
            self.process = _spawn(
                command=self.command, executable=self.executable, folder=self.folder
            )
        give_up = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self._running() or time.monotonic() > give_up:
                self.kill()
                raise _failed(name=self.name, folder=self.folder)
            time.sleep(0.02)

    def stop(self) -> None:
        """Shut down in good order; MariaDB writes everything out."""
        if self.process is None:
            return
        self.process.terminate()
        # A paused process acts on nothing but SIGKILL and this.
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def signal(self, number: signal.Signals, /) -> None:
        """SIGSTOP makes it hang with its connections open, SIGCONT lets it go on."""
        if self.process is not None:
            self.process.send_signal(number)

    def _running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _answers(self) -> bool:
        # Accepted is not served: the port opens before the server is ready.
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1) as peer:
            peer.sendall(self.hello)
            return bool(peer.recv(1)) and self._running()
        return False


class MariaDB(Server):
    name = "mariadb"
    hello = b""


class Redis(Server):
    name = "redis"
    hello = b"PING\r\n"


@contextmanager
def mariadb(*, options: Sequence[str] = ()) -> Iterator[MariaDB]:
    """A MariaDB with one database and a user that may do everything; options go to mariadbd.

    Raises MissingPrograms, or ServerError when it doesn't come up.
    """
    _require(SERVERS)
    with _folder(name=MariaDB.name) as folder:
        port, password = free_port(), secrets.token_hex(16)
        init = _new_data(folder=folder, password=password)
        server = MariaDB(
            port=port,
            url=_url(port=port, password=password),
            folder=folder,
            executable=_which("mariadbd"),
            command=[
                "mariadbd",
                "--no-defaults",
                *_places(folder=folder, port=port),
                f"--init-file={init}",
                "--skip-log-bin",
                "--innodb-buffer-pool-size=256M",
                # What was committed outlives SIGKILL, though not a power cut.
                "--innodb-flush-log-at-trx-commit=2",
                *options,
            ],
        )
        with _serving(server):
            yield server


def _new_data(*, folder: Path, password: str) -> Path:
    """Make the data of a MariaDB; return the script that makes its database and user."""
    init = folder / "init.sql"
    init.write_text(
        "CREATE DATABASE IF NOT EXISTS catalog;\n"
        f"CREATE USER IF NOT EXISTS catalog@'%' IDENTIFIED BY '{password}';\n"
        "GRANT ALL ON *.* TO catalog@'%' WITH GRANT OPTION;\n"
    )
    _set_up(
        name=MariaDB.name,
        folder=folder,
        executable=_which("mariadb-install-db"),
        command=[
            "mariadb-install-db",
            "--no-defaults",
            *_data(folder=folder),
            # root comes in through the private socket only, with no password to guess.
            "--auth-root-authentication-method=socket",
            "--skip-test-db",
        ],
    )
    return init


def _data(*, folder: Path) -> list[str]:
    options = [f"--datadir={folder / 'data'}", f"--tmpdir={folder}", "--skip-name-resolve"]
    return [*options, "--user=root"] if os.geteuid() == 0 else options


def _places(*, folder: Path, port: int) -> list[str]:
    return [
        *_data(folder=folder),
        f"--bind-address={HOST}",
        f"--port={port}",
        # Relative to the data: a full path may be longer than a socket's can be.
        "--socket=socket",
        "--pid-file=pid",
        "--character-set-server=utf8mb4",
    ]


def _url(*, port: int, password: str) -> str:
    return f"mysql://catalog:{password}@{HOST}:{port}/catalog"


@contextmanager
def redis(*, options: Sequence[str] = ()) -> Iterator[Redis]:
    """A Redis that keeps nothing on disk, so a restart empties it; options go to redis-server.

    Raises MissingPrograms, or ServerError when it doesn't come up.
    """
    _require(SERVERS)
    with _folder(name=Redis.name) as folder:
        port = free_port()
        server = Redis(
            port=port,
            url=f"redis://{HOST}:{port}/0",
            folder=folder,
            executable=_redis_program(),
            command=[
                "redis-server",
                *("--bind", HOST, "--port", str(port), "--dir", str(folder)),
                *("--save", "", "--appendonly", "no"),
                *options,
            ],
        )
        with _serving(server):
            yield server


@contextmanager
def _serving(server: Server) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        # Its data goes away with it: an orderly end would only take longer.
        with _undisturbed():
            server.kill()


@contextmanager
def _folder(*, name: str) -> Iterator[Path]:
    with _unwound_by_signals():
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        try:
            yield folder
        finally:
            with _undisturbed():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _unwound_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, or the servers would outlive the tests."""
    with _handled(by=_unwind, instead_of=lambda handler: handler is signal.SIG_DFL):
        yield


def _unwind(number: int, _: object) -> None:
    # Signals come in twos (make and timeout do it); the second must not cut the clean-up short.
    for each in SIGNALS:
        signal.signal(each, lambda *_: None)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put signals off: what is half started or half removed would stay for ever."""
    arrived: list[int] = []
    try:
        with _handled(by=lambda number, _: arrived.append(number), instead_of=callable):
            yield
    finally:
        for number in arrived[:1]:
            signal.raise_signal(number)


@contextmanager
def _handled(
    *, by: Callable[[int, object], None], instead_of: Callable[[object], bool]
) -> Iterator[None]:
    # Python handles signals in its main thread only, and lets no other thread say how.
    before = {
        number: handler
        for number in SIGNALS
        if threading.current_thread() is threading.main_thread()
        and instead_of(handler := signal.getsignal(number))
    }
    for number in before:
        signal.signal(number, by)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _spawn(
    *, command: Sequence[str], executable: str | None, folder: Path
) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        # Its own session: Ctrl-C is for the tests, which may still need their server.
        return subprocess.Popen(
            command,
            executable=executable,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _set_up(*, name: str, folder: Path, executable: str | None, command: Sequence[str]) -> None:
    with _undisturbed():
        status = _spawn(command=command, executable=executable, folder=folder).wait()
    if status != 0:
        raise _failed(name=name, folder=folder)


def _failed(*, name: str, folder: Path) -> ServerError:
    # The folder goes; what explains the failure stays.
    log = (folder / "log").rename(folder.with_suffix(".log"))
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # MariaDB's own last word is only "Aborting".
    errors = [line for line in lines if "[ERROR]" in line and not line.endswith("Aborting")]
    last = (errors or lines or ["it said nothing"])[-1]
    return ServerError(f"{name} didn't start: {last} (log: {log})")


def free_port() -> int:
    # Below the ports that the system gives to clients: one that reconnects in a loop would sooner
    # or later be given the port of the server it is waiting for, and talk to itself.
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
    raise ServerError(f"no free port on {HOST}")


def _which(program: str) -> str | None:
    # The servers live where the PATH of an ordinary user doesn't look.
    ours = [str(UNPACKED / "usr" / name) for name in ("bin", "sbin")]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/libexec", *ours])
    return shutil.which(program, path=path)


def _redis_program() -> str | None:
    # Debian's redis-tools has the server without its service: redis-check-rdb is the same program,
    # and goes by the name it is called with.
    names = ("redis-server", "valkey-server", "redis-check-rdb", "valkey-check-rdb")
    return next(filter(None, map(_which, names)), None)


def chromium() -> str | None:
    """The program that the browser tests drive, or None."""
    # Ubuntu's are only shells around a snap.
    return next(filter(None, map(_which, ("chromium", "google-chrome-stable"))), None)


def chromium_options() -> dict[str, Any]:
    """How Playwright starts it. Raises MissingPrograms."""
    _require(BROWSER)
    # Its sandbox doesn't start for root.
    arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    return {"executable_path": chromium(), "args": arguments}


def _galera() -> Path | None:
    names = ("lib/galera", "lib64/galera-4", "lib64/galera")
    folders = (Path("/usr", name) for name in names)
    files = (folder / "libgalera_smm.so" for folder in (*folders, UNPACKED / "usr/lib/galera"))
    return next((file for file in files if file.exists()), None)


def _has_library() -> bool:
    # The names that mysqlclient's own build asks for.
    return _which("pkg-config") is not None and any(
        subprocess.run(["pkg-config", "--exists", name], capture_output=True).returncode == 0
        for name in ("mysqlclient", "mariadb", "libmariadb", "perconaserverclient")
    )


@dataclass(frozen=True, kw_only=True)
class Need:
    what: str
    package: str
    met: Callable[[], object]


# Only packages that start no service of their own.
SERVERS = (
    Need(
        what="MariaDB's server",
        package="mariadb-server-core",
        met=lambda: _which("mariadbd") and _which("mariadb-install-db"),
    ),
    Need(
        what="MariaDB's client",
        package="mariadb-client-core",
        met=lambda: _which("mariadb"),
    ),
    Need(what="Redis", package="redis-tools", met=_redis_program),
)
# Of mariadb-server only the scripts are wanted by which one node copies another.
CLUSTER = (
    Need(what="Galera", package="galera-4", met=_galera),
    Need(
        what="Galera's scripts",
        package="mariadb-server",
        met=lambda: _which("wsrep_sst_rsync"),
    ),
    Need(what="rsync", package="rsync", met=lambda: _which("rsync")),
    Need(what="HAProxy", package="haproxy", met=lambda: _which("haproxy")),
    Need(what="lsof", package="lsof", met=lambda: _which("lsof") or _which("ss")),
    Need(what="ps", package="procps", met=lambda: _which("ps")),
)
# What stands before the site in docs/deployment.
WEB = (
    Need(what="nginx", package="nginx", met=lambda: _which("nginx")),
    Need(what="OpenSSL", package="openssl", met=lambda: _which("openssl")),
)
BROWSER = (Need(what="Chromium", package="chromium", met=lambda: chromium()),)
# To compile mysqlclient.
HEADERS = (
    Need(
        what="a C compiler",
        package="gcc",
        met=lambda: _which((sysconfig.get_config_var("CC") or "cc").split()[0]),
    ),
    Need(what="pkg-config", package="pkg-config", met=lambda: _which("pkg-config")),
    Need(what="the headers of MariaDB's client", package="libmariadb-dev", met=_has_library),
    Need(
        what="Python's headers",
        package=f"python{sysconfig.get_python_version()}-dev",
        met=lambda: Path(sysconfig.get_path("include"), "Python.h").exists(),
    ),
)


def _missing(needs: Sequence[Need]) -> list[Need]:
    return [need for need in needs if not need.met()]


def _require(needs: Sequence[Need]) -> None:
    if missing := _missing(needs):
        raise MissingPrograms(
            f"not found: {', '.join(need.what for need in missing)}; please install "
            f"(Debian's names: {' '.join(need.package for need in missing)})"
        )


def install(*needs: Need) -> None:
    """Install what is missing, where apt-get is there and may be used.

    Raises MissingPrograms.
    """
    missing = _missing(needs)
    apt = _apt_get()
    if missing and apt:
        packages = [need.package for need in missing]
        print(f"tests.support.servers: installing {' '.join(packages)}", file=sys.stderr)
        # Old lists may still do, so only the second answer counts.
        subprocess.run([*apt, "update"], capture_output=True, stdin=subprocess.DEVNULL)
        # --no-remove: the MySQL that somebody uses here is not ours to replace.
        done = subprocess.run(
            [*apt, "install", "--yes", "--no-install-recommends", "--no-remove", *packages],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            lines = done.stdout.strip().splitlines() or ["it said nothing"]
            errors = [line for line in lines if line.startswith("E: ")]
            raise MissingPrograms(
                f"apt-get install {' '.join(packages)} failed: {(errors or lines)[-1]}"
            )
    _require(needs)


def unpack(*needs: Need) -> None:
    """Fetch what is missing into a folder of this project, and install nothing.

    Raises MissingPrograms.
    """
    packages = [need.package for need in _missing(needs)]
    if packages and _which("apt-get") and _which("dpkg-deb"):
        print(
            f"tests.support.servers: unpacking {' '.join(packages)} into {UNPACKED}",
            file=sys.stderr,
        )
        with _folder(name="packages") as folder:
            _download(packages, folder=folder)
            UNPACKED.mkdir(parents=True, exist_ok=True)
            (UNPACKED.parent / ".gitignore").write_text("*\n")
            for package in folder.glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", package, UNPACKED], check=True)
    _require(needs)


def _download(packages: Sequence[str], *, folder: Path) -> None:
    if apt := _apt_get():
        subprocess.run([*apt, "update"], capture_output=True, stdin=subprocess.DEVNULL)
    (folder / "partial").mkdir()
    here = ["-o", f"Dir::Cache::archives={folder}", "-o", "Debug::NoLocking=1"]
    whole = ["install", "--download-only", "--yes", "--no-remove", "--no-install-recommends"]
    for name in packages:
        # With the libraries that are not installed; scripts need none.
        how = ["download"] if name == "mariadb-server" else [*here, *whole]
        subprocess.run(
            ["apt-get", *how, name], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True
        )


def _apt_get() -> list[str] | None:
    if _which("apt-get") is None:
        return None
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
    if os.geteuid() == 0:
        return apt
    if (
        _which("sudo") is None
        or subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode
    ):
        return None
    return ["sudo", "-n", *apt]


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    with mariadb() as database, redis() as cache:
        yield {"DATABASE_URL": database.url, "REDIS_URL": cache.url}


def _run(command: Sequence[str], environment: Environment) -> int:
    ctrl_c = _handled(by=_unwind, instead_of=lambda handler: handler is signal.default_int_handler)
    with ctrl_c, environment() as urls:
        child = subprocess.Popen(command, env=os.environ | urls)
        try:
            return child.wait()
        except KeyboardInterrupt as stopped:
            # A terminal's Ctrl-C has reached COMMAND too; SIGTERM has not.
            if isinstance(stopped, Terminated):
                child.terminate()
            for force in (child.terminate, child.kill):
                try:
                    child.wait(COMMAND_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    force()
            child.wait()
            raise


def main(
    command: Sequence[str],
    *,
    of: str = "tests.support.servers",
    environment: Environment = _environment,
) -> int:
    if not command or command[0] in ("-h", "--help"):
        print(sys.modules["__main__"].__doc__.strip())
        return 0 if command else 2
    try:
        if command[0] == "--install":
            install(*SERVERS, *BROWSER, *HEADERS)
            _unpack_if_possible()
            return 0
        if shutil.which(command[0]) is None:
            print(f"{of}: {command[0]}: no such command", file=sys.stderr)
            return 127
        install(*SERVERS)
        status = _run(command, environment)
        return status if status >= 0 else 128 - status
    except ServerError as error:
        print(f"{of}: {error}", file=sys.stderr)
        return 2 if isinstance(error, MissingPrograms) else 1
    except KeyboardInterrupt as stopped:
        return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


def _unpack_if_possible() -> None:
    try:
        unpack(*CLUSTER, *WEB)
    except MissingPrograms as error:
        # One server is enough for all tests but those of the cluster, and of nginx.
        print(f"tests.support.servers: no cluster or no nginx here: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
