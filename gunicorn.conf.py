"""How `gunicorn` serves the site; read by it from the folder that it is started in."""

import os
from pathlib import Path
from typing import Any

wsgi_app = "project.wsgi"
bind = f"{os.environ.get('HOST') or '127.0.0.1'}:{os.environ.get('PORT') or 8000}"
# Each thread keeps a database connection of its own: max_connections must allow for them all.
workers = int(os.environ.get("WEB_CONCURRENCY") or 0) or (os.cpu_count() or 1) + 1
threads = 8
# Proxies keep their connections for about a minute. One that we close first breaks a request
# that is on its way, and a POST is not sent twice.
keepalive = 75  # seconds
# A database that hangs would keep all threads; a statement waits 10 seconds for a lock.
os.environ.setdefault("DATABASE_TIMEOUT", "30")
# Longer than the services' own retries, which give up after 20 seconds and a lock's 10.
timeout = 60  # seconds
graceful_timeout = 40  # seconds
# Where it is in memory, a slow disk is no reason to take a worker for dead.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
if os.environ.get("LOG_FORMAT") == "json":
    # gunicorn's own events, as the site's are.
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
control_socket_disable = True  # it would lie in the home folder, where a service may not write


def on_starting(server: Any) -> None:
    # Counters of processes that are gone. Prometheus takes a fall for the new start that it is.
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        for left in Path(folder).glob("*.db"):
            left.unlink()
