"""What is answered when a page can't be."""

import logging
from collections.abc import Callable
from http import HTTPStatus

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from courses.transactions import is_transient

logger = logging.getLogger(__name__)

Respond = Callable[[HttpRequest], HttpResponse]

TRY_AGAIN_AFTER = 5  # seconds
BUSY = (
    "The database is too busy, or away. Look whether your change is there before you send it again."
)


def busy(request: HttpRequest, error: Exception) -> HttpResponse | None:
    """Answer 503, which says "later", where retries did not help; None: it is another error."""
    if not is_transient(error):
        return None
    logger.error("%s %s: %s", request.method, request.path, error)
    # Without the request: whatever asks who is signed in would ask the database again.
    answer = (
        JsonResponse({"detail": BUSY}, status=503)
        if is_api(request)
        else render(None, "503.html", {"busy": BUSY}, status=503)
    )
    answer["Retry-After"] = str(TRY_AGAIN_AFTER)
    return answer


def is_api(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/")


class BusyDatabaseMiddleware:
    def __init__(self, get_response: Respond) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        return busy(request, error)


class JsonErrorsMiddleware:
    """Programs get JSON, whoever refused them."""

    def __init__(self, get_response: Respond) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        answer = self._get_response(request)
        said = answer.get("Content-Type", "")
        if answer.status_code < 400 or not is_api(request) or said.startswith("application/json"):
            return answer
        status = HTTPStatus(answer.status_code)
        answer.content = JsonResponse({"detail": f"{status.phrase}. {status.description}"}).content
        answer["Content-Type"] = "application/json"
        return answer
