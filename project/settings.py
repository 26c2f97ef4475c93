"""Settings, read from the environment as docs/configuration.md describes.

The defaults are safe in production.
"""

import os
from datetime import timedelta
from pathlib import Path

import environ
from csp import constants as csp
from django.core.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry

BASE_DIR = Path(__file__).resolve().parent.parent


def _split(variable: str) -> list[str]:
    """Return the items of a comma-separated variable, without spaces and empty items."""
    items = os.environ.get(variable, "").split(",")
    return [item.strip() for item in items if item.strip()]


def _switch(variable: str, *, default: bool = False) -> bool:
    text = os.environ.get(variable, "").strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    if text:
        raise ImproperlyConfigured(f"{variable} must be 1 or 0, not {text!r}.")
    return default


def _number(variable: str, *, default: int = 0) -> int:
    text = os.environ.get(variable, "").strip() or str(default)
    if not text.isdecimal() or len(text) > 5:
        raise ImproperlyConfigured(
            f"{variable} must be a whole number from 0 to 99999, not {text!r}."
        )
    return int(text)


SITE_NAME = "Course catalog"
DEBUG = _switch("DEBUG")
SECRET_KEY = os.environ.get("SECRET_KEY", "")
if not SECRET_KEY:
    if not DEBUG:
        raise ImproperlyConfigured(
            "SECRET_KEY is not set. Set it to a long random string, or set DEBUG=1 for development."
        )
    SECRET_KEY = "django-insecure-development-key"
ALLOWED_HOSTS = _split("ALLOWED_HOSTS") or ["localhost", "127.0.0.1", "[::1]"]
if any("/" in host for host in ALLOWED_HOSTS):
    raise ImproperlyConfigured("ALLOWED_HOSTS must be host names, such as courses.example.org.")
CSRF_TRUSTED_ORIGINS = _split("CSRF_TRUSTED_ORIGINS")
if not all(origin.startswith(("https://", "http://")) for origin in CSRF_TRUSTED_ORIGINS):
    raise ImproperlyConfigured(
        "CSRF_TRUSTED_ORIGINS must be addresses such as https://courses.example.org."
    )

# Database

_database_url = os.environ.get("DATABASE_URL") or f"sqlite:///{BASE_DIR / 'db.sqlite3'}"
try:
    if not _database_url.startswith(("mysql://", "sqlite:///", "sqlite://:memory:")):
        raise ValueError("unknown scheme")
    DATABASES = {"default": environ.Env.db_url_config(_database_url)}
except ValueError as error:
    # The reason is not shown, because it may contain the password.
    raise ImproperlyConfigured(
        "DATABASE_URL must be mysql://user:password@host:3306/name or sqlite:////path/to/file."
    ) from error
_timeout = _number("DATABASE_TIMEOUT")
if _database_url.startswith("sqlite:"):
    _default_options = {
        # In a deferred transaction, a write after a read fails at once with "database is
        # locked" if another transaction has written. The timeout does not apply.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,  # seconds
        "init_command": "PRAGMA journal_mode=WAL",
    }
else:
    DATABASES["default"].setdefault("CONN_MAX_AGE", 60)  # seconds
    DATABASES["default"].setdefault("CONN_HEALTH_CHECKS", True)
    _default_options = {
        "isolation_level": "read committed",
        "charset": "utf8mb4",
        "connect_timeout": 5,  # seconds
        # Strict mode rejects values that do not fit instead of truncating them. The default
        # lock timeouts, 50 seconds for rows and a day for tables, are longer than visitors wait.
        "init_command": "SET sql_mode='STRICT_TRANS_TABLES', innodb_lock_wait_timeout=10, "
        "lock_wait_timeout=10",
    }
    # No limit by default, because migrations of large tables take long. gunicorn.conf.py sets one.
    if _timeout:
        _default_options |= {"read_timeout": _timeout, "write_timeout": _timeout}
DATABASES["default"]["OPTIONS"] = _default_options | DATABASES["default"].get("OPTIONS", {})
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Cache. Redis is optional at every moment, and counts are never cached.

REDIS_URL = os.environ.get("REDIS_URL", "")
if REDIS_URL:
    try:
        ConnectionPool.from_url(REDIS_URL).make_connection()  # does not connect yet
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured("REDIS_URL must be redis://host:6379/0, or unset.") from error
    CACHES = {
        "default": {
            "BACKEND": "project.cache.FailOpenRedisCache",
            "LOCATION": REDIS_URL,
            "TIMEOUT": 60,  # seconds
            "OPTIONS": {
                "serializer": "project.cache.SignedSerializer",
                "socket_connect_timeout": 0.25,  # seconds
                "socket_timeout": 0.25,  # seconds
                # The client's own retries would multiply these timeouts.
                "retry": Retry(NoBackoff(), 0),
            },
        }
    }
