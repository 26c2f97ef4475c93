"""The recorded checks and rebuilds in the admin."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from courses.admin.base import ReadOnlyAdmin
from courses.counts.models import CountDiscrepancy, CountRun


@admin.register(CountRun)
class CountRunAdmin(ReadOnlyAdmin):
    list_display = [
        "started_at",
        "kind",
        "actor",
        "courses_checked",
        "drifted",
        "corrected",
        "took_seconds",
    ]
    list_filter = ["kind", "is_full"]
    sortable_by = ["started_at"]
    fields = [
        *(
            "kind",
            "actor",
            "started_at",
            "finished_at",
            "took_seconds",
            "is_full",
            "courses_checked",
        ),
        *("drifted", "corrected", "absolute_drift", "stored_sum", "true_sum", "entries"),
    ]
    readonly_fields = ["took_seconds", "entries"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[CountRun]:
        return super().get_queryset(request).defer("enrolled_by_day")

    @admin.display(description="took")
    def took_seconds(self, run: CountRun) -> str:
        return f"{run.duration.total_seconds():.2f} s" if run.duration else "not at its end"

    @admin.display(description="drifts found")
    def entries(self, run: CountRun) -> str:
        url = reverse("admin:courses_countdiscrepancy_changelist")
        return format_html('<a href="{}?run__id__exact={}">Those entered</a>', url, run.pk)


@admin.register(CountDiscrepancy)
class CountDiscrepancyAdmin(ReadOnlyAdmin):
    list_display = ["course_title", "stored", "true", "signed", "corrected", "found_at", "actor"]
    list_filter = ["corrected"]
    list_select_related = ["run"]
    fields = ["course_link", "stored", "true", "signed", "corrected", "found_at", "run_link"]
    readonly_fields = ["course_link", "signed", "run_link"]

    @admin.display(description="drift", ordering="drift")
    def signed(self, found: CountDiscrepancy) -> str:
        return f"{found.drift:+d}"

    @admin.display(ordering="run__actor")
    def actor(self, found: CountDiscrepancy) -> str:
        return found.run.actor

    @admin.display(description="course")
    def course_link(self, found: CountDiscrepancy) -> str:
        if found.course_id is None:
            return found.course_title
        url = reverse("admin:courses_course_change", args=[found.course_id])
        return format_html('<a href="{}">{}</a>', url, found.course_title)

    @admin.display(description="found by")
    def run_link(self, found: CountDiscrepancy) -> str:
        url = reverse("admin:courses_countrun_change", args=[found.run_id])
        return format_html('<a href="{}">{}</a>', url, found.run)
