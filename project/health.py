"""Health checks for load balancers and monitoring: /healthz and /readyz."""

import logging
from collections.abc import Callable
from typing import cast

from django.conf import settings
from django.core.cache import cache
from django.db import Error, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from project.cache import FailOpenRedisCache

logger = logging.getLogger(__name__)


class HealthMiddleware:
    """Answer health checks before Django checks the host and redirects to HTTPS.

    Load balancers connect over plain HTTP and send an IP address as the host.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        view = {"/healthz": healthz, "/readyz": readyz}.get(request.path_info, self._get_response)
        return view(request)


@never_cache
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """Report that the process is alive. Uses neither the database nor Redis."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """Report with status 200 that the database is available, otherwise with 503.

    The site is ready without Redis, but slower: its status is then "degraded".
    """
    database, redis = _database_status(), _redis_status()
    if database == "unavailable":
        status = "unavailable"
    else:
        status = "degraded" if redis == "unavailable" else "ok"
    return JsonResponse(
        {"status": status, "database": database, "redis": redis},
        status=503 if status == "unavailable" else 200,
    )


def _database_status() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error as error:
        logger.warning("The database is unavailable: %s", error)
        connection.close()
        return "unavailable"
    return "ok"


def _redis_status() -> str:
    if not settings.REDIS_URL:
        return "unused"
    return "ok" if cast(FailOpenRedisCache, cache).ping() else "unavailable"
