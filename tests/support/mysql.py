"""Run a private MySQL, which Debian has in its suite `unstable` only.

    python -m tests.support.mysql COMMAND [ARG…]   run COMMAND with DATABASE_URL set

The packages are downloaded once, and unpacked into .cache/mysql with all libraries that they need.
Nothing is installed.
"""

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.programs import UNPACKED, MissingPrograms
from tests.support.servers import (
    HOST,
    Server,
    data_options,
    database_url,
    free_port,
    main,
    run_in_folder,
    server_folder,
    serving,
)

MYSQL = UNPACKED.with_name("mysql")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCE = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian unstable main\n"


class MySQL(Server):
    name = "mysql"
    greeting = b""


@contextmanager
def mysql() -> Iterator[MySQL]:
    """Run a MySQL with one database and a user who has all privileges."""
    _unpack()
    with server_folder(name=MySQL.name) as folder:
        port, password = free_port(), secrets.token_hex(16)
        init_file = folder / "init.sql"
        init_file.write_text(
            "CREATE DATABASE catalog;\n"
            f"CREATE USER catalog@'%' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON *.* TO catalog@'%' WITH GRANT OPTION;\n"
        )
        loader, *command = _mysqld(folder)
        run_in_folder(
            name=MySQL.name,
            folder=folder,
            executable=loader,
            command=[loader, *command, "--initialize-insecure", f"--init-file={init_file}"],
        )
        server = MySQL(
            port=port,
            url=database_url(port=port, password=password),
            folder=folder,
            executable=loader,
            command=[
                *(loader, *command),
                *(f"--bind-address={HOST}", f"--port={port}"),
                *("--socket=socket", "--pid-file=pid", "--mysqlx=OFF", "--skip-log-bin"),
                "--innodb-flush-log-at-trx-commit=2",
            ],
        )
        with serving(server):
            yield server


def _mysqld(folder: Path) -> list[str]:
    """Return the command that runs mysqld with the C library that was unpacked with it."""
    (loader,) = MYSQL.glob("usr/lib/*-linux-gnu/ld-linux-*")
    return [
        str(loader),
        *("--library-path", f"{loader.parent}:{MYSQL / 'usr/lib/mysql/private'}"),
        *(str(MYSQL / "usr/sbin/mysqld"), "--no-defaults", f"--basedir={MYSQL / 'usr'}"),
        *(f"--lc-messages-dir={MYSQL / 'usr/share/mysql'}", "--secure-file-priv="),
        *data_options(folder=folder),
    ]


def _unpack() -> None:
    """Download mysqld and its libraries, beside and independent of the packages of this system."""
    if MYSQL.exists():
        return
    with tempfile.TemporaryDirectory(prefix="packages-") as name:
        folder = Path(name)
        for path in ("state/lists/partial", "cache/archives/partial"):
            (folder / path).mkdir(parents=True)
        (folder / "status").touch()  # No package counts as installed.
        (folder / "sources.list").write_text(SOURCE)
        options = {
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "APT::Sandbox::User": "",  # which may not enter this folder
            "Debug::NoLocking": "1",
        }
        apt = ["apt-get", *(f"-o{key}={value}" for key, value in options.items())]
        install = ["install", "--download-only", "--yes", "--no-install-recommends"]
        for command in (["update"], [*install, "mysql-server-core"]):
            result = subprocess.run([*apt, *command], capture_output=True, text=True)
            if result.returncode != 0:
                error = (result.stderr.strip().splitlines() or ["no output"])[-1]
                raise MissingPrograms(f"apt-get {command[0]} failed: {error}")
        unpacked = folder / "unpacked"
        for package in (folder / "cache/archives").glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
        MYSQL.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(unpacked, MYSQL)


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    with mysql() as database:
        yield {"DATABASE_URL": database.url}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="tests.support.mysql", environment=_environment))
