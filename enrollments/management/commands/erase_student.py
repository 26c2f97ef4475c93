from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS
from django.template.defaultfilters import pluralize

from courses.management.base import AppCommand
from enrollments.history import Origin
from enrollments.services import erase_student


class Command(AppCommand):
    help = (
        "Deletes all enrollments of a student with their history, for deletion requests. The "
        "user is kept and can be deleted afterwards."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username", metavar="USERNAME", help="in the exact spelling")

    def handle(self, *, username: str, verbosity: int, **options: Any) -> None:
        users = get_user_model()._default_manager.using(DEFAULT_DB_ALIAS)
        user = users.filter(username=username).first()
        # MariaDB finds "anna" for "ANNA", too.
        if user is None or user.get_username() != username:
            raise self.usage_error(f"User {username!r} does not exist. Nothing was erased.")
        erased = erase_student(student=user, origin=Origin(actor=self.actor_name()))
        if verbosity:
            self.stdout.write(
                f"Erased {erased} enrollment{pluralize(erased)} of {username}. "
                "The user can be deleted in the admin now."
            )
