from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandParser

from courses.management.base import AppCommand
from enrollments.history import Origin
from enrollments.services import erase_student


class Command(AppCommand):
    help = (
        "Deletes all enrollments of a student with their history, for deletion requests. The "
        "user is kept, and can be deleted afterwards."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username", metavar="USERNAME", help="exactly as it is written")

    def handle(self, *, username: str, verbosity: int, **options: Any) -> None:
        users = get_user_model()._default_manager
        # MariaDB finds anna for ANNA; what is deleted must have been named.
        found = users.filter(username=username).first()
        if found is None or found.get_username() != username:
            raise self.usage_error(f"There is no user {username!r}: nothing was erased.")
        erased = erase_student(student=found, origin=Origin(actor=self.actor_name()))
        if verbosity:
            self.stdout.write(
                f"Erased {erased} enrollment{'' if erased == 1 else 's'} of {username}. "
                "The user itself can be deleted in the admin now."
            )
