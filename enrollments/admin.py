"""Enrollments in the admin: every change is a call of a service."""

from collections import defaultdict
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.core.exceptions import ObjectDoesNotExist
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import urlencode

from courses.admin.base import (
    MOST_SELECTED,
    ProtectedByEnrollments,
    ReadOnlyAdmin,
    RetryingAdmin,
    is_large,
    retry_on_conflict,
)
from enrollments import services
from enrollments.history import Origin, Source
from enrollments.models import Enrollment, EnrollmentEvent

# Whose rows a search finds in a large table.
MOST_STUDENTS = 100
MOST_EVENTS = 20  # shown on the page of an enrollment or a student


class AlreadyEnrolled(Exception):
    """There is nothing to add: say so."""


class EnrollmentForm(forms.ModelForm):
    # Why the service refused what this form asks for: it is shown again, with this.
    refusal: Exception | None = None

    def clean(self) -> dict[str, Any]:
        if self.refusal:
            self.add_error("status" if "status" in self.fields else "course", str(self.refusal))
        return super().clean()

    def _get_validation_exclusions(self) -> set[str]:
        # Django would refuse a second row here. enroll() takes up the first one again.
        return super()._get_validation_exclusions() | {"student", "course"}


def may_see_history(request: HttpRequest, obj: Model | None) -> bool:
    return obj is not None and request.user.has_perm("enrollments.view_enrollmentevent")


def history_url(**of: Any) -> str:
    url = reverse("admin:enrollments_enrollmentevent_changelist")
    return f"{url}?{urlencode({f'{name}__id__exact': key for name, key in of.items()})}"


def newest_events(**of: Any) -> str:
    """The newest events of an enrollment or a student, as a table."""
    events = EnrollmentEvent.objects.filter(**of).select_related("course", "other_course")
    newest = list(events.order_by("-pk")[: MOST_EVENTS + 1])
    context = {
        "events": newest[:MOST_EVENTS],
        "with_course": "course" not in of,
        "is_cut": len(newest) > MOST_EVENTS,
        "all_url": history_url(**of),
    }
    return render_to_string("admin/enrollments/history.html", context)


