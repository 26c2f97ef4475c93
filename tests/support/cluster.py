"""A Galera cluster on this machine, behind HAProxy; gone with all it wrote at the end.

    python -m tests.support.cluster COMMAND [ARG…]   run COMMAND with these set:
        DATABASE_URL           through HAProxy, to all nodes
        CLUSTER_ONE_NODE_URL   through HAProxy, to one node until it dies
        CLUSTER_NODE_URLS      past HAProxy, comma-separated
        REDIS_URL
    python -m tests.support.servers --install        only make sure that the programs are there

Nodes and HAProxy are started with the files in docs/cluster/, where each setting has its reason.
Changed here are paths, addresses and sizes only.
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

from tests.support.servers import (
    CLUSTER,
    HOST,
    SERVERS,
    UNPACKED,
    MariaDB,
    Server,
    ServerError,
    _folder,
    _galera,
    _new_data,
    _places,
    _require,
    _serving,
    _set_up,
    _url,
    _which,
    free_port,
    main,
    redis,
    unpack,
)

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "cluster"
SYNCED_SECONDS = 60
NEVER_A_MEMBER = "00000000-0000-0000-0000-000000000000:-1"


@dataclass(kw_only=True)
class Node(MariaDB):
    """One MariaDB of the cluster. `start()` returns when it has all the others have."""

    password: str = field(repr=False)
    group_port: int
    init: Path | None = field(default=None, repr=False)
    others: "list[Node]" = field(default_factory=list, repr=False)

    def start(self) -> None:
        """Join the nodes that run; be the first of a new cluster only where there was none."""
        if self._running():
            return
        alive = [node for node in self.others if node._running()]
        addresses = ",".join(f"{HOST}:{node.group_port}" for node in [self, *self.others])
        joining = [f"--wsrep-cluster-address=gcomm://{addresses}"]
        if not alive:
            # Refused by the node itself where another one may know more than it does.
            joining.append("--wsrep-new-cluster")
        if self.init and not alive:
            joining.append(f"--init-file={self.init}")
        common = self.command
        try:
            self.command = [*common, *joining, f"--wsrep-start-position={self._position()}"]
            super().start()
        finally:
            self.command = common

    def status(self) -> Mapping[str, str]:
        """What SHOW STATUS LIKE 'wsrep%' says; empty where there is no answer."""
        lines = self.query("SHOW STATUS LIKE 'wsrep%'").splitlines()
        return dict(line.split("\t", 1) for line in lines if "\t" in line)

    def query(self, sql: str) -> str:
        """Run SQL on this very node with the client; an empty answer where it fails."""
        done = subprocess.run(
            [
                *("mariadb", "--no-defaults", "--batch", "--skip-column-names", "--user=catalog"),
                *(f"--host={HOST}", f"--port={self.port}", "--connect-timeout=2"),
                *("--execute", sql, "catalog"),
            ],
            env=os.environ | {"MYSQL_PWD": self.password},
            capture_output=True,
            text=True,
        )
        return done.stdout if done.returncode == 0 else ""

    def is_synced(self) -> bool:
        status = self.status()
        return (
            status.get("wsrep_ready") == "ON"
            and status.get("wsrep_cluster_status") == "Primary"
            and status.get("wsrep_local_state_comment") == "Synced"
        )

    def _answers(self) -> bool:
        # A node answers long before it has what the others have.
        return super()._answers() and self.is_synced()

    def _position(self) -> str:
        """How far its data are. A killed node has no note of it but in InnoDB's log."""
        note = self.folder / "data" / "grastate.dat"
        if not note.exists():
            return NEVER_A_MEMBER
        log = self.folder / "recovery.log"
        log.unlink(missing_ok=True)
        _set_up(
            name=self.name,
            folder=self.folder,
            executable=self.executable,
            command=[*self.command, "--wsrep-recover", f"--log-error={log}"],
        )
        found = re.findall(r"Recovered position: *(\S+)", log.read_text(errors="replace"))
        return found[-1].split(",")[0] if found else NEVER_A_MEMBER


