"""Give each discrepancy the time when it was last seen and the time when it was resolved."""

from django.db import migrations, models
from django.db.models import F


def fill_last_seen_at(apps, schema_editor):
    discrepancies = apps.get_model("courses", "CountDiscrepancy")
    discrepancies._base_manager.using(schema_editor.connection.alias).update(
        last_seen_at=F("found_at")
    )


class Migration(migrations.Migration):
    dependencies = [
        ("courses", "0006_count_discrepancies"),
    ]

    operations = [
        migrations.AddField(
            "countdiscrepancy", "last_seen_at", models.DateTimeField(null=True)
        ),
        migrations.AddField(
            "countdiscrepancy",
            "resolved_at",
            models.DateTimeField(null=True, blank=True, db_index=True),
        ),
        migrations.RunPython(fill_last_seen_at, migrations.RunPython.noop),
        migrations.AlterField("countdiscrepancy", "last_seen_at", models.DateTimeField()),
    ]
