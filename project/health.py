"""Health checks for load balancers and monitoring: /healthz and /readyz."""

import logging
from typing import Any

from django.conf import settings
from django.core.cache import cache
from django.db import Error, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.deprecation import MiddlewareMixin
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

logger = logging.getLogger(__name__)


class HealthMiddleware(MiddlewareMixin):
    """Answer health checks before Django checks the host and redirects to HTTPS.

    Load balancers connect over plain HTTP and send an IP address as the host.
    """

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        view = {"/healthz": healthz, "/readyz": readyz}.get(request.path_info)
        return view(request) if view else None


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
    checks = {"database": _database_status(), "redis": _redis_status()}
    if checks["database"] == "unavailable":
        return JsonResponse({"status": "unavailable", **checks}, status=503)
    status = "degraded" if checks["redis"] == "unavailable" else "ok"
    return JsonResponse({"status": status, **checks})


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
    fail_open_cache: Any = cache
    return "ok" if fail_open_cache.ping() else "unavailable"
