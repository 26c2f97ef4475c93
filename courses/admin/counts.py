"""The Count health page, and the recorded checks and rebuilds."""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import DEFAULT_DB_ALIAS
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.defaultfilters import pluralize
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from courses.admin.base import ReadOnlyAdmin, actor_label
from courses.counts.audit import CHECK_TIME_LIMIT, CheckInProgress, TimedCheckResult, timed_check
from courses.counts.models import CountDiscrepancy, CountRun
from courses.counts.status import chart_days, count_status

MAX_LISTED_RUNS = 10


@admin.register(CountRun)
class CountRunAdmin(ReadOnlyAdmin):
    list_display = [
        *("started_at", "kind", "actor", "courses_checked", "drifted", "corrected"),
        *("absolute_drift", "duration_text"),
    ]
    list_filter = ["kind", "is_full"]
    sortable_by = ["started_at"]
    fields = [
        *("kind", "actor", "started_at", "finished_at", "duration_text", "is_full"),
        *("courses_checked", "drifted", "corrected", "absolute_drift", "discrepancies_link"),
    ]
    readonly_fields = ["duration_text", "discrepancies_link"]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.count_health_view)
        return [path("health/", view, name="courses_count_health"), *super().get_urls()]

    def count_health_view(self, request: HttpRequest) -> HttpResponse:
        needed = "change_course" if request.method == "POST" else "view_course"
        if not request.user.has_perm(f"courses.{needed}"):
            raise PermissionDenied
        if request.method == "POST":
            self._check_now(request)
            return redirect("admin:courses_count_health")
        days = chart_days()
        context: dict[str, Any] = self.admin_site.each_context(request) | {
            "title": "Count health",
            "opts": self.opts,
            "status": count_status(),
            "days": days,
            "maximum": max(max(day.drifted or 0, day.corrected) for day in days),
            "runs": CountRun.objects.using(DEFAULT_DB_ALIAS).order_by("-pk")[:MAX_LISTED_RUNS],
            "check_seconds": int(CHECK_TIME_LIMIT),
            "can_change_courses": request.user.has_perm("courses.change_course"),
            "can_view_runs": self.has_view_permission(request),
        }
        return TemplateResponse(request, "admin/courses/counts/health.html", context)

    def _check_now(self, request: HttpRequest) -> None:
        try:
            result = timed_check(actor=actor_label(request))
        except CheckInProgress:
            message = "A check is already running. Reload this page in a few seconds."
            self.message_user(request, message, messages.WARNING)
            return
        is_correct = result.is_complete and not result.drifted
        level = messages.SUCCESS if is_correct else messages.WARNING
        self.message_user(request, _describe(result), level)

    @admin.display(description="duration")
    def duration_text(self, run: CountRun) -> str:
        return f"{run.duration.total_seconds():.2f} s" if run.duration else "unfinished"

    @admin.display(description="discrepancies")
    def discrepancies_link(self, run: CountRun) -> str:
        url = reverse("admin:courses_countdiscrepancy_changelist")
        text = "Drifted courses last seen by this run"
        return format_html('<a href="{}?run__id__exact={}">{}</a>', url, run.pk, text)


def _describe(result: TimedCheckResult) -> str:
    number = result.courses_checked
    outcome = f"{result.drifted:,} drifted." if result.drifted else "all counts are correct."
    message = f"{number:,} course{pluralize(number)} checked: {outcome}"
    if result.is_complete:
        return message
    return (
        f"{message} The time limit was reached after course {result.last_id}. "
        "Check all courses with: manage.py rebuild_counts --check"
    )


class StatusFilter(admin.SimpleListFilter):
    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "Open"), ("resolved", "Resolved")]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        if self.value() is None:
            return queryset
        return queryset.filter(resolved_at__isnull=self.value() == "open")


@admin.register(CountDiscrepancy)
class CountDiscrepancyAdmin(ReadOnlyAdmin):
    list_display = [
        *("course_title", "stored", "true", "signed_drift"),
        *("found_at", "last_seen_at", "resolved_at"),
    ]
    list_filter = [StatusFilter]
    fields = [
        *("course_title", "course", "stored", "true", "signed_drift"),
        *("found_at", "last_seen_at", "resolved_at", "corrected", "run"),
    ]
    readonly_fields = ["signed_drift"]

    @admin.display(description="drift")
    def signed_drift(self, discrepancy: CountDiscrepancy) -> str:
        return f"{discrepancy.drift:+d}"
