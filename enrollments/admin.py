"""The admin of enrollments, students, and the enrollment history.

Every change to an enrollment is a call of a service. Deleting an enrollment withdraws it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import model_ngettext, unquote
from django.contrib.admin.views.main import SEARCH_VAR
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
    MAX_SELECTED,
    ProtectedDeleteAdmin,
    ReadOnlyAdmin,
    RetryingAdmin,
    retry_on_conflict,
)
from enrollments import services
from enrollments.history import Origin, Source
from enrollments.models import Enrollment, EnrollmentEvent

MAX_STUDENTS = 100  # students whose enrollments a search finds
MAX_EVENTS = 20  # events on the page of an enrollment or a student


class AlreadyEnrolled(Exception):
    """The student is enrolled in the course, so there is nothing to add."""


class EnrollmentForm(forms.ModelForm):
    # The error that the service raised when this form was saved.
    service_error: Exception | None = None

    def clean(self) -> dict[str, Any]:
        if self.service_error:
            field = "status" if "status" in self.fields else "course"
            self.add_error(field, str(self.service_error))
        return super().clean()

    def _get_validation_exclusions(self) -> set[str]:
        # enroll() reactivates a withdrawn row, so a second row for the same student and course
        # is no form error. Private API, checked on Django 5.2.
        return super()._get_validation_exclusions() | {"student", "course"}


@admin.register(Enrollment)
class EnrollmentAdmin(RetryingAdmin):
    form = EnrollmentForm
    list_display = ["student", "status", "course", "enrollment_date", "withdrawal_date"]
    list_select_related = ["student", "course"]
    search_fields = ["student__username"]
    search_help_text = (
        "Search by the beginning of a username. "
        f"The list shows the enrollments of the first {MAX_STUDENTS} matching students."
    )
    autocomplete_fields = ["student", "course"]
    actions = ["delete_selected"]

    class Media:
        css = {"all": ["enrollments/admin.css"]}

    def get_list_filter(self, request: HttpRequest) -> list[str]:
        # No index serves a filter by status alone.
        is_bounded = _is_of_one_course(request) or request.GET.get(SEARCH_VAR)
        return ["status"] if is_bounded else []

    def get_ordering(self, request: HttpRequest) -> list[str]:
        # The index of a course's enrollments is sorted by status.
        return ["status", "pk"] if _is_of_one_course(request) else ["-pk"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet, search_term: str
    ) -> tuple[QuerySet, bool]:
        if not search_term:
            return queryset, False
        matching = get_user_model()._default_manager.filter(username__istartswith=search_term)
        students = matching.order_by("username").values_list("pk", flat=True)[:MAX_STUDENTS]
        return queryset.filter(student__in=list(students)), False

    def get_fields(self, request: HttpRequest, obj: Enrollment | None = None) -> list[str]:
        fields = ["student", "course"]
        if not obj:
            return fields
        fields += ["status", "enrollment_date", "withdrawal_date"]
        return [*fields, "history"] if _can_view_history(request, obj) else fields

    def get_readonly_fields(self, request: HttpRequest, obj: Enrollment | None = None) -> list[str]:
        return ["student", "course", "enrollment_date", "withdrawal_date", "history"] if obj else []

    @admin.display
    def history(self, enrollment: Enrollment) -> str:
        return _newest_events(student=enrollment.student_id, course=enrollment.course_id)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        # Django's history page lists only the changes that were made in the admin.
        enrollment = self.get_object(request, unquote(object_id))
        if not _can_view_history(request, enrollment):
            return super().history_view(request, object_id, extra_context)
        url = _events_url(student=enrollment.student_id, course=enrollment.course_id)
        return HttpResponseRedirect(url)

    def get_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> type[EnrollmentForm]:
        form = super().get_form(request, *args, **kwargs)  # a new class for each request
        form.service_error = getattr(request, "service_error", None)
        return form

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        # The page links to "Withdraw" instead of "Delete".
        context = {"show_delete": False} | (extra_context or {})
        view = super().changeform_view
        try:
            return view(request, object_id, form_url, context)
        except (services.CourseFull, AlreadyEnrolled, ObjectDoesNotExist) as error:
            # The transaction is rolled back. Show the form again, with the error.
            request.service_error = error
            return view(request, object_id, form_url, context)

    def save_model(
        self, request: HttpRequest, obj: Enrollment, form: EnrollmentForm, change: bool
    ) -> None:
        origin = _origin(request)
        if change:
            services.set_status(
                student=obj.student_id, course=obj.course_id, status=obj.status, origin=origin
            )
            return
        enrollment, changed = services.enroll(
            student=obj.student_id, course=obj.course_id, origin=origin
        )
        if not changed:
            raise AlreadyEnrolled(f"{obj.student} is already enrolled in “{obj.course}”.")
        obj.pk = enrollment.pk
        obj.refresh_from_db()

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {"title": "Withdraw"} | (extra_context or {})
        return super().delete_view(request, object_id, context)

    def delete_model(self, request: HttpRequest, obj: Enrollment) -> None:
        self._withdraw(request, [obj])

    def log_deletions(self, request: HttpRequest, queryset: Any) -> None:
        """Log nothing, because _withdraw() logs the withdrawals."""

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: Any) -> HttpResponse:
        return self.response_post_save_change(request, self.model(pk=obj_id))

    @admin.action(permissions=["delete"], description="Withdraw selected enrollments")
    def delete_selected(
        self, request: HttpRequest, queryset: QuerySet[Enrollment]
    ) -> HttpResponse | None:
        enrollments = list(queryset.counted().order_by("pk")[: MAX_SELECTED + 1])
        if len(enrollments) > MAX_SELECTED:
            self.message_user(
                request, f"Select at most {MAX_SELECTED} enrollments to withdraw.", messages.ERROR
            )
            return None
        if "post" in request.POST or not enrollments:
            return retry_on_conflict(self._withdraw)(request, enrollments)
        context = self.admin_site.each_context(request) | {
            "title": "Withdraw selected enrollments",
            "opts": self.opts,
            "media": self.media,
            "enrollments": enrollments,
            "action_checkbox_name": admin.helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(
            request, "admin/enrollments/enrollment/withdraw_selected.html", context
        )

    def _withdraw(self, request: HttpRequest, enrollments: Sequence[Enrollment]) -> None:
        students = defaultdict(list)
        for enrollment in enrollments:
            students[enrollment.course_id].append(enrollment.student_id)
        origin = _origin(request)
        withdrawn = sum(
            services.unenroll_many(
                course=course, students=students[course], origin=origin
            ).withdrawn
            for course in sorted(students)
        )
        if not withdrawn:
            self.message_user(request, "These enrollments were already withdrawn.")
            return
        LogEntry.objects.log_actions(
            user_id=request.user.pk,
            queryset=self.get_queryset(request)
            .select_related(*self.list_select_related)
            .filter(pk__in=[enrollment.pk for enrollment in enrollments]),
            action_flag=CHANGE,
            change_message="Withdrawn.",
        )
        self.message_user(
            request,
            f"Withdrew {withdrawn} {model_ngettext(self.opts, withdrawn)}. "
            f"{'The record is' if withdrawn == 1 else 'The records are'} kept.",
            messages.SUCCESS,
        )


def _is_of_one_course(request: HttpRequest) -> bool:
    return "course__id__exact" in request.GET


def _origin(request: HttpRequest) -> Origin:
    return Origin(Source.ADMIN, request.user.get_username())


def _can_view_history(request: HttpRequest, obj: Model | None) -> bool:
    return obj is not None and request.user.has_perm("enrollments.view_enrollmentevent")


def _newest_events(**filters: Any) -> str:
    """Render the newest events that match the filters as a table."""
    events = EnrollmentEvent.objects.filter(**filters).select_related("course", "other_course")
    newest = list(events.order_by("-pk")[: MAX_EVENTS + 1])
    context = {
        "events": newest[:MAX_EVENTS],
        "with_course": "course" not in filters,
        "is_truncated": len(newest) > MAX_EVENTS,
        "all_events_url": _events_url(**filters),
    }
    return render_to_string("admin/enrollments/history.html", context)


def _events_url(**filters: Any) -> str:
    url = reverse("admin:enrollments_enrollmentevent_changelist")
    return f"{url}?{urlencode({f'{name}__id__exact': pk for name, pk in filters.items()})}"


admin.site.unregister(get_user_model())


@admin.register(get_user_model())
class StudentAdmin(ProtectedDeleteAdmin, UserAdmin):
    ordering = ["username"]
    sortable_by = ["username"]
    list_filter = ["groups"]
    search_fields = ["^username"]
    search_help_text = "Search by the beginning of a username."
    readonly_fields = ["enrollments"]
    protected_relation = "enrollments"

    class Media:
        css = {"all": ["enrollments/admin.css"]}

    def get_fieldsets(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        fieldsets = list(super().get_fieldsets(request, obj))
        if _can_view_history(request, obj):
            fieldsets.append(("Enrollments", {"fields": ["enrollments"]}))
        return fieldsets

    @admin.display(description="history")
    def enrollments(self, student: Model) -> str:
        return _newest_events(student=student.pk)


@admin.register(EnrollmentEvent)
class EnrollmentEventAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "student_name", "action", "course_name", "source", "actor"]
    list_select_related = ["student", "course", "other_course"]
    fields = [
        *("created_at", "student_name", "description", "course_name", "status"),
        *("enrollment_date", "withdrawal_date", "source", "actor"),
    ]
    readonly_fields = ["student_name", "description", "course_name"]

    @admin.display(description="student")
    def student_name(self, event: EnrollmentEvent) -> str:
        return event.student_name

    @admin.display(description="course")
    def course_name(self, event: EnrollmentEvent) -> str:
        return event.course_name

    @admin.display(description="action")
    def description(self, event: EnrollmentEvent) -> str:
        return event.description
