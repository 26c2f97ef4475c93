"""The admin of courses and subjects, with the stored count, true count and drift of each course."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import Field
from django.http import HttpRequest
from django.template.defaultfilters import pluralize
from django.urls import reverse
from django.utils.html import format_html

from courses.admin.base import ProtectedDeleteAdmin, actor_label
from courses.counts.audit import run_audit
from courses.managers import CourseQuerySet, drift, true_count
from courses.models import CountDiscrepancy, CountRun, Course, Subject

MAX_SUBJECT_CHOICES = 200


@admin.register(Subject)
class SubjectAdmin(ProtectedDeleteAdmin):
    list_display = ["name", "slug", "courses"]
    search_fields = ["name"]
    sortable_by = ["name", "slug"]
    protected_relation = "courses"
    prepopulated_fields = {"slug": ["name"]}

    @admin.display
    def courses(self, subject: Subject) -> str:
        url = reverse("admin:courses_course_changelist")
        return format_html('<a href="{}?subject__id__exact={}">Courses</a>', url, subject.pk)


class DriftFilter(admin.SimpleListFilter):
    title = "drift"
    parameter_name = "drifted"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Drifted now"), ("last-check", "Drifted at the last check")]

    def queryset(self, request: HttpRequest, queryset: CourseQuerySet) -> CourseQuerySet:
        if self.value() == "yes":
            return queryset.drifted()
        if self.value() == "last-check":
            unresolved = CountDiscrepancy.objects.filter(resolved_at=None, course__isnull=False)
            return queryset.filter(pk__in=unresolved.values("course"))
        return queryset


class SubjectFilter(admin.RelatedFieldListFilter):
    """Offer the first subjects by name. The subject list links to the courses of the others."""

    def field_choices(
        self, field: Field, request: HttpRequest, model_admin: admin.ModelAdmin
    ) -> list[tuple[Any, str]]:
        return list(Subject.objects.values_list("pk", "name")[:MAX_SUBJECT_CHOICES])


@admin.register(Course)
class CourseAdmin(ProtectedDeleteAdmin):
    list_display = ["title", "stored", "true", "drift", "capacity", "subject"]
    list_filter = [DriftFilter, ("subject", SubjectFilter)]
    list_select_related = ["subject"]
    ordering = ["title", "pk"]
    # Sorting by true count or drift counts the enrollments of every course through an index.
    sortable_by = ["title", "stored", "true", "drift"]
    search_fields = ["title"]
    search_help_text = "Search for words in the title."
    autocomplete_fields = ["subject", "instructor"]
    prepopulated_fields = {"slug": ["title"]}
    readonly_fields = ["stored", "true", "drift"]
    actions = ["rebuild_counts", "delete_selected"]
    protected_relation = "enrollments"

    def get_queryset(self, request: HttpRequest) -> CourseQuerySet:
        return super().get_queryset(request).with_true_count()

    def get_fieldsets(self, request: HttpRequest, obj: Course | None = None) -> list[Any]:
        fields = ["title", "slug", "code", "subject", "instructor", "capacity"]
        counts = ("Enrollments", {"fields": [("stored", "true", "drift")]})
        return [(None, {"fields": fields}), *([counts] if obj else [])]

    @admin.display(description="stored count", ordering="total_enrollments")
    def stored(self, course: Course) -> int:
        return course.total_enrollments

    @admin.display(description="true count", ordering=true_count())
    def true(self, course: Course) -> int:
        return course.true_count

    @admin.display(ordering=drift())
    def drift(self, course: Course) -> str:
        difference = course.total_enrollments - course.true_count
        if not difference:
            return "0"
        return format_html('<strong class="drift">{}</strong>', f"{difference:+d}")

    @admin.action(permissions=["change"], description="Rebuild counts of the selected courses")
    def rebuild_counts(self, request: HttpRequest, queryset: CourseQuerySet) -> None:
        corrected = list(
            run_audit(
                kind=CountRun.Kind.REBUILD,
                actor=actor_label(request),
                courses=Course.objects.filter(pk__in=list(queryset.values_list("pk", flat=True))),
            )
        )
        message = "All counts of the selected courses are correct."
        if corrected:
            message = f"Corrected {len(corrected)} course{pluralize(corrected)}."
        self.message_user(request, message, messages.SUCCESS)
