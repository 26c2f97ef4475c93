#!/usr/bin/env python
"""Django's command line for this project."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
        from django.db import OperationalError
    except ImportError:
        sys.exit(
            "Django is not installed for this Python: run `make run` once, "
            "then use .venv/bin/python manage.py."
        )
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"The settings are wrong: {error}")
    except OperationalError as error:  # of Django's own commands, as migrate
        if "--traceback" in sys.argv:
            raise
        sys.exit(
            f"The database does not answer as it should ({error}): "
            "see that it runs, and that DATABASE_URL is right."
        )


if __name__ == "__main__":
    main()
