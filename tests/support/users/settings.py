"""The project's settings, with another user model."""

import os

from project.settings import *

INSTALLED_APPS += ["tests.support.users"]
AUTH_USER_MODEL = os.environ["USER_MODEL"]
# Not the database of the tests that run these.
DATABASES["default"]["TEST"] = {"NAME": f"test_{AUTH_USER_MODEL.lower().replace('.', '_')}"}
