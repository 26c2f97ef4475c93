"""The JSON API with which signed-in students enroll and leave."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.db import DEFAULT_DB_ALIAS
from django.http import Http404, HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Router, Schema, Status
from ninja.errors import AuthenticationError, HttpError
from ninja.security import SessionAuth

from courses.api import Problem
from courses.models import Course
from enrollments import services
from enrollments.history import Origin, Source
from enrollments.models import Enrollment


class SignedIn(SessionAuth):
    """Require a session and its CSRF token. Respond 401 before checking the token."""

    def __call__(self, request: HttpRequest) -> Any:
        return super().__call__(request) if request.user.is_authenticated else None


class StudentRequest(HttpRequest):
    """A request that SignedIn has authenticated."""

    user: Any  # never anonymous


router = Router(tags=["enrollment"], auth=SignedIn())


class EnrollmentOut(Schema):
    course: str
    status: Enrollment.Status
    enrollment_date: datetime


ERROR_RESPONSES = {401: Problem, 403: Problem, 404: Problem, 503: Problem}


@router.put(
    "/courses/{slug}/enrollment",
    response={200: EnrollmentOut, 201: EnrollmentOut, 409: Problem, **ERROR_RESPONSES},
    operation_id="enroll",
    summary="Enroll in a course",
    description="Responds 201 if you are enrolled now, 200 if you already were, and 409 if the "
    "course is full.",
)
def enroll(request: StudentRequest, slug: str) -> Status[dict[str, Any]]:
    course = get_object_or_404(Course.objects.using(DEFAULT_DB_ALIAS), slug=slug)
    with _http_errors():
        enrollment, changed = services.enroll(
            student=request.user, course=course, origin=_origin(request)
        )
    body = {
        "course": course.slug,
        "status": enrollment.status,
        "enrollment_date": enrollment.enrollment_date,
    }
    return Status(201 if changed else 200, body)


@router.delete(
    "/courses/{slug}/enrollment",
    response={204: None, 409: Problem, **ERROR_RESPONSES},
    operation_id="leave",
    summary="Leave a course",
    description="Responds 204 if you left or were not enrolled, and 409 if you have completed the "
    "course.",
)
def leave(request: StudentRequest, slug: str) -> Status[None]:
    course = get_object_or_404(Course.objects.using(DEFAULT_DB_ALIAS), slug=slug)
    with _http_errors():
        services.leave(student=request.user, course=course, origin=_origin(request))
    return Status(204, None)


@contextmanager
def _http_errors() -> Iterator[None]:
    """Convert the exceptions of the services to errors of the API."""
    try:
        yield
    except (services.CourseFull, services.CourseCompleted) as error:
        raise HttpError(409, str(error)) from error
    except Course.DoesNotExist as error:  # deleted since it was read, as the user may be
        raise Http404(str(error)) from error
    except get_user_model().DoesNotExist as error:
        raise AuthenticationError from error


def _origin(request: StudentRequest) -> Origin:
    return Origin(Source.API, request.user.get_username())
