"""The JSON API. Its description at /api/openapi.json is generated from the types."""

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.deprecation import MiddlewareMixin
from django.views.decorators.cache import never_cache
from ninja import NinjaAPI
from ninja.errors import ValidationError

from courses.api import router as courses_router
from enrollments.api import router as enrollments_router
from project.errors import is_api_request

api = NinjaAPI(
    title="Live enrollment counts",
    version="1",
    description="List courses with their live enrollment counts, and enroll the student who is "
    "signed in.",
    docs_url=None,  # its page loads scripts from another site
    urls_namespace="api",
)
api.add_decorator(never_cache, mode="view")
api.add_router("", courses_router)
api.add_router("", enrollments_router)


@api.get("/", response=dict[str, str], operation_id="index", summary="List the entry points")
def index(request: HttpRequest) -> dict[str, str]:
    return {"courses": reverse("api:list_courses"), "description": reverse("api:openapi-json")}


@api.exception_handler(ValidationError)
def handle_validation_error(request: HttpRequest, error: ValidationError) -> HttpResponse:
    detail = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors)
    return api.create_response(request, {"detail": detail}, status=400)


class HeadMiddleware(MiddlewareMixin):
    """Process HEAD requests of the API like GET, because Ninja's views reject them.

    The server omits the body.
    """

    def process_request(self, request: HttpRequest) -> None:
        if request.method == "HEAD" and is_api_request(request):
            request.method = "GET"
