#!/usr/bin/env python
"""Django's command-line utility for this project.

Exits with status 2 if the settings are wrong or the database is unavailable, because
`rebuild_counts --check` uses status 1 for drifted courses.
"""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line
from django.db import OperationalError


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    try:
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, OperationalError) as error:
        if "--traceback" in sys.argv:
            raise
        message = str(error)
        if isinstance(error, OperationalError):  # raised by Django's own commands, as by migrate
            message = (
                f"The database failed: {error}. "
                "Check that it is running and that DATABASE_URL is correct."
            )
        # Some of Django's errors have several lines.
        print(" ".join(message.split()), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
