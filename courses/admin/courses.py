"""The catalog in the admin: what is stored, what is true, and the drift between them."""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.contrib.humanize.templatetags.humanize import intcomma
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from courses.admin.base import (
    MOST_LINES,
    MOST_SELECTED,
    LargeTableList,
    ProtectedByEnrollments,
    ProtectedDeleteAdmin,
    actor_label,
    is_large,
    rows_at_most,
    selected_pks,
)
from courses.counts.audit import CHECK_TIME_LIMIT, DAYS, CheckInProgress, run_audit, timed_check
from courses.counts.status import KnownDrifts, health, known_drifts, last_runs, plots
from courses.managers import CourseQuerySet, drift, true_count
from courses.models import CountRun, Course, Subject

# A list of choices that a page has room for. Subjects beyond are found by searching.
MOST_CHOICES = 500


def counting_is_dear(request: HttpRequest) -> bool:
    """Whether no page can count the rows of all courses."""
    rows = Course._meta.get_field("enrollments").related_model
    return is_large(request, Course) or is_large(request, rows)


class DriftedFilter(admin.SimpleListFilter):
    title = "count"
    parameter_name = "drifted"
    # What the list goes by, and the note above it; None: all courses are counted.
    known: KnownDrifts | None = None

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Drifted")]

    def queryset(self, request: HttpRequest, queryset: CourseQuerySet) -> CourseQuerySet:
        if self.value() != "yes":
            return queryset
        if not counting_is_dear(request):
            return queryset.drifted()
        # Counted now, but only those that the ledger knows of.
        self.known = known_drifts()
        asked = Course.objects.filter(pk__in=self.known.course_ids)
        return queryset.filter(pk__in=list(asked.drifted().values_list("pk", flat=True)))


@admin.register(Subject)
class SubjectAdmin(ProtectedDeleteAdmin):
    list_display = ["name", "slug"]
    search_fields = ["name"]
    sortable_when_large = ["name", "slug"]
    kept_by, kept_by_one, kept_by_many = "courses", "course", "courses"
    added_meanwhile = "a course was added to it"
    prepopulated_fields = {"slug": ["name"]}


class CourseList(LargeTableList):
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        look_at(self.result_list)

    @property
    def known_drifts(self) -> KnownDrifts | None:
        filters = [spec for spec in self.filter_specs if isinstance(spec, DriftedFilter)]
        return filters[0].known if filters else None


def look_at(courses: Sequence[Course]) -> None:
    """Give courses their stored and true counts, as of one moment."""
    found = Course.objects.filter(pk__in=[course.pk for course in courses]).with_true_count()
    counts = {
        key: counts for key, *counts in found.values_list("pk", "total_enrollments", "true_count")
    }
    for course in courses:
        # Where it was deleted meanwhile: as it was.
        course.total_enrollments, course.true_count = counts.get(
            course.pk, (course.total_enrollments, course.total_enrollments)
        )


