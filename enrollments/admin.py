"""Enrolments in the admin: every change is a call of a service."""

from collections import defaultdict
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.core.exceptions import ObjectDoesNotExist
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from courses.admin import ProtectedByEnrollments, RetriedAdmin, retried
from enrollments import services
from enrollments.models import Enrollment

# Rows withdrawn at a time. Each is a field of the confirmation, and Django takes 1,000 fields.
MOST_SELECTED = 500


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


@admin.register(Enrollment)
class EnrollmentAdmin(RetriedAdmin):
    form = EnrollmentForm
    list_display = ["student", "status", "course", "enrollment_date", "withdrawal_date"]
    list_filter = ["status"]
    list_select_related = ["student", "course"]
    list_per_page = 50
    show_full_result_count = False
    ordering = ["-pk"]
    search_fields = ["student__username", "course__title"]
    autocomplete_fields = ["student", "course"]
    actions = ["delete_selected"]

    class Media:
        css = {"all": ["enrollments/admin.css"]}

    def get_fields(self, request: HttpRequest, obj: Enrollment | None = None) -> list[str]:
        fields = ["student", "course"]
        return [*fields, "status", "enrollment_date", "withdrawal_date"] if obj else fields

    def get_readonly_fields(self, request: HttpRequest, obj: Enrollment | None = None) -> list[str]:
        return ["student", "course", "enrollment_date", "withdrawal_date"] if obj else []

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
        if change:
            services.set_status(student=obj.student_id, course=obj.course_id, status=obj.status)
            return
        row, changed = services.enroll(student=obj.student_id, course=obj.course_id)
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

    @admin.action(permissions=["delete"], description="Withdraw selected enrolments")
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
            return retried(self._withdraw)(request, rows)
        context = self.admin_site.each_context(request) | {
            "title": "Withdraw selected enrolments",
            "opts": self.opts,
            "media": self.media,
            "rows": rows,
            "action_checkbox_name": admin.helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(
            request, "admin/enrollments/enrollment/withdraw_selected.html", context
        )

    def _withdraw(self, request: HttpRequest, rows: list[Enrollment]) -> None:
        students = defaultdict(list)
        for row in rows:
            students[row.course_id].append(row.student_id)
        withdrawn = sum(
            services.unenroll_many(course=course, students=students[course]).withdrawn
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
            f"{withdrawn} enrolment{'' if withdrawn == 1 else 's'} withdrawn. No row was deleted.",
            messages.SUCCESS,
        )


admin.site.unregister(get_user_model())


@admin.register(get_user_model())
class StudentAdmin(ProtectedByEnrollments, UserAdmin):
    pass
