from django.db import migrations, models


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
    ]
