"""The catalogue in the admin: what is stored, what is true, and the drift between them."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.views.main import ChangeList
from django.contrib.humanize.templatetags.humanize import intcomma
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, OperationalError
from django.db.models import Exists, Model, OuterRef, ProtectedError, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from courses.health import KnownDrifts, health, known_drifts, last_runs, plots
from courses.ledger import CHECK_FOR, DAYS, AlreadyChecking, check_for_a_while, recorded
from courses.models import CountCorrection, CountRun, Course, Subject
from courses.querysets import CourseQuerySet, drift, true_count
from courses.transactions import in_transaction, is_transient
from project.large_tables import LargeTableAdmin, LargeTableList, is_large, rows_at_most

# One line for each of them, up to here; the rest is summed up.
MOST_LINES = 20
# Courses, students and the like that an action takes at a time.
MOST_SELECTED = 500
# Rows that are counted for a page that only says why something is kept.
MOST_TOLD = 1_000
# A list of choices that a page has room for. Subjects beyond are found by searching.
MOST_CHOICES = 500


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


def keys_to_act_on(queryset: QuerySet) -> list[Any] | None:
    """The keys of what is selected, or None where it is more than MOST_SELECTED."""
    keys = list(queryset.values_list("pk", flat=True)[: MOST_SELECTED + 1])
    return keys if len(keys) <= MOST_SELECTED else None


class RetriedAdmin(LargeTableAdmin):
    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return retried(super().changeform_view)(request, *args, **kwargs)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return retried(super().delete_view)(request, *args, **kwargs)


class ProtectedByRows(RetriedAdmin):
    """Something that can't be deleted while rows of another table refer to it.

    Django's own page would read and list every row, and there may be a million.
    """

    actions = ["delete_selected"]
    kept_by: str  # the relation
    kept_by_one: str
    kept_by_many: str
    added_meanwhile: str

    def get_deleted_objects(
        self, objs: Iterable[Model], request: HttpRequest
    ) -> tuple[Any, dict[str, int], set[str], list[str]]:
        keys = [obj.pk for obj in objs]
        relation = self.model._meta.get_field(self.kept_by)
        rows, name = relation.related_model._default_manager.order_by(), relation.field.name
        # Not as a condition: of that MariaDB makes a join, which reads all rows.
        is_kept = Exists(rows.filter(**{name: OuterRef("pk")}))
        asked = self.model._default_manager.filter(pk__in=keys).annotate(is_kept=is_kept)
        kept = [obj for obj in asked.order_by("pk") if obj.is_kept]
        protected = []
        for obj in kept[:MOST_LINES]:
            number = rows.filter(**{name: obj.pk})[: MOST_TOLD + 1].count()
            told = f"more than {MOST_TOLD:,}" if number > MOST_TOLD else number
            protected.append(
                f"{obj}: {told} {self.kept_by_one if number == 1 else self.kept_by_many}"
            )
        if len(kept) > MOST_LINES:
            protected.append("… and more")
        if not protected:
            return super().get_deleted_objects(objs, request)
        return [], {}, set(), protected

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().delete_view(request, *args, **kwargs)
        except (ProtectedError, IntegrityError):
            return self._added_meanwhile(request)

    @admin.action(permissions=["delete"], description="Delete selected %(verbose_name_plural)s")
    def delete_selected(
        self, request: HttpRequest, queryset: CourseQuerySet
    ) -> TemplateResponse | HttpResponse | None:
        if keys_to_act_on(queryset) is None:
            self.message_user(
                request,
                f"Nothing was deleted: select at most {MOST_SELECTED} at a time.",
                messages.ERROR,
            )
            return None
        try:
            return retried(partial(delete_selected, self))(request, queryset)
        except (ProtectedError, IntegrityError):
            return self._added_meanwhile(request)

    def _added_meanwhile(self, request: HttpRequest) -> HttpResponse:
        self.message_user(
            request, f"Nothing was deleted: {self.added_meanwhile} meanwhile.", messages.ERROR
        )
        return HttpResponseRedirect(request.get_full_path())


class ProtectedByEnrollments(ProtectedByRows):
    kept_by = "enrollments"
    kept_by_one, kept_by_many = "enrolment row, kept for ever", "enrolment rows, kept for ever"
    added_meanwhile = "somebody was enrolled"


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
class SubjectAdmin(ProtectedByRows):
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
            "check_for": int(CHECK_FOR),
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
        keys = keys_to_act_on(queryset)
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
        for found in recorded(kind=CountRun.Kind.REBUILD, by=person(request), courses=courses):
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


class LedgerAdmin(LargeTableAdmin):
    """Written by checks and rebuilds, and by nobody here."""

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
    sortable_when_large = ["started_at"]
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
