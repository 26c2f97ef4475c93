"""Remove the name of a deleted user from the tables that would keep it."""

from typing import Any

from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth import SESSION_KEY
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.db.models import Model, QuerySet
from django.db.models.signals import pre_delete
from django.dispatch import receiver

from courses.models import CountRun
from enrollments.history import Source
from enrollments.models import Enrollment, EnrollmentEvent


@receiver(pre_delete, sender=settings.AUTH_USER_MODEL)
def erase_name(
    *, instance: Any, using: str, origin: Model | QuerySet | None = None, **kwargs: Any
) -> None:
    """Replace or delete a user's name everywhere, in the transaction that deletes the user.

    Sessions hold the user's key only. To find them, all sessions are read, so if a queryset of
    users is deleted they stay until they expire.
    """
    label = f"deleted user {instance.pk}"
    _anonymize_admin_log(instance, label, using)
    for model in (AccessAttempt, AccessFailureLog, AccessLog):
        model.objects.filter(username__iexact=instance.get_username()).delete()
    runs = CountRun.objects.filter(actor=f"admin: {instance.get_username()}")
    runs.update(actor=f"admin: {label}")
    # A student acts only for themselves, and these events are deleted with their enrollments.
    if instance.is_staff or LogEntry.objects.using(using).filter(user=instance).exists():
        _anonymize_actor(instance.get_username(), label, using)
    if isinstance(origin, Model):
        _delete_sessions(instance, using)


def _anonymize_admin_log(user: Any, label: str, using: str) -> None:
    types = ContentType.objects.db_manager(using)
    of_user = LogEntry.objects.filter(
        content_type=types.get_for_model(user), object_id=str(user.pk)
    )
    # erase_student has anonymized the entries of all enrollments that it deleted.
    of_enrollments = LogEntry.objects.filter(
        content_type=types.get_for_model(Enrollment),
        object_repr__startswith=f"{user} in ",
    )
    for entries in (of_user, of_enrollments):
        entries.update(object_repr=label, change_message="")


def _anonymize_actor(username: str, label: str, using: str) -> None:
    # The actors of all other sources are accounts of the operating system.
    events: QuerySet = QuerySet(EnrollmentEvent).filter(
        source__in=[Source.ADMIN, Source.API, Source.WEBSITE], actor=username
    )
    # The events are found by a scan. Locking only these events blocks nobody who adds others.
    for pk in list(events.using(using).values_list("pk", flat=True)):
        QuerySet(EnrollmentEvent).filter(pk=pk).update(actor=label)


def _delete_sessions(user: Any, using: str) -> None:
    user_key = user._meta.pk.value_to_string(user)
    keys = [
        session.pk
        for session in Session.objects.using(using).iterator()
        if session.get_decoded().get(SESSION_KEY) == user_key
    ]
    Session.objects.filter(pk__in=keys).delete()
