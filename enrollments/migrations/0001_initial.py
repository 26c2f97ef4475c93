
import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('courses', '0001_initial'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='Enrollment',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('status', models.CharField(choices=[('active', 'Active'), ('completed', 'Completed'), ('withdrawn', 'Withdrawn')], default='active', max_length=10)),
                ('enrollment_date', models.DateTimeField(default=django.utils.timezone.now, verbose_name='enrolment date')),
                ('withdrawal_date', models.DateTimeField(blank=True, null=True)),
                ('course', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='enrollments', to='courses.course')),
                ('student', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name='enrollments', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'verbose_name': 'enrolment',
                'base_manager_name': 'objects',
                'indexes': [models.Index(fields=['course', 'status'], name='enrollment_course_status')],
                'constraints': [models.UniqueConstraint(fields=('student', 'course'), name='enrollment_student_course_unique'), models.CheckConstraint(condition=models.Q(('status__in', ['active', 'completed', 'withdrawn'])), name='enrollment_status_valid'), models.CheckConstraint(condition=models.Q(models.Q(('status', 'withdrawn'), ('withdrawal_date__isnull', False)), models.Q(models.Q(('status', 'withdrawn'), _negated=True), ('withdrawal_date__isnull', True)), _connector='OR'), name='enrollment_withdrawal_date_if_withdrawn')],
            },
        ),
    ]
