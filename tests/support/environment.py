"""A pytest plugin that sets the variables that project.settings reads.

pytest-django loads the settings before conftest.py. pyproject.toml loads this plugin earlier.
"""

import os

os.environ.setdefault("SECRET_KEY", "for tests only")
# Each process of pytest-xdist has servers of its own: python -m tests.support.servers --sets 2
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    for name in ("DATABASE_URL", "REDIS_URL"):
        if url := os.environ.get(f"{name}_{worker}"):
            os.environ[name] = url
