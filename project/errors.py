"""Error responses: 503 while the database is unavailable, and JSON errors for the API."""

import logging
from collections.abc import Callable
from http import HTTPStatus

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from courses.transactions import is_transient

logger = logging.getLogger(__name__)

GetResponse = Callable[[HttpRequest], HttpResponse]

RETRY_AFTER = 5  # seconds
UNAVAILABLE_MESSAGE = (
    "The database is busy or unavailable. Check whether your change was saved before you try again."
)


class UnavailableDatabaseMiddleware:
    """Respond with status 503 if a view fails because the database is unavailable."""

    def __init__(self, get_response: GetResponse) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        return unavailable_response(request, error)


class JsonErrorsMiddleware:
    """Convert error pages below /api/ to JSON, whichever layer rejected the request."""

    def __init__(self, get_response: GetResponse) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        if response.status_code >= 400 and _is_api_request(request) and not _is_json(response):
            status = HTTPStatus(response.status_code)
            detail = f"{status.phrase}. {status.description}"
            response.content = JsonResponse({"detail": detail}).content
            response["Content-Type"] = "application/json"
        return response


def unavailable_response(request: HttpRequest, error: Exception) -> HttpResponse | None:
    """Log a transient database error and return a 503 response, or None for other errors."""
    if not is_transient(error):
        return None
    logger.error("%s %s: %s", request.method, request.path, error)
    response: HttpResponse
    if _is_api_request(request):
        response = JsonResponse({"detail": UNAVAILABLE_MESSAGE}, status=503)
    else:
        # With a request, the page would query the database for the user.
        response = render(None, "503.html", {"message": UNAVAILABLE_MESSAGE}, status=503)
    response["Retry-After"] = str(RETRY_AFTER)
    return response


def _is_api_request(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/")


def _is_json(response: HttpResponse) -> bool:
    return response.get("Content-Type", "").startswith("application/json")
