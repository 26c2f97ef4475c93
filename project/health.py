"""What load balancers and monitors ask."""

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
    """Answers before host and https are looked at: who asks may know an address only."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        view = {"/healthz": healthz, "/readyz": readyz}.get(request.path_info, self._get_response)
        return view(request)


@never_cache
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """Alive: the process answers. Needs nothing else."""
    return JsonResponse({"status": "ok"})


@never_cache
@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """Ready: 200 when the database answers, 503 when not. Without Redis all goes on, slower."""
    database, redis = _database(), _redis()
    ready = database == "ok"
    status = "unavailable" if not ready else "degraded" if redis == "unavailable" else "ok"
    return JsonResponse(
        {"status": status, "database": database, "redis": redis}, status=200 if ready else 503
    )


def _database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error as error:
        logger.warning("The database can't be used: %s", error)
        connection.close()
        return "unavailable"
    return "ok"


def _redis() -> str:
    if not settings.REDIS_URL:
        return "unused"
    return "ok" if cast(FailOpenRedisCache, cache).ping() else "unavailable"