@dataclass(kw_only=True)
class HAProxy(Server):
    name: ClassVar[str] = "haproxy"
    hello: ClassVar[bytes] = b""  # answered by a node, through HAProxy

    one_node_url: str


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes are killed and started one by one; HAProxy leads to those that are well.

    By `url` writers are on all nodes, by `one_node_url` on one until it dies.
    """

    nodes: list[Node]
    proxy: HAProxy

    @property
    def url(self) -> str:
        return self.proxy.url

    @property
    def one_node_url(self) -> str:
        return self.proxy.one_node_url

    @property
    def node_urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def wait_until_whole(self, *, seconds: float = SYNCED_SECONDS) -> None:
        """Return when every node is synced and sees all others. Raises ServerError."""
        give_up = time.monotonic() + seconds
        size = str(len(self.nodes))
        while not all(
            node.is_synced() and node.status().get("wsrep_cluster_size") == size
            for node in self.nodes
        ):
            if time.monotonic() > give_up:
                raise ServerError(f"the cluster isn't whole after {seconds:.0f} seconds")
            time.sleep(0.1)


@contextmanager
def cluster(*, nodes: int = 3, options: Sequence[str] = ()) -> Iterator[Cluster]:
    """A cluster with one database and a user that may do everything; options go to each mariadbd.

    Three nodes at most: HAProxy's file names no more.
    Raises MissingPrograms, or ServerError when it doesn't come up.
    """
    _require(SERVERS)
    _require(CLUSTER)
    with ExitStack() as stack:
        password = secrets.token_hex(16)
        members: list[Node] = []
        for number in range(1, nodes + 1):
            folder = stack.enter_context(_folder(name=f"node{number}"))
            members.append(_node(number=number, folder=folder, password=password, options=options))
        first = members[0]
        first.init = _new_data(folder=first.folder, password=password)
        with first.init.open("a") as init:
            init.write("CREATE USER IF NOT EXISTS haproxy@'%';\n")
        for node in members:
            node.others = [other for other in members if other is not node]
            stack.enter_context(_serving(node))
        proxy = _haproxy(folder=stack.enter_context(_folder(name="haproxy")), nodes=members)
        stack.enter_context(_serving(proxy))
        whole = Cluster(nodes=members, proxy=proxy)
        whole.wait_until_whole()
        yield whole


def _node(*, number: int, folder: Path, password: str, options: Sequence[str]) -> Node:
    port, group, transfer, changes = (free_port() for _ in range(4))
    (folder / "data").mkdir(exist_ok=True)
    provider_options = "; ".join(
        [
            _documented("wsrep_provider_options"),
            "gcache.size=64M",
            f"gmcast.listen_addr=tcp://{HOST}:{group}",
            f"ist.recv_addr={HOST}:{changes}",
        ]
    )
    return Node(
        port=port,
        group_port=group,
        url=_url(port=port, password=password),
        password=password,
        folder=folder,
        executable=_which("env"),
        command=[
            "env",
            *_paths(*([_with_rsync_of_root(folder)] if os.geteuid() == 0 else [])),
            _which("mariadbd") or "mariadbd",
            f"--defaults-file={DOCS / 'galera.cnf'}",
            *_places(folder=folder, port=port),
            f"--wsrep-provider={_galera()}",
            f"--wsrep-node-name=db{number}",
            f"--wsrep-node-address={HOST}",
            f"--wsrep-node-incoming-address={HOST}:{port}",
            f"--wsrep-sst-receive-address={HOST}:{transfer}",
            f"--wsrep-provider-options={provider_options}",
            "--innodb-buffer-pool-size=256M",
            *options,
        ],
    )


def _haproxy(*, folder: Path, nodes: Sequence[Node]) -> HAProxy:
    one, all_nodes = free_port(), free_port()
    addresses = {"127.0.0.1:3306": f"{HOST}:{one}", "127.0.0.1:3307": f"{HOST}:{all_nodes}"}
    for number, node in enumerate(nodes, start=1):
        addresses[f"10.0.0.1{number}:3306"] = f"{HOST}:{node.port}"
    text = (DOCS / "haproxy.cfg").read_text()
    for documented, ours in addresses.items():
        text = text.replace(documented, ours)
    config = folder / "haproxy.cfg"
    # Servers that are not there: the file is for three.
    config.write_text(re.sub(r"\n +server .* 10\.0\.0\..*", "", text))
    return HAProxy(
        port=all_nodes,
        url=_url(port=all_nodes, password=nodes[0].password),
        one_node_url=_url(port=one, password=nodes[0].password),
        folder=folder,
        executable=_which("env"),
        command=["env", *_paths(), _which("haproxy") or "haproxy", "-db", "-f", config],
    )


def _paths(*first: Path) -> list[str]:
    """Where the programs find each other and their libraries: what was unpacked comes last."""
    programs = [*first, os.environ.get("PATH", os.defpath), "/usr/sbin"]
    programs += [UNPACKED / "usr" / name for name in ("bin", "sbin")]
    before = [path] if (path := os.environ.get("LD_LIBRARY_PATH")) else []
    libraries = [*before, *sorted((UNPACKED / "usr" / "lib").glob("*-linux-gnu"))]
    return [
        f"PATH={os.pathsep.join(map(str, programs))}",
        f"LD_LIBRARY_PATH={os.pathsep.join(map(str, libraries))}",
    ]


def _with_rsync_of_root(folder: Path) -> Path:
    """A folder with an rsync whose daemon may write what root owns; it would become nobody."""
    program = folder / "bin" / "rsync"
    program.parent.mkdir(exist_ok=True)
    rsync = shlex.quote(_which("rsync") or "rsync")
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--daemon*) set -- "$@" --dparam=uid=0 --dparam=gid=0;; esac\n'
        f'exec {rsync} "$@"\n'
    )
    program.chmod(0o700)
    return program.parent


def _documented(name: str) -> str:
    lines = (DOCS / "galera.cnf").read_text().splitlines()
    (value,) = (line.partition("=")[2] for line in lines if line.startswith(f"{name} ="))
    return value.strip().strip('"')


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    unpack(*CLUSTER)
    with cluster() as servers, redis() as cache:
        yield {
            "DATABASE_URL": servers.url,
            "CLUSTER_ONE_NODE_URL": servers.one_node_url,
            "CLUSTER_NODE_URLS": ",".join(servers.node_urls),
            "REDIS_URL": cache.url,
        }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], of="tests.support.cluster", environment=_environment))
