"""Keep at most one discrepancy of each course open, and resolve all others.

Until now, every check added a row for each drifted course, and a correction added another one. A
row stays open if it is the newest row of a check for its course, was found since the last full run
started, and was not corrected later.
"""

from django.db import migrations
from django.db.models import Exists, F, OuterRef, Q

BATCH_SIZE = 500


def resolve_discrepancies(apps, schema_editor):
    database = schema_editor.connection.alias
    discrepancies = apps.get_model("courses", "CountDiscrepancy")._base_manager.using(database)
    runs = apps.get_model("courses", "CountRun")._base_manager.using(database)
    open_ids = find_open_ids(discrepancies, runs)
    discrepancies.filter(resolved_at=None).update(resolved_at=F("last_seen_at"))
    for batch in batches(open_ids):
        discrepancies.filter(pk__in=batch).update(resolved_at=None)


def find_open_ids(discrepancies, runs):
    found_by_checks = discrepancies.filter(corrected=False, course__isnull=False)
    last_full_run = runs.filter(is_full=True).order_by("-pk").first()
    if last_full_run:
        found_by_checks = found_by_checks.filter(
            Q(run__gte=last_full_run.pk) | Q(found_at__gt=last_full_run.started_at)
        )
    newest = dict(found_by_checks.order_by("pk").values_list("course", "pk").iterator())
    # A check recorded its rows when it ended, so a rebuild may have corrected a course between
    # the moment when the check found it and the end of the check.
    later_corrections = discrepancies.filter(corrected=True, course=OuterRef("course")).filter(
        Q(pk__gt=OuterRef("pk"))
        | Q(found_at__gt=OuterRef("found_at"), found_at__lt=OuterRef("run__finished_at"))
    )
    open_ids = []
    for batch in batches(list(newest.values())):
        uncorrected = discrepancies.filter(~Exists(later_corrections), pk__in=batch)
        open_ids += uncorrected.values_list("pk", flat=True)
    return open_ids


def batches(items):
    return [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]


class Migration(migrations.Migration):

    dependencies = [
        ("courses", "0007_discrepancy_resolution"),
    ]

    operations = [migrations.RunPython(resolve_discrepancies, migrations.RunPython.noop)]
