"""The project's settings, with what the peers need beside it."""

import os

from project.settings import *

INSTALLED_APPS += ["benchmarks.apps.ComputedFieldsConfig", "simple_history", "benchmarks"]
LOGGING["root"]["level"] = "ERROR"
# django-cachalot as its users have it, on the tables that the project keeps from it. It is
# not installed here: the catalog's runs load and unload it.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": os.environ.get("BENCHMARKS_REDIS_URL", ""),
    }
}
CACHALOT_ONLY_CACHABLE_TABLES = {"courses_course", "courses_subject", "enrollments_enrollment"}
