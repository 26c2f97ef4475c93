"""What happens in the site's processes, counted for Prometheus.

Each process has counters of its own, so that any one of them would tell a part. With
PROMETHEUS_MULTIPROC_DIR they are kept in files of that folder, and `write_metrics` adds them up.
"""

import os
from pathlib import Path

from prometheus_client import Counter

if _folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    Path(_folder).mkdir(parents=True, exist_ok=True)

REJECTIONS = Counter("courses_refusals", "Students who got no seat, because the course was full.")
RETRIES = Counter("courses_retries", "Attempts after a conflict or a lost connection.")
DEADLOCKS = Counter("courses_deadlocks", "Deadlocks, and certifications lost on a Galera cluster.")
