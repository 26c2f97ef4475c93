"""The pages on which students enroll, leave, and see their own enrollments."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import messages
from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.db import DEFAULT_DB_ALIAS
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from courses.models import Course
from enrollments import services
from enrollments.history import Origin, Source
from enrollments.models import Enrollment


def _change_enrollment(
    change: Callable[[HttpRequest, Course, Any], None],
) -> Callable[[HttpRequest, str], HttpResponse]:
    """Call the view for a POST by a signed-in student, then redirect to the course's page."""

    @wraps(change)
    def view(request: HttpRequest, slug: str) -> HttpResponse:
        course = get_object_or_404(Course.objects.using(DEFAULT_DB_ALIAS), slug=slug)
        if request.method == "POST":
            if not request.user.is_authenticated:
                return redirect_to_login(course.get_absolute_url())
            try:
                change(request, course, request.user)
            except (services.CourseFull, services.CourseCompleted) as error:
                messages.error(request, str(error))
            except Course.DoesNotExist as error:
                # Deleted since it was read above. So may be the user.
                raise Http404(str(error)) from error
            except get_user_model().DoesNotExist:
                return redirect_to_login(course.get_absolute_url())
        return redirect(course)

    return view


@_change_enrollment
def enroll(request: HttpRequest, course: Course, student: Any) -> None:
    _, changed = services.enroll(student=student, course=course, origin=_origin(student))
    if changed:
        messages.success(request, f"You are enrolled in “{course.title}”.")
    else:
        messages.info(request, f"You were already enrolled in “{course.title}”.")


@_change_enrollment
def leave(request: HttpRequest, course: Course, student: Any) -> None:
    if services.leave(student=student, course=course, origin=_origin(student)):
        messages.success(request, f"You have left “{course.title}”.")
    else:
        messages.info(request, f"You were not enrolled in “{course.title}”.")


@never_cache
@require_safe
@login_required
def my_courses(request: HttpRequest) -> HttpResponse:
    enrollments = Enrollment.objects.filter(student=request.user.pk)
    newest_first = enrollments.order_by("status", "-enrollment_date", "-pk")
    context = {"enrollments": newest_first.select_related("course__subject")}
    return render(request, "enrollments/my_courses.html", context)


def _origin(student: Any) -> Origin:
    return Origin(Source.WEBSITE, student.get_username())