else:
    # A cache per process would return stale data as soon as there are two processes.
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
# Only tables that are read often and written rarely.
CACHALOT_ONLY_CACHABLE_TABLES = frozenset(
    {
        "auth_group",
        "auth_group_permissions",
        "auth_permission",
        "courses_subject",
        "django_content_type",
    }
)
# Only writes to the same database invalidate an entry, and nobody writes to a replica.
CACHALOT_DATABASES = ["default"]
CACHALOT_TIMEOUT = 60  # seconds; limits how long a lost invalidation can matter
CACHALOT_FINAL_SQL_CHECK = True
SILENCED_SYSTEM_CHECKS = [
    # Unsupported cache backends. FailOpenRedisCache is a subclass of a supported one.
    "cachalot.W001",
    # HSTS without subdomains and without preloading.
    "security.W005",
    "security.W021",
]

# Application

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
    INSTALLED_APPS.append("project.cachalot.PatchedCachalotConfig")
MIDDLEWARE = [
    "project.health.HealthMiddleware",
    "csp.middleware.CSPMiddleware",
    "project.errors.ErrorMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
    "project.api.HeadMiddleware",
]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
FILE_UPLOAD_HANDLERS = ["project.uploads.RejectFiles"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 128 * 1024  # bytes; as in docs/deployment/nginx.conf
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "project" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "builtins": ["project.template_tags"],
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
FORMAT_MODULE_PATH = "project.formats"

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "project" / "static"]
# Serve static files from the apps, so that deployments need no collectstatic.
WHITENOISE_USE_FINDERS = True

# Accounts

LOGIN_URL = "sign-in"
LOGIN_REDIRECT_URL = LOGOUT_REDIRECT_URL = "catalog"
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
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
_sign_up = os.environ.get("SIGN_UP") or ("open" if DEBUG else "closed")
if _sign_up not in ("open", "closed"):
    raise ImproperlyConfigured(f"SIGN_UP must be open or closed, not {_sign_up!r}.")
SIGN_UP_OPEN = _sign_up == "open"
SIGN_UPS_PER_HOUR = _number("SIGN_UPS_PER_HOUR", default=60)  # from one address
if SIGN_UPS_PER_HOUR < 1:
    raise ImproperlyConfigured("SIGN_UPS_PER_HOUR must be 1 or more. SIGN_UP=closed allows none.")
# django-axes counts failed sign-ins in the database, because Redis is optional.
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=15)
# Count by user name and address together. By user name alone, anyone could lock out a student;
# by address alone, one visitor could lock out a whole school.
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False  # it would also list the logs that are never filled
AXES_VERBOSE = False
AXES_CLIENT_STR_CALLABLE = "project.accounts.describe_client"
AXES_LOCKOUT_TEMPLATE = "accounts/locked_out.html"
AXES_CLIENT_IP_CALLABLE = "project.accounts.client_address"
AXES_USERNAME_CALLABLE = "project.accounts.submitted_username"
PROXIES = _number("PROXIES")

# Browser security

# Allow no inline code, and nothing from other sites.
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
HTTPS = _switch("HTTPS", default=not DEBUG)
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if HTTPS else 0
# Browsers remember both for a year, so the owner of the domain has to choose them.
SECURE_HSTS_PRELOAD = _switch("HSTS_PRELOAD")
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD or _switch("HSTS_SUBDOMAINS")

# Logging to standard error

LOG_FORMAT = os.environ.get("LOG_FORMAT") or "text"
if LOG_FORMAT not in ("text", "json"):
    raise ImproperlyConfigured("LOG_FORMAT must be json or text.")
LOG_LEVEL = os.environ.get("LOG_LEVEL", "").upper() or "INFO"
_log_levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
if LOG_LEVEL not in _log_levels:
    raise ImproperlyConfigured(f"LOG_LEVEL must be one of {', '.join(_log_levels)}, or unset.")
_log_line = "{asctime} {levelname} {name}: {message}"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"()": "project.logs.TextFormatter", "format": _log_line, "style": "{"},
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "format": _log_line,
            "style": "{",
            "json_ensure_ascii": False,
        },
    },
    "handlers": {
        # The level of the root logger does not apply to loggers with a level of their own.
        "stderr": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT, "level": LOG_LEVEL}
    },
    "loggers": {
        # Below WARNING, django-axes logs every successful sign-in.
        "axes": {"level": "WARNING"},
        # Replace Django's own handlers, which ignore the level and format, or log lines twice.
        "django": {"level": "NOTSET"},
        "django.server": {"level": "NOTSET", "propagate": True},
    },
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
}
