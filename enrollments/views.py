"""The pages on which students enroll, leave, and see their own enrollments."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from courses.models import Course
from enrollments import services
from enrollments.history import Origin, Source
from enrollments.models import Enrollment


def enroll(request: HttpRequest, slug: str) -> HttpResponse:
    return _change_enrollment(request, slug, _enroll)


def leave(request: HttpRequest, slug: str) -> HttpResponse:
    return _change_enrollment(request, slug, _leave)


@never_cache
@require_safe
@login_required
def my_courses(request: HttpRequest) -> HttpResponse:
    enrollments = list(
        Enrollment.objects.filter(student=request.user.pk)
        .select_related("course__subject")
        .order_by("-enrollment_date", "-pk")
    )
    by_status = [
        (status.label, [enrollment for enrollment in enrollments if enrollment.status == status])
        for status in Enrollment.Status
    ]
    groups = [(label, group) for label, group in by_status if group]
    return render(request, "enrollments/my_courses.html", {"groups": groups})


def _change_enrollment(
    request: HttpRequest, slug: str, change: Callable[[HttpRequest, Course, Model], None]
) -> HttpResponse:
    """Call `change` for a POST by a signed-in student, and redirect to the course's page."""
    course = get_object_or_404(Course, slug=slug)
    if request.method != "POST":
        return redirect(course)
    if not request.user.is_authenticated:
        return redirect_to_login(course.get_absolute_url())
    change(request, course, request.user)
    return redirect(course)


def _enroll(request: HttpRequest, course: Course, student: Model) -> None:
    try:
        _, changed = services.enroll(student=student, course=course, origin=_origin(student))
    except services.CourseFull as error:
        messages.error(request, str(error))
        return
    if changed:
        messages.success(request, f"You are enrolled in “{course.title}”.")
    else:
        messages.info(request, f"You were already enrolled in “{course.title}”.")


def _leave(request: HttpRequest, course: Course, student: Model) -> None:
    try:
        changed = services.leave(student=student, course=course, origin=_origin(student))
    except services.CourseCompleted as error:
        messages.error(request, str(error))
        return
    if changed:
        messages.success(request, f"You have left “{course.title}”.")
    else:
        messages.info(request, f"You were not enrolled in “{course.title}”.")


def _origin(student: Any) -> Origin:
    return Origin(Source.WEBSITE, student.get_username())