@admin.register(Course)
class CourseAdmin(ProtectedByEnrollments):
    list_display = ["title", "stored", "true", "drift", "capacity", "subject"]
    list_filter = [DriftedFilter, "subject"]
    list_select_related = ["subject"]
    # The second is in the index of the first: see LargeTableList.get_ordering().
    ordering = ["title", "pk"]
    search_fields = ["title", "slug"]
    sortable_when_large = ["title", "stored"]
    search_fields_when_large = ["title"]
    search_help_when_large = "By words of the title."
    filters_have_indexes = True
    autocomplete_fields = ["subject", "instructor"]
    prepopulated_fields = {"slug": ["title"]}
    readonly_fields = ["stored", "true", "drift"]
    actions = ["rebuild_counts", *ProtectedByEnrollments.actions]

    class Media:
        css = {"all": ["courses/admin.css"]}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return CourseList

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        few = rows_at_most(request, Subject) <= MOST_CHOICES
        return self.list_filter if few else [DriftedFilter]

    def get_sortable_by(self, request: HttpRequest) -> Sequence[str]:
        if not counting_is_dear(request):
            return super().get_sortable_by(request)
        if request.GET.get("drifted") == "yes":
            return self.list_display  # the ledger knows of few only
        return [name for name in super().get_sortable_by(request) if name not in ("true", "drift")]

    def get_fieldsets(self, request: HttpRequest, obj: Course | None = None) -> list[Any]:
        fields = ["title", "slug", "subject", "instructor", "capacity"]
        count = ("Students", {"fields": [("stored", "true", "drift")]})
        return [(None, {"fields": fields}), *([count] if obj else [])]

    def get_urls(self) -> list[URLPattern]:
        health_url = path(
            "health/", self.admin_site.admin_view(self.health_view), name="courses_course_health"
        )
        return [health_url, *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {
            "check_for": int(CHECK_TIME_LIMIT),
            "has_change_permission": self.has_change_permission(request),
        }
        return super().changelist_view(request, context | (extra_context or {}))

    def health_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            if not self.has_change_permission(request):
                raise PermissionDenied
            self._check_now(request)
            if request.POST.get("then") == "drifted":
                drifted = reverse("admin:courses_course_changelist") + "?drifted=yes"
                return HttpResponseRedirect(drifted)
            return HttpResponseRedirect(request.path)
        context = self.admin_site.each_context(request) | {
            "title": "Count health",
            "opts": self.opts,
            "health": health(),
            "plots": plots(),
            "runs": last_runs(),
            "days": DAYS,
            "check_for": int(CHECK_TIME_LIMIT),
            "has_change_permission": self.has_change_permission(request),
            "can_see_ledger": request.user.has_perm("courses.view_countrun"),
        }
        return TemplateResponse(request, "admin/courses/course/health.html", context)

    def _check_now(self, request: HttpRequest) -> None:
        try:
            checked = timed_check(actor=actor_label(request))
        except CheckInProgress:
            self.message_user(
                request, "A check is going on: look again in a few seconds.", messages.WARNING
            )
            return
        courses = f"{intcomma(checked.courses_checked)} course{'' if checked.courses_checked == 1 else 's'}"
        said = f"{courses} looked at: " + (
            f"{intcomma(checked.drifted)} drifted." if checked.drifted else "all counts are right."
        )
        level = messages.ERROR if checked.drifted else messages.SUCCESS
        if not checked.is_whole:
            said += (
                f" Time was up after course {checked.last_id}; those after it were not looked "
                "at. For all of them: manage.py rebuild_counts --check"
            )
            level = max(level, messages.WARNING)
        self.message_user(request, said, level)

    @admin.display(description="stored count", ordering="total_enrollments")
    def stored(self, course: Course) -> int:
        self._counted(course)
        return course.total_enrollments

    @admin.display(description="true count", ordering=true_count())
    def true(self, course: Course) -> int:
        return self._counted(course)

    @admin.display(ordering=drift())
    def drift(self, course: Course) -> str:
        by = course.total_enrollments - self._counted(course)
        return format_html('<strong class="drift">{}</strong>', f"{by:+d}") if by else "0"

    def _counted(self, course: Course) -> int:
        if not hasattr(course, "true_count"):
            look_at([course])
        return course.true_count

    @admin.action(permissions=["change"], description="Rebuild counts of the selected courses")
    def rebuild_counts(self, request: HttpRequest, queryset: CourseQuerySet) -> None:
        keys = selected_pks(queryset)
        if keys is None:
            self.message_user(
                request,
                f"Nothing was rebuilt: select at most {MOST_SELECTED} at a time, or correct all "
                "with manage.py rebuild_counts.",
                messages.ERROR,
            )
            return
        courses = Course.objects.filter(pk__in=keys)
        corrected = 0
        for found in run_audit(
            kind=CountRun.Kind.REBUILD, actor=actor_label(request), courses=courses
        ):
            corrected += 1
            if corrected <= MOST_LINES:
                self.message_user(
                    request,
                    f"“{found.title}” corrected from {found.stored} to {found.true} "
                    f"(drift {found.drift:+d}).",
                    messages.WARNING,
                )
        if corrected > MOST_LINES:
            more = corrected - MOST_LINES
            self.message_user(request, f"{more} more corrected.", messages.WARNING)
        if not corrected:
            self.message_user(
                request, "All counts of the selected courses are right.", messages.SUCCESS
            )
