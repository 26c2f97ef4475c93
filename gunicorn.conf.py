"""Configuration of gunicorn, which reads this file from the current directory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


_REQUIRED = {
    "DATABASE_URL": "mysql://user:password@host:3306/name",
    "SECRET_KEY": "a long random string",
}
# Checked here, because each worker would report the error with a traceback of its own.
if _missing := [f"{name} to {value}" for name, value in _REQUIRED.items() if not os.getenv(name)]:
    _fail(
        f"gunicorn serves the site in production. Set {' and '.join(_missing)}. "
        "For development, use: make run"
    )

wsgi_app = "project.wsgi"
_port = os.environ.get("PORT") or "8000"
if not _port.isdecimal() or not 1 <= int(_port) <= 65535:
    _fail(f"PORT must be a number from 1 to 65535, not {_port!r}.")
# Not used if systemd passes a socket.
_host = os.environ.get("HOST") or "127.0.0.1"
bind = f"[{_host}]:{_port}" if ":" in _host and _host[0] != "[" else f"{_host}:{_port}"
# Requests must not choose the paths of the site's links.
forwarder_headers = ""
# Each thread keeps its own database connection. Set the server's max_connections accordingly.
workers = int(os.environ.get("WEB_CONCURRENCY") or 0) or (os.cpu_count() or 1) + 1
threads = 8
# Longer than the minute for which proxies keep idle connections. Closing a connection first
# loses a request that is already on its way, and proxies do not repeat a POST.
keepalive = 75  # seconds
# A database that hangs would block all threads. Statements wait up to 10 seconds for a lock.
os.environ["DATABASE_TIMEOUT"] = os.environ.get("DATABASE_TIMEOUT") or "30"
# Longer than the services' retries, which stop after 20 seconds plus a lock timeout of 10.
timeout = 60  # seconds
graceful_timeout = 40  # seconds
# In memory, so that a slow disk does not make a worker look dead.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
loglevel = os.environ.get("LOG_LEVEL") or "info"
if os.environ.get("LOG_FORMAT") == "json":
    logconfig_dict = {
        "formatters": {
            "generic": {
                "()": "pythonjsonlogger.json.JsonFormatter",
                "format": "{asctime} {levelname} {name}: {message}",
                "style": "{",
            }
        },
        "loggers": {"gunicorn.error": {"handlers": ["error_console"], "propagate": False}},
    }
control_socket_disable = True  # its default place is the home directory, which may be read-only


def on_starting(server: Any) -> None:
    """Check the settings, and delete the metrics files of earlier processes.

    Each worker would report wrong settings with a traceback of its own. Prometheus handles
    counters that restart.
    """
    command = [sys.executable, "manage.py", "check"]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        sys.exit(2)
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        for file in Path(directory).glob("*.db"):
            file.unlink()
