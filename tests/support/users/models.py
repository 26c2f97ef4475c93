"""User models whose primary keys are not integers."""

import uuid

from django.contrib.auth.models import AbstractUser
from django.db import models


class UuidUser(AbstractUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)

    class Meta:
        swappable = "AUTH_USER_MODEL"


class CharUser(AbstractUser):
    username = models.CharField(max_length=150, primary_key=True)

    class Meta:
        swappable = "AUTH_USER_MODEL"
