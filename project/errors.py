"""What is answered when a page can't be."""

import logging
from collections.abc import Callable

from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views import defaults

from courses.transactions import is_transient

logger = logging.getLogger(__name__)

TRY_AGAIN_AFTER = 5  # seconds
BUSY = (
    "The database is too busy, or away. Look whether your change is there before you send it again."
)


def is_api(request: HttpRequest) -> bool:
    return request.path.startswith("/api/")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if is_api(request):
        return JsonResponse({"detail": "There is nothing at this address."}, status=404)
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    if is_api(request):
        return JsonResponse({"detail": "Something went wrong; it is written down."}, status=500)
    return defaults.server_error(request)


def busy(request: HttpRequest) -> HttpResponse:
    if is_api(request):
        answer: HttpResponse = JsonResponse({"detail": BUSY}, status=503)
    else:
        # Without the request: whatever asks who is signed in would ask the database again.
        answer = render(None, "503.html", {"busy": BUSY}, status=503)
    answer["Retry-After"] = str(TRY_AGAIN_AFTER)
    return answer


class BusyDatabaseMiddleware:
    """Answers 503, which says "later", where retries did not help. Other errors remain 500."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, OperationalError) or not is_transient(error):
            return None
        logger.error("%s %s: %s", request.method, request.path, error)
        return busy(request)
