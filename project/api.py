"""The JSON interface. Its description, /api/openapi.json, is made from the types in it."""

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from ninja import NinjaAPI, Schema
from ninja.errors import ValidationError

from courses.api import router as courses
from enrollments.api import router as enrollments
from project.errors import busy

api = NinjaAPI(
    title="Live enrollment counts",
    version="1",
    description="Courses with the number of their students as it is stored at this moment, and "
    "enrollment of the student who is signed in.",
    docs_url=None,  # it would load scripts from elsewhere
    urls_namespace="api",
)
api.add_router("", courses)
api.add_router("", enrollments)


class Index(Schema):
    courses: str
    description: str


@api.get("/", response=Index, operation_id="index", summary="Where things are")
def index(request: HttpRequest) -> dict[str, str]:
    return {
        "courses": reverse("api:list_courses"),
        "description": reverse("api:openapi-json"),
    }


@api.exception_handler(ValidationError)
def invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    said = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors)
    return api.create_response(request, {"detail": said}, status=400)


@api.exception_handler(OperationalError)
@api.exception_handler(InterfaceError)
def away(request: HttpRequest, error: Exception) -> HttpResponse:
    answer = busy(request, error)
    if answer is None:
        raise error
    return answer
