"""Run a Galera cluster of three private MariaDB nodes behind HAProxy.

    python -m tests.support.cluster COMMAND [ARG…]   run COMMAND with these variables:
        DATABASE_URL           all nodes, through HAProxy
        CLUSTER_ONE_NODE_URL   one node, through HAProxy, until that node fails
        CLUSTER_NODE_URLS      the nodes themselves, comma-separated
        REDIS_URL
    python -m tests.support.servers --install        install missing programs

The nodes and HAProxy use the files in docs/cluster/, with other paths, addresses and sizes. All
data is deleted at the end.
"""

import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tests.support.programs import (
    CLUSTER,
    SERVERS,
    UNPACKED,
    ServerError,
    find_galera,
    find_program,
    require,
    unpack,
)
from tests.support.servers import (
    HOST,
    MariaDB,
    Server,
    create_data,
    database_url,
    free_port,
    main,
    mariadbd_options,
    redis,
    run_in_folder,
    server_folder,
    serving,
)

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "cluster"
SYNC_SECONDS = 60
NEVER_A_MEMBER = "00000000-0000-0000-0000-000000000000:-1"


@dataclass(kw_only=True)
class Node(MariaDB):
    """One MariaDB of the cluster."""

    password: str = field(repr=False)
    group_port: int
    init_file: Path | None = field(default=None, repr=False)
    others: "list[Node]" = field(default_factory=list, repr=False)

    def start(self) -> None:
        """Join the running nodes, or start a new cluster if none runs. Return when synced."""
        if self.is_running():
            return
        cluster_runs = any(node.is_running() for node in self.others)
        addresses = ",".join(f"{HOST}:{node.group_port}" for node in [self, *self.others])
        options = [f"--wsrep-cluster-address=gcomm://{addresses}"]
        if not cluster_runs:
            # Galera refuses this option on a node that may miss transactions of another node.
            options.append("--wsrep-new-cluster")
        if self.init_file and not cluster_runs:
            options.append(f"--init-file={self.init_file}")
        base_command = self.command
        try:
            position = f"--wsrep-start-position={self._recover_position()}"
            self.command = [*base_command, *options, position]
            super().start()
        finally:
            self.command = base_command

    def query(self, sql: str) -> str:
        """Run SQL on this node with MariaDB's client. Return nothing if the client fails."""
        result = subprocess.run(
            [
                *("mariadb", "--no-defaults", "--batch", "--skip-column-names", "--user=catalog"),
                *(f"--host={HOST}", f"--port={self.port}", "--connect-timeout=2"),
                *("--execute", sql, "catalog"),
            ],
            env=os.environ | {"MYSQL_PWD": self.password},
            capture_output=True,
            text=True,
        )
        return result.stdout if result.returncode == 0 else ""

    def status(self) -> Mapping[str, str]:
        """Return the node's wsrep status variables. Empty if the node does not answer."""
        lines = self.query("SHOW STATUS LIKE 'wsrep%'").splitlines()
        return dict(line.split("\t", 1) for line in lines if "\t" in line)

    def is_synced(self) -> bool:
        status = self.status()
        return (
            status.get("wsrep_ready") == "ON"
            and status.get("wsrep_cluster_status") == "Primary"
            and status.get("wsrep_local_state_comment") == "Synced"
        )

    def is_ready(self) -> bool:
        # A node accepts connections long before it is synced.
        return super().is_ready() and self.is_synced()

    def _recover_position(self) -> str:
        """Return the last transaction in the node's data.

        A killed node has not written it to grastate.dat, so mariadbd reads it from InnoDB's log.
        """
        if not (self.folder / "data" / "grastate.dat").exists():
            return NEVER_A_MEMBER
        log = self.folder / "recovery.log"
        log.unlink(missing_ok=True)
        run_in_folder(
            name=self.name,
            folder=self.folder,
            executable=self.executable,
            command=[*self.command, "--wsrep-recover", f"--log-error={log}"],
        )
        positions = re.findall(r"Recovered position: *(\S+)", log.read_text(errors="replace"))
        return positions[-1].split(",")[0] if positions else NEVER_A_MEMBER


@dataclass(kw_only=True)
class HAProxy(Server):
    name: ClassVar[str] = "haproxy"
    greeting: ClassVar[bytes] = b""  # A node answers through HAProxy.

    one_node_url: str


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes, which can be killed and started, and HAProxy, which connects to running ones."""

    nodes: list[Node]
    proxy: HAProxy

    @property
    def url(self) -> str:
        """All nodes, through HAProxy."""
        return self.proxy.url

    @property
    def one_node_url(self) -> str:
        """One node, through HAProxy, until that node fails."""
        return self.proxy.one_node_url

    @property
    def node_urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def wait_until_synced(self) -> None:
        """Return when every node is synced and sees all others. Raises ServerError."""
        deadline = time.monotonic() + SYNC_SECONDS
        size = str(len(self.nodes))
        while not all(
            node.is_synced() and node.status().get("wsrep_cluster_size") == size
            for node in self.nodes
        ):
            if time.monotonic() > deadline:
                raise ServerError(f"The cluster is not synced after {SYNC_SECONDS} seconds.")
            time.sleep(0.1)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run three nodes with one database and a user who has all privileges, and HAProxy.

    Raises MissingPrograms, or ServerError if a server does not start.
    """
    require(SERVERS)
    require(CLUSTER)
    password = secrets.token_hex(16)
    with ExitStack() as stack:
        nodes = []
        for number in (1, 2, 3):
            folder = stack.enter_context(server_folder(name=f"node{number}"))
            nodes.append(_node(number=number, folder=folder, password=password))
        nodes[0].init_file = create_data(folder=nodes[0].folder, password=password)
        with nodes[0].init_file.open("a") as init_file:
            init_file.write("CREATE USER IF NOT EXISTS haproxy@'%';\n")
        for node in nodes:
            node.others = [other for other in nodes if other is not node]
            stack.enter_context(serving(node))
        proxy = _haproxy(folder=stack.enter_context(server_folder(name="haproxy")), nodes=nodes)
        stack.enter_context(serving(proxy))
        servers = Cluster(nodes=nodes, proxy=proxy)
        servers.wait_until_synced()
        yield servers


