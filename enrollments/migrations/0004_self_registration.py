import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
        ('enrollments', '0003_event_names'),
    ]

    operations = [
        migrations.CreateModel(
            name='SelfRegistration',
            fields=[
                ('user', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='self_registration', serialize=False, to=settings.AUTH_USER_MODEL)),
                ('created_at', models.DateTimeField()),
                ('address', models.GenericIPAddressField(help_text='For the limit of sign-ups per hour. Deleted afterwards.', null=True)),
            ],
            options={
                'verbose_name': 'self-registration',
                'indexes': [models.Index(fields=['address', 'created_at'], name='self_registration_recent')],
            },
        ),
    ]
