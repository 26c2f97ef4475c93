"""Memory that a command takes beyond that of a process which has only started.

    python -m benchmarks.memory COMMAND [ARG…]    prints a number of MiB

A process of its own each, for one that has worked before has memory to reuse.
"""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import django


def memory_of(*command: str) -> float | None:
    """MiB of a management command on the database that Django is connected to now.

    None where the system doesn't tell: it must be Linux.
    """
    from django.db import connection

    if not Path("/proc/self/status").exists():
        return None
    database = connection.settings_dict["NAME"]
    url = urlunsplit(urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{database}"))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *command],
        env=os.environ | {"DATABASE_URL": url},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


def _mebibytes(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


if __name__ == "__main__":
    django.setup()
    from django.core.management import call_command
    from django.db import connection

    connection.ensure_connection()
    idle = _mebibytes("VmRSS")
    with open(os.devnull, "w") as nowhere:
        call_command(*sys.argv[1:], stdout=nowhere)
    sys.stdout.write(str(_mebibytes("VmHWM") - idle))