def _node(*, number: int, folder: Path, password: str) -> Node:
    port, group_port, sst_port, ist_port = (free_port() for _ in range(4))
    (folder / "data").mkdir(exist_ok=True)
    provider_options = "; ".join(
        [
            _documented_option("wsrep_provider_options"),
            "gcache.size=64M",
            f"gmcast.listen_addr=tcp://{HOST}:{group_port}",
            f"ist.recv_addr={HOST}:{ist_port}",
        ]
    )
    return Node(
        port=port,
        group_port=group_port,
        url=database_url(port=port, password=password),
        password=password,
        folder=folder,
        executable=find_program("env"),
        command=[
            "env",
            *_search_paths(*([_folder_with_root_rsync(folder)] if os.geteuid() == 0 else [])),
            find_program("mariadbd") or "mariadbd",
            f"--defaults-file={DOCS / 'galera.cnf'}",
            *mariadbd_options(folder=folder, port=port),
            f"--wsrep-provider={find_galera()}",
            f"--wsrep-node-name=db{number}",
            f"--wsrep-node-address={HOST}",
            f"--wsrep-node-incoming-address={HOST}:{port}",
            f"--wsrep-sst-receive-address={HOST}:{sst_port}",
            f"--wsrep-provider-options={provider_options}",
            "--innodb-buffer-pool-size=256M",
        ],
    )


def _haproxy(*, folder: Path, nodes: Sequence[Node]) -> HAProxy:
    one_node_port, all_nodes_port = free_port(), free_port()
    addresses = {
        "127.0.0.1:3306": f"{HOST}:{one_node_port}",
        "127.0.0.1:3307": f"{HOST}:{all_nodes_port}",
    }
    for number, node in enumerate(nodes, start=1):
        addresses[f"10.0.0.1{number}:3306"] = f"{HOST}:{node.port}"
    text = (DOCS / "haproxy.cfg").read_text()
    for documented, actual in addresses.items():
        assert documented in text, f"docs/cluster/haproxy.cfg does not contain {documented}"
        text = text.replace(documented, actual)
    config = folder / "haproxy.cfg"
    config.write_text(text)
    password = nodes[0].password
    return HAProxy(
        port=all_nodes_port,
        url=database_url(port=all_nodes_port, password=password),
        one_node_url=database_url(port=one_node_port, password=password),
        folder=folder,
        executable=find_program("env"),
        command=[
            "env",
            *_search_paths(),
            find_program("haproxy") or "haproxy",
            "-db",
            "-f",
            config,
        ],
    )


def _search_paths(*first: Path) -> list[str]:
    """Return PATH and LD_LIBRARY_PATH, so that installed and unpacked programs find each other."""
    programs = [*first, os.environ.get("PATH", os.defpath), "/usr/sbin"]
    programs += [UNPACKED / "usr" / name for name in ("bin", "sbin")]
    libraries = [path] if (path := os.environ.get("LD_LIBRARY_PATH")) else []
    libraries += sorted((UNPACKED / "usr" / "lib").glob("*-linux-gnu"))
    return [
        f"PATH={os.pathsep.join(map(str, programs))}",
        f"LD_LIBRARY_PATH={os.pathsep.join(map(str, libraries))}",
    ]


def _folder_with_root_rsync(folder: Path) -> Path:
    """Return a folder with an rsync whose daemon writes as root instead of as nobody."""
    program = folder / "bin" / "rsync"
    program.parent.mkdir(exist_ok=True)
    rsync = shlex.quote(find_program("rsync") or "rsync")
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--daemon*) set -- "$@" --dparam=uid=0 --dparam=gid=0;; esac\n'
        f'exec {rsync} "$@"\n'
    )
    program.chmod(0o700)
    return program.parent


def _documented_option(name: str) -> str:
    lines = (DOCS / "galera.cnf").read_text().splitlines()
    (value,) = (line.partition("=")[2] for line in lines if line.startswith(f"{name} ="))
    return value.strip().strip('"')


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    unpack(CLUSTER)
    with cluster() as servers, redis() as cache:
        yield {
            "DATABASE_URL": servers.url,
            "CLUSTER_ONE_NODE_URL": servers.one_node_url,
            "CLUSTER_NODE_URLS": ",".join(servers.node_urls),
            "REDIS_URL": cache.url,
        }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="tests.support.cluster", environment=_environment))
