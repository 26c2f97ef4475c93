#!/usr/bin/env python
"""Django's command-line utility for this project.

Exits with status 2 if the settings are wrong or the database is unavailable, because
`rebuild_counts --check` uses status 1 for drifted courses.
"""

import os
import sys
from typing import NoReturn


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
        from django.db import OperationalError
    except ImportError:
        _fail(
            "Django is not installed for this Python. Run `make run` once, "
            "then use .venv/bin/python manage.py."
        )
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        if "MySQLdb" in str(error):
            _fail(
                "The driver for MariaDB is not installed. Install it with: "
                ".venv/bin/python -m pip install -r requirements.txt"
            )
        _fail(str(error))
    except OperationalError as error:  # raised by Django's own commands, for example migrate
        if "--traceback" in sys.argv:
            raise
        _fail(
            f"The database failed: {error}. "
            "Check that it is running and that DATABASE_URL is correct."
        )


def _fail(message: str) -> NoReturn:
    # Some of Django's errors have several lines.
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
