"""The settings of the project, with the apps and the cache that the peers need."""

import os

from project.settings import *

INSTALLED_APPS += ["computedfields", "simple_history", "benchmarks"]
LOGGING["root"]["level"] = "ERROR"
# django-cachalot with its default behavior, on tables that the project never caches. It is not
# installed as an app: the catalog benchmark switches it on and off.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": os.environ.get("BENCHMARKS_REDIS_URL", ""),
    }
}
CACHALOT_ONLY_CACHABLE_TABLES = {"courses_course", "courses_subject", "enrollments_enrollment"}
