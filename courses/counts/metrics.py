"""Prometheus counters of the site's processes.

Each process counts for itself. If PROMETHEUS_MULTIPROC_DIR is set, the counters are kept in files
of that folder, and `manage.py write_metrics` adds them up.
"""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from prometheus_client import Counter

if _folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    try:
        Path(_folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(f"PROMETHEUS_MULTIPROC_DIR must be a folder: {error}") from error

REJECTIONS = Counter("courses_rejections", "Enrollments rejected because the course was full.")
RETRIES = Counter("courses_retries", "Transactions retried after a conflict or a lost connection.")
DEADLOCKS = Counter("courses_deadlocks", "Deadlocks, including certification failures of Galera.")
