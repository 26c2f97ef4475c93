"""What students do with their own enrolments."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from courses.models import Course
from enrollments import services
from enrollments.models import Enrollment


@require_POST
def enroll(request: HttpRequest, slug: str) -> HttpResponse:
    course = get_object_or_404(Course, slug=slug)
    if not request.user.is_authenticated:
        return redirect_to_login(course.get_absolute_url())
    try:
        _, changed = services.enroll(student=request.user.pk, course=course.pk)
    except services.CourseFull as error:
        messages.error(request, str(error))
    else:
        if changed:
            messages.success(request, f"You are enrolled in “{course.title}”.")
        else:
            messages.info(request, f"You were enrolled in “{course.title}” already.")
    return redirect(course)


@require_POST
def leave(request: HttpRequest, slug: str) -> HttpResponse:
    course = get_object_or_404(Course, slug=slug)
    if not request.user.is_authenticated:
        return redirect_to_login(course.get_absolute_url())
    if services.unenroll(student=request.user.pk, course=course.pk):
        messages.success(request, f"You have left “{course.title}”.")
    else:
        messages.info(request, f"You were not enrolled in “{course.title}”.")
    return redirect(course)


@never_cache
@require_safe
@login_required
def my_courses(request: HttpRequest) -> HttpResponse:
    rows = list(
        Enrollment.objects.filter(student=request.user.pk)
        .select_related("course__subject")
        .order_by("-enrollment_date", "-pk")
    )
    groups = [
        (status.label, [row for row in rows if row.status == status])
        for status in Enrollment.Status
    ]
    return render(request, "enrollments/my_courses.html", {"groups": groups, "has_any": bool(rows)})
