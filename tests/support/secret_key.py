"""A pytest plugin that sets SECRET_KEY, which project.settings requires.

pytest-django loads the settings before conftest.py. pyproject.toml loads this plugin earlier.
"""

import os

os.environ.setdefault("SECRET_KEY", "for tests only")
