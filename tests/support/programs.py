"""Find the programs that tests need. Install missing ones with apt-get, if that is allowed.

Packages that would start a service are only unpacked, into .cache/programs.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNPACKED = Path(__file__).resolve().parent.parent.parent / ".cache" / "programs"


class ServerError(Exception):
    """A server cannot be used. The message is one line."""


class MissingPrograms(ServerError):
    """Programs have to be installed first. The message names their packages."""


@dataclass(frozen=True, kw_only=True)
class Program:
    name: str
    package: str  # Debian's name
    is_installed: Callable[[], object]


def find_program(*names: str) -> str | None:
    """Return the path of the first of these programs that exists."""
    # An ordinary user's PATH does not include the folders of servers.
    folders = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/libexec"]
    folders += [str(UNPACKED / "usr" / folder) for folder in ("bin", "sbin")]
    path = os.pathsep.join(folders)
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


def find_redis() -> str | None:
    # Debian's redis-tools includes the server as redis-check-rdb: one executable with two names.
    return find_program("redis-server", "valkey-server", "redis-check-rdb", "valkey-check-rdb")


def find_chromium() -> str | None:
    # Ubuntu's package is only a wrapper around a snap.
    return find_program("chromium", "google-chrome-stable")


def find_galera() -> Path | None:
    """Return Galera's library."""
    folders = [Path("/usr", name) for name in ("lib/galera", "lib64/galera-4", "lib64/galera")]
    files = [folder / "libgalera_smm.so" for folder in (*folders, UNPACKED / "usr/lib/galera")]
    return next((file for file in files if file.exists()), None)


def chromium_options() -> dict[str, Any]:
    """Return the options with which Playwright starts Chromium. Raises MissingPrograms."""
    require(BROWSER)
    # Chromium's sandbox does not start for root.
    arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    return {"executable_path": find_chromium(), "args": arguments}


def _has_client_headers() -> bool:
    # mysqlclient's build looks for the same names.
    names = ("mysqlclient", "mariadb", "libmariadb", "perconaserverclient")
    return find_program("pkg-config") is not None and any(
        subprocess.run(["pkg-config", "--exists", name], capture_output=True).returncode == 0
        for name in names
    )


def _program(name: str, package: str) -> Program:
    return Program(name=name, package=package, is_installed=lambda: find_program(name))


# Packages that start no service.
SERVERS = (
    Program(
        name="MariaDB's server",
        package="mariadb-server-core",
        is_installed=lambda: find_program("mariadbd") and find_program("mariadb-install-db"),
    ),
    _program("mariadb", package="mariadb-client-core"),
    Program(name="Redis", package="redis-tools", is_installed=find_redis),
    _program("openssl", package="openssl"),  # creates certificates
)
BROWSER = (Program(name="Chromium", package="chromium", is_installed=find_chromium),)
HEADERS = (  # mysqlclient is compiled.
    Program(
        name="a C compiler",
        package="gcc",
        is_installed=lambda: find_program((sysconfig.get_config_var("CC") or "cc").split()[0]),
    ),
    _program("pkg-config", package="pkg-config"),
    Program(
        name="the headers of MariaDB's client",
        package="libmariadb-dev",
        is_installed=_has_client_headers,
    ),
    Program(
        name="Python's headers",
        package=f"python{sysconfig.get_python_version()}-dev",
        is_installed=lambda: Path(sysconfig.get_path("include"), "Python.h").exists(),
    ),
)

# Packages that are unpacked if they are missing.
CLUSTER = (
    Program(name="Galera", package="galera-4", is_installed=find_galera),
    # Nodes copy their data to each other with scripts of this package.
    _program("wsrep_sst_rsync", package="mariadb-server"),
    _program("rsync", package="rsync"),
    _program("haproxy", package="haproxy"),
    Program(name="lsof", package="lsof", is_installed=lambda: find_program("lsof", "ss")),
    _program("ps", package="procps"),
)
WEB = (_program("nginx", package="nginx"),)


def require(programs: Sequence[Program]) -> None:
    """Raise MissingPrograms unless all programs are installed."""
    if missing := _missing(programs):
        raise MissingPrograms(
            f"{', '.join(program.name for program in missing)} not found. "
            f"Install these packages (Debian's names): {_packages(missing)}"
        )


def install(programs: Sequence[Program]) -> None:
    """Install missing programs with apt-get, for root or with sudo. Raises MissingPrograms."""
    missing, apt = _missing(programs), _apt_get()
    if missing and apt:
        packages = _packages(missing)
        print(f"Installing {packages}", file=sys.stderr)
        # Package lists may be good enough if they cannot be updated.
        _run(*apt, "update")
        # --no-remove keeps a MySQL that is installed here.
        options = ("--yes", "--no-install-recommends", "--no-remove")
        result = _run(*apt, "install", *options, *packages.split())
        if result.returncode != 0:
            lines = result.stdout.strip().splitlines()
            errors = [line for line in lines if line.startswith("E: ")] or lines[-1:]
            raise MissingPrograms(f"apt-get install {packages} failed: {' '.join(errors[-1:])}")
    require(programs)


def unpack(programs: Sequence[Program]) -> None:
    """Download the packages of missing programs and unpack them. Raises MissingPrograms."""
    missing = _missing(programs)
    if missing and find_program("apt-get") and find_program("dpkg-deb"):
        print(f"Unpacking {_packages(missing)} into {UNPACKED}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="packages-") as folder:
            _download(missing, folder=Path(folder))
            UNPACKED.mkdir(parents=True, exist_ok=True)
            for package in Path(folder).glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", package, UNPACKED], check=True)
    require(programs)


def _missing(programs: Sequence[Program]) -> list[Program]:
    return [program for program in programs if not program.is_installed()]


def _packages(programs: Sequence[Program]) -> str:
    return " ".join(program.package for program in programs)


def _download(programs: Sequence[Program], *, folder: Path) -> None:
    if apt := _apt_get():
        _run(*apt, "update")
    (folder / "partial").mkdir()
    with_libraries = [
        *("-o", f"Dir::Cache::archives={folder}", "-o", "Debug::NoLocking=1"),
        *("install", "--download-only", "--yes", "--no-remove", "--no-install-recommends"),
    ]
    for program in programs:
        # Only scripts of mariadb-server are used, and they need no libraries.
        how = ["download"] if program.package == "mariadb-server" else with_libraries
        _run("apt-get", *how, program.package, cwd=folder)


def _apt_get() -> list[str] | None:
    """Return the command that runs apt-get as root, if the user may."""
    if find_program("apt-get") is None:
        return None
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
    if os.geteuid() == 0:
        return apt
    if find_program("sudo") and _run("sudo", "-n", "true").returncode == 0:
        return ["sudo", "-n", *apt]
    return None


def _run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
