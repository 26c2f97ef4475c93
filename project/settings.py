"""Settings, read from the environment. What is not set is safe in production.

DATABASE_URL    mysql://user:password@host:3306/name; unset: an SQLite file. What follows
                a question mark are options of the driver: ?isolation_level=repeatable+read
DATABASE_TIMEOUT  seconds to wait for an answer of a database that hangs; unset: for ever,
                as migrations of large tables need it. gunicorn.conf.py sets 30
REDIS_URL       redis://host:6379/0; unset: no shared cache
SECRET_KEY      unset: a random one, made once and kept in .secret_key
DEBUG           1 on a developer's machine only
ALLOWED_HOSTS   comma-separated; unset: this machine only
CSRF_TRUSTED_ORIGINS  comma-separated, where a proxy changes the host
PROXIES         how many proxies of yours stand before this server; unset: none
HTTPS           0 where visitors reach the site by plain http
LOG_LEVEL       INFO
LOG_FORMAT      json: an object a line, tracebacks in it; unset: text
"""

from datetime import timedelta
from pathlib import Path

import environ
from csp import constants as csp
from django.core.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.retry import Retry

from project.secret_key import local_secret_key

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()


def _names(variable: str) -> list[str]:
    return [name.strip() for name in env.list(variable, default=[]) if name.strip()]


DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="") or local_secret_key(BASE_DIR / ".secret_key")
ALLOWED_HOSTS = _names("ALLOWED_HOSTS") or ["localhost", "127.0.0.1", "[::1]"]
CSRF_TRUSTED_ORIGINS = _names("CSRF_TRUSTED_ORIGINS")

# Database ------------------------------------------------------------------

_url = env.str("DATABASE_URL", default="") or f"sqlite:///{BASE_DIR / 'db.sqlite3'}"
if not _url.startswith(("mysql://", "sqlite://")):
    raise ImproperlyConfigured(
        "DATABASE_URL must be mysql://user:password@host:3306/name or sqlite:////path/to/file."
    )
DATABASES = {"default": env.db_url_config(_url)}
if _url.startswith("sqlite:"):
    # Without IMMEDIATE, of two transactions that read before they write one fails at
    # once, however long the timeout is.
    _defaults = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,  # seconds
        "init_command": "PRAGMA journal_mode=WAL",
    }
else:
    DATABASES["default"].setdefault("CONN_MAX_AGE", 60)  # seconds
    DATABASES["default"].setdefault("CONN_HEALTH_CHECKS", True)
    _timeout = env.int("DATABASE_TIMEOUT", default=0)
    _defaults = {
        "isolation_level": "read committed",
        "charset": "utf8mb4",
        "connect_timeout": 5,  # seconds
        # Strict, so that nothing is cut off silently. The lock timeout's default of 50
        # seconds outlives most visitors.
        "init_command": "SET sql_mode='STRICT_TRANS_TABLES', innodb_lock_wait_timeout=10",
        **({"read_timeout": _timeout, "write_timeout": _timeout} if _timeout else {}),
    }
DATABASES["default"]["OPTIONS"] = _defaults | DATABASES["default"].get("OPTIONS", {})
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Cache: optional at every moment, and never for counts ---------------------

REDIS_URL = env.str("REDIS_URL", default="")
if REDIS_URL and not REDIS_URL.startswith(("redis://", "rediss://", "unix://")):
    raise ImproperlyConfigured("REDIS_URL must be redis://host:6379/0, or unset.")
CACHES = {
    "default": {
        "BACKEND": "project.cache.FailOpenRedisCache",
        "LOCATION": REDIS_URL,
        "TIMEOUT": 60,  # seconds
        "OPTIONS": {
            "socket_connect_timeout": 0.25,  # seconds
            "socket_timeout": 0.25,  # seconds
            # The client's own retries would multiply these times.
            "retry": Retry(NoBackoff(), 0),
        },
    }
    if REDIS_URL
    # A cache of one process is wrong as soon as there are two.
    else {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
}
CACHALOT_ONLY_CACHABLE_TABLES = frozenset(
    {
        "auth_group",
        "auth_group_permissions",
        "auth_permission",
        "courses_subject",
        "django_content_type",
    }
)
CACHALOT_TIMEOUT = 60  # seconds: how long a lost invalidation can matter
CACHALOT_FINAL_SQL_CHECK = True
# W001: our backend is Django's RedisCache, which cachalot supports, made to fail open.
SILENCED_SYSTEM_CHECKS = ["cachalot.W001"]

# Application ---------------------------------------------------------------

INSTALLED_APPS = [
    "courses",
    "enrollments",
    "axes",
    "project.apps.CatalogAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.humanize",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
]
if REDIS_URL:
    INSTALLED_APPS.append("project.cachalot.FencedCachalotConfig")
MIDDLEWARE = [
    "project.health.HealthMiddleware",
    "csp.middleware.CSPMiddleware",
    "project.errors.JsonErrorsMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "project.errors.BusyDatabaseMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "project" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
FORMAT_MODULE_PATH = "project.formats"

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "project" / "static"]
# Served straight from the apps: there is no collectstatic that could be forgotten.
WHITENOISE_USE_FINDERS = True

# Signing in ------------------------------------------------------------------

LOGIN_URL = "sign-in"
LOGIN_REDIRECT_URL = LOGOUT_REDIRECT_URL = "catalog"
AUTHENTICATION_BACKENDS = [
    "project.accounts.SignInLimit",
    "django.contrib.auth.backends.ModelBackend",
]
# Failures are counted in the database: Redis may be away at any moment.
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=15)
# By both: by name alone anybody could lock out a student, by address alone one a whole school.
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_DISABLE_ACCESS_LOG = True
AXES_VERBOSE = False
AXES_LOCKOUT_TEMPLATE = "accounts/locked_out.html"
AXES_CLIENT_IP_CALLABLE = "project.accounts.client_address"
AXES_USERNAME_CALLABLE = "project.accounts.tried_username"
PROXIES = env.int("PROXIES", default=0)
if PROXIES < 0:
    raise ImproperlyConfigured(f"PROXIES must be 0 or more, not {PROXIES}.")

# Safety on the way to the visitor --------------------------------------------

# Nothing inline, and nothing from elsewhere.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [csp.NONE],
        "script-src": [csp.SELF],
        "style-src": [csp.SELF],
        "img-src": [csp.SELF],
        "connect-src": [csp.SELF],
        "form-action": [csp.SELF],
        "base-uri": [csp.NONE],
        "frame-ancestors": [csp.NONE],
    }
}
HTTPS = env.bool("HTTPS") if env.str("HTTPS", default="") else not DEBUG
if HTTPS:
    SECURE_SSL_REDIRECT = True
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True

# Logs: one event a line on standard error -------------------------------------

LOG_FORMAT = env.str("LOG_FORMAT", default="") or "text"
if LOG_FORMAT not in ("text", "json"):
    raise ImproperlyConfigured("LOG_FORMAT must be json, or unset.")
_fields = "{asctime} {levelname} {name}: {message}"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"format": _fields, "style": "{"},
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "format": _fields,
            "style": "{",
            "json_ensure_ascii": False,
        },
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT}},
    # It says at each sign-in that nothing was wrong.
    "loggers": {"axes": {"level": "WARNING"}},
    "root": {"handlers": ["stderr"], "level": env.str("LOG_LEVEL", default="").upper() or "INFO"},
}
