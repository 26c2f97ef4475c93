"""Error responses: 503 while the database is unavailable, and JSON errors for the API."""

import logging
from http import HTTPStatus

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.deprecation import MiddlewareMixin

from courses.transactions import is_transient

logger = logging.getLogger(__name__)

UNAVAILABLE_MESSAGE = (
    "The database is busy or unavailable. Check whether your change was saved before you try again."
)


class ErrorMiddleware(MiddlewareMixin):
    """Respond with status 503 to transient database errors, and with JSON to errors below /api/."""

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not is_transient(error):
            return None
        logger.error("%s %s: %s", request.method, request.path, error)
        response: HttpResponse
        if is_api_request(request):
            response = JsonResponse({"detail": UNAVAILABLE_MESSAGE}, status=503)
        else:
            # With a request, the page would query the database for the user.
            context = {"message": UNAVAILABLE_MESSAGE, "course_url": _course_url(request)}
            response = render(None, "503.html", context, status=503)
        response["Retry-After"] = "5"  # seconds
        return response

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Convert error pages below /api/ to JSON, whichever layer rejected the request."""
        is_json = response.get("Content-Type", "").startswith("application/json")
        if response.status_code >= 400 and is_api_request(request) and not is_json:
            status = HTTPStatus(response.status_code)
            detail = f"{status.phrase}. {status.description}"
            response.content = JsonResponse({"detail": detail}).content
            response["Content-Type"] = "application/json"
            # CommonMiddleware has set the length of the body that was replaced.
            response["Content-Length"] = str(len(response.content))
        return response


def _course_url(request: HttpRequest) -> str | None:
    """Return the path of the course that the request is about, without a query."""
    match = request.resolver_match
    slug = match.kwargs.get("slug") if match else None
    return reverse("course", args=[slug]) if slug else None


def is_api_request(request: HttpRequest) -> bool:
    """Return whether the response must be JSON."""
    return request.path_info.startswith("/api/")
