"""Set the code of imported courses, whose ID was kept in the title until now."""

import hashlib
import re

from django.db import migrations
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
        ("courses", "0010_course_code"),
    ]

    operations = [
        migrations.RunPython(copy_ids_from_titles, migrations.RunPython.noop),
    ]
