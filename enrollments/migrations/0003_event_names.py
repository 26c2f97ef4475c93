"""Rename the fields of the history, and the values that they hold."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models
from django.db.models import Case, F, Value, When

ACTIONS = {
    "taken_up": "reenrolled",
    "moved_away": "transferred_out",
    "moved_here": "transferred_in",
    "redated": "dates_changed",
}
SOURCES = {"page": "website", "code": "system"}


def rename_values(apps, schema_editor):
    _replace(apps, schema_editor, {"action": ACTIONS, "source": SOURCES})


def restore_values(apps, schema_editor):
    renamed = {"action": ACTIONS, "source": SOURCES}
    _replace(
        apps,
        schema_editor,
        {name: {new: old for old, new in values.items()} for name, values in renamed.items()},
    )


def _replace(apps, schema_editor, renamed):
    events = apps.get_model("enrollments", "EnrollmentEvent")._base_manager.using(
        schema_editor.connection.alias
    )
    for name, values in renamed.items():
        cases = [When(**{name: old}, then=Value(new)) for old, new in values.items()]
        events.filter(**{f"{name}__in": list(values)}).update(
            **{name: Case(*cases, default=F(name))}
        )


class Migration(migrations.Migration):
    dependencies = [
        ("courses", "0006_count_discrepancies"),
        ("enrollments", "0002_enrollment_history"),
    ]

    operations = [
        migrations.RenameField("enrollmentevent", "what", "action"),
        migrations.RenameField("enrollmentevent", "at", "created_at"),
        migrations.AlterModelOptions(
            name='enrollment',
            options={'base_manager_name': 'objects', 'verbose_name': 'enrollment'},
        ),
        migrations.AlterModelOptions(
            name='enrollmentevent',
            options={'base_manager_name': 'objects', 'verbose_name': 'enrollment event'},
        ),
        migrations.AlterField(
            model_name='enrollment',
            name='enrollment_date',
            field=models.DateTimeField(default=django.utils.timezone.now, verbose_name='enrollment date'),
        ),
        migrations.AlterField(
            model_name='enrollmentevent',
            name='action',
            field=models.CharField(choices=[('enrolled', 'Enrolled'), ('reenrolled', 'Re-enrolled'), ('completed', 'Completed'), ('reopened', 'Reopened'), ('withdrawn', 'Withdrawn'), ('transferred_out', 'Transferred out'), ('transferred_in', 'Transferred in'), ('dates_changed', 'Dates changed'), ('erased', 'Erased')], max_length=20),
        ),
        migrations.AlterField(
            model_name='enrollmentevent',
            name='enrollment_date',
            field=models.DateTimeField(null=True, verbose_name='enrollment date'),
        ),
        migrations.AlterField(
            model_name='enrollmentevent',
            name='source',
            field=models.CharField(choices=[('website', 'Website'), ('admin', 'Admin'), ('api', 'API'), ('import', 'Import'), ('system', 'System')], max_length=10),
        ),
        migrations.AlterField(
            model_name='enrollmentevent',
            name='actor',
            field=models.CharField(blank=True, help_text='User name at that time, or the operating system account that ran a command.', max_length=150),
        ),
        migrations.AlterField(
            model_name='enrollmentevent',
            name='other_course',
            field=models.ForeignKey(db_constraint=False, db_index=False, help_text='The other course of a transfer.', null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='courses.course'),
        ),
        migrations.RunPython(rename_values, restore_values),
    ]
