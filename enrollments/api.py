"""The signed-in student's own enrollment as JSON."""

from datetime import datetime
from typing import Any

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.views.decorators.cache import never_cache
from ninja import Router, Schema, Status
from ninja.decorators import decorate_view
from ninja.errors import HttpError
from ninja.security import SessionAuth

from courses.api import Problem
from courses.models import Course
from enrollments import services
from enrollments.history import Origin, Source
from enrollments.models import Enrollment


class SignedIn(SessionAuth):
    """Django's session, with its CSRF token; who isn't signed in is told so first."""

    def __call__(self, request: HttpRequest) -> Any:
        return super().__call__(request) if request.user.is_authenticated else None


class StudentRequest(HttpRequest):
    """A request that SignedIn has let through."""

    user: Any  # never anonymous


router = Router(tags=["enrollment"], auth=SignedIn())


class EnrollmentOut(Schema):
    course: str
    status: Enrollment.Status
    enrollment_date: datetime


# What may be answered instead of the enrollment.
REFUSALS = {401: Problem, 403: Problem, 404: Problem, 503: Problem}


@router.put(
    "/courses/{slug}/enrollment",
    response={200: EnrollmentOut, 201: EnrollmentOut, 409: Problem, **REFUSALS},
    operation_id="enroll",
    summary="Enroll in a course",
    description="201: you are enrolled now. 200: you were already. 409: the course is full.",
)
@decorate_view(never_cache)
def enroll(request: StudentRequest, slug: str) -> Status[dict[str, Any]]:
    course = get_object_or_404(Course, slug=slug)
    try:
        row, changed = services.enroll(student=request.user, course=course, origin=_by(request))
    except services.CourseFull as error:
        raise HttpError(409, str(error)) from error
    answer = {
        "course": course.slug,
        "status": row.status,
        "enrollment_date": row.enrollment_date,
    }
    return Status(201 if changed else 200, answer)


@router.delete(
    "/courses/{slug}/enrollment",
    response={204: None, 409: Problem, **REFUSALS},
    operation_id="leave",
    summary="Leave a course",
    description="204: you are not enrolled, now or before. 409: you have completed it.",
)
@decorate_view(never_cache)
def leave(request: StudentRequest, slug: str) -> Status[None]:
    course = get_object_or_404(Course, slug=slug)
    try:
        services.leave(student=request.user, course=course, origin=_by(request))
    except services.CourseCompleted as error:
        raise HttpError(409, str(error)) from error
    return Status(204, None)


def _by(request: StudentRequest) -> Origin:
    return Origin(Source.API, request.user.get_username())
