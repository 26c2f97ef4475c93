"""The catalogue in the admin: what is stored, what is true, and the drift between them."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.humanize.templatetags.humanize import intcomma
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, OperationalError
from django.db.models import Count, Model, ProtectedError, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from courses.health import health, last_runs, plots
from courses.ledger import CHECK_FOR, DAYS, AlreadyChecking, check_for_a_while, recorded
from courses.models import CountCorrection, CountRun, Course, Subject
from courses.querysets import CourseQuerySet
from courses.transactions import in_transaction, is_transient

# One line for each of them, up to here; the rest is summed up.
MOST_LINES = 20


def retried(view: Callable[..., HttpResponse | None]) -> Callable[..., HttpResponse | None]:
    """Have POSTs of a view try again after conflicts.

    Django's views begin the transaction, so it must be done around them. They are not
    idempotent: where the answer to COMMIT is lost, only the person can look what was done.
    """

    def attempt(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse | None:
        # What an attempt before this one said did not come true.
        messages.get_messages(request)._queued_messages.clear()
        return view(request, *args, **kwargs)

    def posted(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse | None:
        if request.method != "POST":
            return view(request, *args, **kwargs)
        try:
            return in_transaction(attempt, idempotent=False)(request, *args, **kwargs)
        except OperationalError as error:
            if not is_transient(error):
                raise
            messages.get_messages(request)._queued_messages.clear()
            messages.error(
                request,
                "The database was too busy, or the connection to it was lost: look whether "
                "your change is there before you send it again.",
            )
            return HttpResponseRedirect(request.get_full_path())

    return posted


def person(request: HttpRequest) -> str:
    """Who did it, as the ledger has it."""
    return f"admin: {request.user.get_username()}"


class RetriedAdmin(admin.ModelAdmin):
    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return retried(super().changeform_view)(request, *args, **kwargs)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return retried(super().delete_view)(request, *args, **kwargs)


class ProtectedByEnrollments(RetriedAdmin):
    """Something that can't be deleted while enrolment rows refer to it.

    Django's own page would read and list every row, and a course may have a million.
    """

    actions = ["delete_selected"]

    def get_deleted_objects(
        self, objs: Iterable[Model], request: HttpRequest
    ) -> tuple[Any, dict[str, int], set[str], list[str]]:
        keys = objs.values("pk") if isinstance(objs, QuerySet) else [obj.pk for obj in objs]
        kept = self.model._default_manager.filter(pk__in=keys, enrollments__isnull=False)
        some = kept.annotate(rows=Count("enrollments")).order_by("pk")[: MOST_LINES + 1]
        protected = [
            f"{obj}: {obj.rows} enrolment row{'' if obj.rows == 1 else 's'}, kept for ever"
            for obj in some
        ]
        if not protected:
            return super().get_deleted_objects(objs, request)
        if len(protected) > MOST_LINES:
            protected[MOST_LINES] = "… and more"
        return [], {}, set(), protected

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().delete_view(request, *args, **kwargs)
        except (ProtectedError, IntegrityError):
            return self._enrolled_meanwhile(request)

    @admin.action(permissions=["delete"], description="Delete selected %(verbose_name_plural)s")
    def delete_selected(
        self, request: HttpRequest, queryset: CourseQuerySet
    ) -> TemplateResponse | HttpResponse | None:
        try:
            return retried(partial(delete_selected, self))(request, queryset)
        except (ProtectedError, IntegrityError):
            return self._enrolled_meanwhile(request)

    def _enrolled_meanwhile(self, request: HttpRequest) -> HttpResponse:
        self.message_user(
            request, "Nothing was deleted: somebody was enrolled meanwhile.", messages.ERROR
        )
        return HttpResponseRedirect(request.get_full_path())


class DriftedFilter(admin.SimpleListFilter):
    title = "count"
    parameter_name = "drifted"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Drifted")]

    def queryset(self, request: HttpRequest, queryset: CourseQuerySet) -> CourseQuerySet:
        return queryset.drifted() if self.value() == "yes" else queryset


@admin.register(Subject)
class SubjectAdmin(RetriedAdmin):
    list_display = ["name", "slug"]
    search_fields = ["name"]
    prepopulated_fields = {"slug": ["name"]}


@admin.register(Course)
class CourseAdmin(ProtectedByEnrollments):
    list_display = ["title", "stored", "true", "drift", "capacity", "subject"]
    list_filter = [DriftedFilter, "subject"]
    list_select_related = ["subject"]
    list_per_page = 50
    show_full_result_count = False
    ordering = ["title"]
    search_fields = ["title", "slug"]
    autocomplete_fields = ["subject", "instructor"]
    prepopulated_fields = {"slug": ["title"]}
    readonly_fields = ["stored", "true", "drift"]
    actions = ["rebuild_counts", *ProtectedByEnrollments.actions]

    class Media:
        css = {"all": ["courses/admin.css"]}

    def get_queryset(self, request: HttpRequest) -> CourseQuerySet:
        return super().get_queryset(request).with_drift()

    def get_fieldsets(self, request: HttpRequest, obj: Course | None = None) -> list[Any]:
        fields = ["title", "slug", "subject", "instructor", "capacity"]
        count = ("Students", {"fields": [("stored", "true", "drift")]})
        return [(None, {"fields": fields}), *([count] if obj else [])]

    def get_urls(self) -> list[URLPattern]:
        health_url = path(
            "health/", self.admin_site.admin_view(self.health_view), name="courses_course_health"
        )
        return [health_url, *super().get_urls()]

    def health_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            if not self.has_change_permission(request):
                raise PermissionDenied
            self._check_now(request)
            return HttpResponseRedirect(request.path)
        context = self.admin_site.each_context(request) | {
            "title": "Count health",
            "opts": self.opts,
            "health": health(),
            "plots": plots(),
            "runs": last_runs(),
            "days": DAYS,
            "check_for": int(CHECK_FOR),
            "has_change_permission": self.has_change_permission(request),
            "can_see_ledger": request.user.has_perm("courses.view_countrun"),
        }
        return TemplateResponse(request, "admin/courses/course/health.html", context)

    def _check_now(self, request: HttpRequest) -> None:
        try:
            checked = check_for_a_while(by=person(request))
        except AlreadyChecking:
            self.message_user(
                request, "A check is going on: look again in a few seconds.", messages.WARNING
            )
            return
        courses = f"{intcomma(checked.looked_at)} course{'' if checked.looked_at == 1 else 's'}"
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
        return course.total_enrollments

    @admin.display(description="true count", ordering="true_count")
    def true(self, course: Course) -> int:
        return course.true_count

    @admin.display(ordering="drift")
    def drift(self, course: Course) -> str:
        if course.drift == 0:
            return "0"
        return format_html('<strong class="drift">{}</strong>', f"{course.drift:+d}")

    @admin.action(permissions=["change"], description="Rebuild counts of the selected courses")
    def rebuild_counts(self, request: HttpRequest, queryset: CourseQuerySet) -> None:
        corrected = 0
        for found in recorded(kind=CountRun.Kind.REBUILD, by=person(request), courses=queryset):
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


class LedgerAdmin(admin.ModelAdmin):
    """Written by checks and rebuilds, and by nobody here."""

    list_per_page = 50
    show_full_result_count = False
    ordering = ["-pk"]

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(CountRun)
class CountRunAdmin(LedgerAdmin):
    list_display = ["started_at", "kind", "by", "looked_at", "drifted", "corrected", "took_seconds"]
    list_filter = ["kind", "of_all"]
    fields = [
        *("kind", "by", "started_at", "finished_at", "took_seconds", "of_all", "looked_at"),
        *("drifted", "corrected", "absolute_drift", "stored_sum", "true_sum", "entries"),
    ]
    readonly_fields = ["took_seconds", "entries"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[CountRun]:
        return super().get_queryset(request).defer("enrolled_by_day")

    @admin.display(description="took")
    def took_seconds(self, run: CountRun) -> str:
        return f"{run.took.total_seconds():.2f} s" if run.took else "not at its end"

    @admin.display(description="drifts found")
    def entries(self, run: CountRun) -> str:
        url = reverse("admin:courses_countcorrection_changelist")
        return format_html('<a href="{}?run__id__exact={}">Those entered</a>', url, run.pk)


@admin.register(CountCorrection)
class CountCorrectionAdmin(LedgerAdmin):
    list_display = ["course_title", "stored", "true", "signed", "corrected", "at", "by"]
    list_filter = ["corrected"]
    list_select_related = ["run"]
    fields = ["course_link", "stored", "true", "signed", "corrected", "at", "run_link"]
    readonly_fields = ["course_link", "signed", "run_link"]

    @admin.display(description="drift", ordering="drift")
    def signed(self, found: CountCorrection) -> str:
        return f"{found.drift:+d}"

    @admin.display(ordering="run__by")
    def by(self, found: CountCorrection) -> str:
        return found.run.by

    @admin.display(description="course")
    def course_link(self, found: CountCorrection) -> str:
        if found.course_id is None:
            return found.course_title
        url = reverse("admin:courses_course_change", args=[found.course_id])
        return format_html('<a href="{}">{}</a>', url, found.course_title)

    @admin.display(description="found by")
    def run_link(self, found: CountCorrection) -> str:
        url = reverse("admin:courses_countrun_change", args=[found.run_id])
        return format_html('<a href="{}">{}</a>', url, found.run)
