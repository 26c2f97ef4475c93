"""The admin of enrollments, users, and the enrollment history.

Every change to an enrollment is a call of a service. Enrollments are withdrawn, never deleted.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from axes.admin import AccessAttemptAdmin
from axes.models import AccessAttempt
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import model_ngettext
from django.contrib.admin.views.main import SEARCH_VAR
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse

from courses.admin.base import (
    MAX_SELECTED,
    BoundedAdmin,
    ProtectedDeleteAdmin,
    ReadOnlyAdmin,
    RetryingAdmin,
    retry_on_conflict,
)
from enrollments import services
from enrollments.history import Origin, Source
from enrollments.models import Enrollment, EnrollmentEvent, SelfRegistration

MAX_STUDENTS = 100  # students whose enrollments a search finds


@admin.register(Enrollment)
class EnrollmentAdmin(RetryingAdmin):
    list_display = ["student", "status", "course", "enrollment_date", "withdrawal_date"]
    list_select_related = ["student", "course"]
    search_fields = ["student__username"]
    search_help_text = (
        "Search by the beginning of a username. "
        f"The list shows the enrollments of the first {MAX_STUDENTS} matching students."
    )
    autocomplete_fields = ["student", "course"]
    actions = ["withdraw"]

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

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
        return [*fields, "status", "enrollment_date", "withdrawal_date"] if obj else fields

    def get_readonly_fields(self, request: HttpRequest, obj: Enrollment | None = None) -> list[str]:
        return ["student", "course", "enrollment_date", "withdrawal_date"] if obj else []

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except services.CourseFull as error:
            # The transaction is rolled back, so show a new form.
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    def save_model(
        self, request: HttpRequest, obj: Enrollment, form: forms.ModelForm, change: bool
    ) -> None:
        key = {"student": obj.student_id, "course": obj.course_id}
        if change:
            services.set_status(**key, status=obj.status, origin=_origin(request))
        else:
            enrollment, _ = services.enroll(**key, origin=_origin(request))
            obj.pk = enrollment.pk

    @admin.action(permissions=["change"], description="Withdraw selected enrollments")
    def withdraw(self, request: HttpRequest, queryset: QuerySet[Enrollment]) -> HttpResponse | None:
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
        withdrawn = 0
        for course in sorted(students):
            withdrawn += services.unenroll_many(
                course=course, students=students[course], origin=_origin(request)
            ).withdrawn
        LogEntry.objects.log_actions(
            user_id=request.user.pk,
            queryset=enrollments,
            action_flag=CHANGE,
            change_message="Withdrawn.",
        )
        noun = model_ngettext(self.opts, withdrawn)
        self.message_user(request, f"Withdrew {withdrawn} {noun}.", messages.SUCCESS)


def _is_of_one_course(request: HttpRequest) -> bool:
    return "course__id__exact" in request.GET


def _origin(request: HttpRequest) -> Origin:
    return Origin(Source.ADMIN, request.user.get_username())


def _can_write(request: HttpRequest, user: Any) -> bool:
    is_privileged = user is not None and (user.is_staff or user.is_superuser)
    return request.user.is_superuser or not is_privileged


class SelfRegisteredFilter(admin.SimpleListFilter):
    title = "origin"
    parameter_name = "self_registered"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Self-registered")]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        return queryset.filter(self_registration__isnull=False) if self.value() else queryset


if admin.site.is_registered(get_user_model()):  # Django registers its own model only.
    admin.site.unregister(get_user_model())


@admin.register(get_user_model())
class AccountAdmin(ProtectedDeleteAdmin, UserAdmin):
    """The admin of all users. Only superusers grant rights and change the accounts of staff."""

    ordering = ["username"]
    sortable_by = ["username"]
    list_filter = [SelfRegisteredFilter, "groups"]
    search_fields = ["^username"]
    search_help_text = "Search by the beginning of a username."
    protected_relation = "enrollments"
    actions = [*ProtectedDeleteAdmin.actions, "confirm"]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> Sequence[str]:
        fields = super().get_readonly_fields(request, obj)
        if request.user.is_superuser:
            return fields
        return [*fields, "is_staff", "is_superuser", "groups", "user_permissions"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and _can_write(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request, obj) and _can_write(request, obj)

    @admin.action(permissions=["change"], description="Confirm the selected accounts")
    def confirm(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return retry_on_conflict(self._confirm)(request, queryset)

    def _confirm(self, request: HttpRequest, queryset: QuerySet) -> None:
        users = list(queryset.filter(self_registration__isnull=False))
        SelfRegistration.objects.filter(user__in=users).delete()
        LogEntry.objects.log_actions(
            user_id=request.user.pk,
            queryset=users,
            action_flag=CHANGE,
            change_message="Confirmed.",
        )
        noun = model_ngettext(self.opts, len(users))
        self.message_user(request, f"Confirmed {len(users)} {noun}.", messages.SUCCESS)


admin.site.unregister(Group)


@admin.register(Group)
class SuperuserGroupAdmin(BoundedAdmin, GroupAdmin):
    """Only superusers change groups, because members could add permissions to their own."""

    sortable_by = ["name"]

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_superuser

    has_change_permission = has_delete_permission = has_add_permission


@admin.register(AccessAttempt)
class FailedSignInAdmin(BoundedAdmin, AccessAttemptAdmin):
    """Failed sign-ins. The settings disable the other logs of django-axes."""

    actions = None  # the action of django-axes needs one of these logs


@admin.register(EnrollmentEvent)
class EnrollmentEventAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "student_name", "description", "course_name", "source", "actor"]
    list_select_related = ["student", "course", "other_course"]
    fields = [
        *("created_at", "student_name", "description", "course_name", "status"),
        *("enrollment_date", "withdrawal_date", "source", "actor"),
    ]
    readonly_fields = ["student_name", "description", "course_name"]
