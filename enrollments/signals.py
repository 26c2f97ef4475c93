"""The signal that tells other code about committed changes of enrollments."""

from django.dispatch import Signal

# Sent after COMMIT by every service that changed something, once per transaction, with
# `sender=Enrollment` and `events`, a list of `enrollments.history.Event` in the order of the
# changes. Inside a caller's `atomic()` it is sent after the caller's COMMIT. A receiver that
# raises is logged by "django.dispatch", and changes nothing for the caller or other receivers.
#
# It is not sent if the process dies right after COMMIT. If the answer to COMMIT is lost, it can be
# missing or be sent for an equal change by others: docs/guarantees.md, Limits. Receivers that must
# miss nothing read the history as well.
enrollments_changed = Signal(use_caching=True)
