from django.db import migrations

# Django's own table has no index for "all changes of this object", and reads them all for it.
# The key is a long text there: MySQL indexes the beginning of one only. It stands first, or the
# server would take this for the foreign key's index, and not give it back.
NAME = "admin_log_of_object"
COLUMNS = {"mysql": "(object_id(20), content_type_id)"}


def create(apps, schema_editor):
    columns = COLUMNS.get(schema_editor.connection.vendor, "(object_id, content_type_id)")
    schema_editor.execute(f"CREATE INDEX {NAME} ON django_admin_log {columns}")


def drop(apps, schema_editor):
    of = " ON django_admin_log" if schema_editor.connection.vendor == "mysql" else ""
    schema_editor.execute(f"DROP INDEX {NAME}{of}")


class Migration(migrations.Migration):

    dependencies = [
        ('admin', '0003_logentry_add_action_flag_choices'),
        ('courses', '0003_count_ledger'),
    ]

    operations = [migrations.RunPython(create, drop, atomic=False)]
