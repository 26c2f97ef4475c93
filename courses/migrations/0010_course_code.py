"""Add the course's ID in other systems, which was kept in the title of imported courses."""

import hashlib
import re

from django.db import migrations, models
from django.utils.text import slugify

BATCH_SIZE = 1_000


def copy_ids_from_titles(apps, schema_editor):
    """Set the code of courses whose slug an import has made from the title."""
    database = schema_editor.connection.alias
    courses = apps.get_model("courses", "Course")._base_manager.using(database)
    imported = []
    for course in courses.only("title", "slug").order_by("pk").iterator(BATCH_SIZE):
        if make_slug(course.title) == course.slug.lower():
            course.code = course.title
            imported.append(course)
    courses.bulk_update(imported, ["code"], batch_size=BATCH_SIZE)


def make_slug(course_id):
    """Return what the import of former versions returned."""
    if re.fullmatch(r"[-\w]+", course_id, re.ASCII):
        return course_id.lower()
    digest = hashlib.sha256(course_id.lower().encode()).hexdigest()[:8]
    return f"{slugify(course_id)[:191] or 'course'}-{digest}"


class Migration(migrations.Migration):

    dependencies = [
        ("courses", "0009_remove_count_sums"),
    ]

    operations = [
        migrations.AddField(
            model_name="course",
            name="code",
            field=models.CharField(blank=True, db_default="", default="", help_text="Course ID in other systems. Imports find the course by it.", max_length=200, verbose_name="course ID"),
        ),
        migrations.AddIndex(
            model_name="course",
            index=models.Index(fields=["code"], name="course_code"),
        ),
        migrations.RunPython(copy_ids_from_titles, migrations.RunPython.noop),
    ]