@admin.register(Enrollment)
class EnrollmentAdmin(RetryingAdmin):
    form = EnrollmentForm
    list_display = ["student", "status", "course", "enrollment_date", "withdrawal_date"]
    list_filter = ["status"]
    list_select_related = ["student", "course"]
    ordering = ["-pk"]
    search_fields = ["student__username", "course__title"]
    search_help_when_large = (
        f"By the beginning of a username: rows of the first {MOST_STUDENTS} students found. "
        "Those of a course: by “Enrollments” on its page."
    )
    search_finds_few = True
    autocomplete_fields = ["student", "course"]
    actions = ["delete_selected"]

    class Media:
        css = {"all": ["enrollments/admin.css"]}

    def get_ordering(self, request: HttpRequest) -> list[str]:
        of_one_course = "course__id__exact" in request.GET and "status__exact" not in request.GET
        # As the index has the rows of a course.
        return ["status", "pk"] if of_one_course else ["-pk"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet, search_term: str
    ) -> tuple[QuerySet, bool]:
        if not search_term or not is_large(request, Enrollment):
            return super().get_search_results(request, queryset, search_term)
        found = get_user_model()._default_manager.filter(username__istartswith=search_term)
        students = found.order_by("username").values_list("pk", flat=True)[:MOST_STUDENTS]
        return queryset.filter(student__in=list(students)), False

    def get_fields(self, request: HttpRequest, obj: Enrollment | None = None) -> list[str]:
        fields = ["student", "course"]
        if not obj:
            return fields
        fields += ["status", "enrollment_date", "withdrawal_date"]
        return [*fields, "history"] if may_see_history(request, obj) else fields

    def get_readonly_fields(self, request: HttpRequest, obj: Enrollment | None = None) -> list[str]:
        return ["student", "course", "enrollment_date", "withdrawal_date", "history"] if obj else []

    @admin.display
    def history(self, row: Enrollment) -> str:
        return newest_events(student=row.student_id, course=row.course_id)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        # Django's lists what was done in the admin, and nothing else.
        row = self.get_object(request, unquote(object_id))
        if not may_see_history(request, row):
            return super().history_view(request, object_id, extra_context)
        return HttpResponseRedirect(history_url(student=row.student_id, course=row.course_id))

    def get_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> type[EnrollmentForm]:
        form = super().get_form(request, *args, **kwargs)  # a class made for this request
        form.refusal = getattr(request, "refusal", None)
        return form

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        # Rows are kept: there is a link to withdraw instead.
        context = {"show_delete": False} | (extra_context or {})
        view = super().changeform_view
        try:
            return view(request, object_id, form_url, context)
        except (services.CourseFull, AlreadyEnrolled, ObjectDoesNotExist) as refusal:
            request.refusal = refusal
            return view(request, object_id, form_url, context)

    def save_model(
        self, request: HttpRequest, obj: Enrollment, form: EnrollmentForm, change: bool
    ) -> None:
        origin = self._origin(request)
        if change:
            services.set_status(
                student=obj.student_id, course=obj.course_id, status=obj.status, origin=origin
            )
            return
        row, changed = services.enroll(student=obj.student_id, course=obj.course_id, origin=origin)
        if not changed:
            raise AlreadyEnrolled(f"{obj.student} is enrolled in “{obj.course}” already.")
        obj.pk = row.pk
        obj.refresh_from_db()

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {"title": "Withdraw"} | (extra_context or {})
        return super().delete_view(request, object_id, context)

    def delete_model(self, request: HttpRequest, obj: Enrollment) -> None:
        self._withdraw(request, [obj])

    def log_deletions(self, request: HttpRequest, queryset: Any) -> None:
        """Nothing is deleted. That rows were withdrawn is logged when they were."""

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: Any) -> HttpResponse:
        return self.response_post_save_change(request, self.model(pk=obj_id))

    @admin.action(permissions=["delete"], description="Withdraw selected enrollments")
    def delete_selected(
        self, request: HttpRequest, queryset: QuerySet[Enrollment]
    ) -> TemplateResponse | None:
        rows = list(queryset.counted().order_by("pk")[: MOST_SELECTED + 1])
        if len(rows) > MOST_SELECTED:
            self.message_user(
                request,
                f"Nobody was withdrawn: select at most {MOST_SELECTED} at a time.",
                messages.ERROR,
            )
            return None
        if "post" in request.POST or not rows:
            return retry_on_conflict(self._withdraw)(request, rows)
        context = self.admin_site.each_context(request) | {
            "title": "Withdraw selected enrollments",
            "opts": self.opts,
            "media": self.media,
            "rows": rows,
            "action_checkbox_name": admin.helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(
            request, "admin/enrollments/enrollment/withdraw_selected.html", context
        )

    def _origin(self, request: HttpRequest) -> Origin:
        return Origin(Source.ADMIN, request.user.get_username())

    def _withdraw(self, request: HttpRequest, rows: list[Enrollment]) -> None:
        students = defaultdict(list)
        for row in rows:
            students[row.course_id].append(row.student_id)
        origin = self._origin(request)
        withdrawn = sum(
            services.unenroll_many(
                course=course, students=students[course], origin=origin
            ).withdrawn
            for course in sorted(students)
        )
        if not withdrawn:
            self.message_user(request, "Nobody was withdrawn: they were already.")
            return
        LogEntry.objects.log_actions(
            user_id=request.user.pk,
            queryset=self.get_queryset(request)
            .select_related(*self.list_select_related)
            .filter(pk__in=[row.pk for row in rows]),
            action_flag=CHANGE,
            change_message="Withdrawn.",
        )
        self.message_user(
            request,
            f"{withdrawn} enrollment{'' if withdrawn == 1 else 's'} withdrawn. No row was deleted.",
            messages.SUCCESS,
        )


admin.site.unregister(get_user_model())


@admin.register(get_user_model())
class StudentAdmin(ProtectedByEnrollments, UserAdmin):
    ordering = ["username"]
    sortable_when_large = ["username"]
    search_fields_when_large = ["^username"]
    search_help_when_large = "By the beginning of the username."
    readonly_fields = ["enrollments"]

    class Media:
        css = {"all": ["enrollments/admin.css"]}

    def get_fieldsets(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        fieldsets = list(super().get_fieldsets(request, obj))
        if may_see_history(request, obj):
            fieldsets.append(("Enrollments", {"fields": ["enrollments"]}))
        return fieldsets

    def get_list_filter(self, request: HttpRequest) -> list[str]:
        # Who is staff is found by reading all users, but who is in a group by an index.
        return ["groups"] if is_large(request, self.model) else super().get_list_filter(request)

    @admin.display(description="history")
    def enrollments(self, student: Model) -> str:
        return newest_events(student=student.pk)


@admin.register(EnrollmentEvent)
class EnrollmentEventAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "student_name", "action", "course_name", "source", "actor"]
    fields = [
        *("created_at", "student_name", "description", "course_name", "status"),
        *("enrollment_date", "withdrawal_date", "source", "actor"),
    ]
    readonly_fields = ["student_name", "description", "course_name"]
    # Only keys have an index.
    sortable_by = []

    class Media:
        css = {"all": ["enrollments/admin.css"]}

    def get_queryset(self, request: HttpRequest) -> QuerySet[EnrollmentEvent]:
        return super().get_queryset(request).select_related("student", "course", "other_course")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup in ("student__id__exact", "course__id__exact")

    @admin.display(description="student")
    def student_name(self, event: EnrollmentEvent) -> str:
        return event.student_name

    @admin.display(description="course")
    def course_name(self, event: EnrollmentEvent) -> str:
        return event.course_name

    @admin.display(description="action")
    def description(self, event: EnrollmentEvent) -> str:
        return event.description
