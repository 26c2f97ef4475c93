from typing import Any

from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.contenttypes.models import ContentType
from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS, IntegrityError
from django.db.models import ProtectedError
from django.template.defaultfilters import pluralize

from courses.management.base import AppCommand, printable
from enrollments.history import Origin
from enrollments.models import Enrollment, EnrollmentEvent
from enrollments.rows import chunks
from enrollments.services import erase_student


class Command(AppCommand):
    help = (
        "Deletes all enrollments of a student with their history, for deletion requests. Asks for "
        "confirmation first. The user is kept, unless --delete-user is given, and can be deleted "
        "afterwards."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username", metavar="USERNAME", help="in the exact spelling")
        parser.add_argument(
            "--delete-user",
            action="store_true",
            help="delete the user as well, and the name in the logs of the database",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="report what would be deleted, change nothing"
        )
        parser.add_argument(
            *("--no-input", "--noinput"),
            action="store_false",
            dest="interactive",
            help="do not ask for confirmation",
        )

    def handle(
        self,
        *,
        username: str,
        delete_user: bool,
        dry_run: bool,
        interactive: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        user = self._find_user(username)
        if dry_run:
            self.stdout.write(f"Dry run: nothing was erased. {_describe(user)}")
            return
        if interactive:
            self._confirm(user)
        erased = self._erase(user, delete_user)
        if verbosity:
            now = "was deleted." if delete_user else "can be deleted in the admin now."
            self.stdout.write(
                f"Erased {erased} enrollment{pluralize(erased)} of {printable(username)}. "
                f"The user {now}"
            )

    def _find_user(self, username: str) -> AbstractBaseUser:
        users = get_user_model()._default_manager.using(DEFAULT_DB_ALIAS)
        user = users.filter(username=username).first()
        # MariaDB finds "anna" for "ANNA", too.
        if user is None or user.get_username() != username:
            raise self.usage_error(f"User {username!r} does not exist. Nothing was erased.")
        return user

    def _confirm(self, user: AbstractBaseUser) -> None:
        """Ask on standard output, and raise unless the answer on standard input is yes."""
        self.stdout.write(_describe(user))
        try:
            answer = input("This cannot be undone. Type 'yes' to erase them: ")
        except EOFError:
            self.stdout.write()  # ends the line of the question
            raise self.usage_error(
                "There was no answer. Nothing was erased. To erase without a question, add "
                "--no-input."
            ) from None
        if answer != "yes":
            raise self.usage_error("Canceled. Nothing was erased.")

    def _erase(self, user: Any, delete_user: bool) -> int:
        _anonymize_admin_log(user)
        erased = erase_student(student=user, origin=Origin(actor=self.actor_name()))
        if delete_user:
            try:
                user.delete()
            except (ProtectedError, IntegrityError) as error:
                raise self.usage_error(
                    "The enrollments were erased, but the user was enrolled again just now and "
                    "was not deleted. Run the command again."
                ) from error
        return erased


def _describe(user: AbstractBaseUser) -> str:
    rows = Enrollment.objects.using(DEFAULT_DB_ALIAS).filter(student=user.pk).count()
    events = EnrollmentEvent.objects.using(DEFAULT_DB_ALIAS).filter(student=user.pk).count()
    return (
        f"Student {printable(user.get_username())} (user {user.pk}) has {rows} "
        f"enrollment{pluralize(rows)} with {events} history "
        f"event{pluralize(events)}."
    )


def _anonymize_admin_log(user: Any) -> None:
    """Remove the name from the log entries of a user's enrollments, before these are deleted."""
    enrollments = Enrollment.objects.using(DEFAULT_DB_ALIAS).filter(student=user.pk)
    keys = [str(pk) for pk in enrollments.values_list("pk", flat=True)]
    types = ContentType.objects.db_manager(DEFAULT_DB_ALIAS)
    entries = LogEntry.objects.filter(content_type=types.get_for_model(Enrollment))
    for chunk in chunks(keys):
        entries.filter(object_id__in=chunk).update(object_repr="erased enrollment")
