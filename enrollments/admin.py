"""Enrolments in the admin: every change is a call of a service."""

from collections import defaultdict
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.core.exceptions import ObjectDoesNotExist
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse

from courses.admin import ProtectedByEnrollments
from courses.transactions import in_transaction
from enrollments import services
from enrollments.models import Enrollment


class EnrollmentForm(forms.ModelForm):
    def clean(self) -> dict[str, Any]:
        # Django would refuse a second row here. enroll() takes up the first one again.
        return self.cleaned_data


@admin.register(Enrollment)
class EnrollmentAdmin(admin.ModelAdmin):
    form = EnrollmentForm
    list_display = ["student", "course", "status", "enrollment_date", "withdrawal_date"]
    list_filter = ["status"]
    list_select_related = ["student", "course"]
    list_per_page = 50
    show_full_result_count = False
    ordering = ["-pk"]
    search_fields = ["student__username", "course__title"]
    autocomplete_fields = ["student", "course"]
    actions = ["delete_selected"]

    def get_fields(self, request: HttpRequest, obj: Enrollment | None = None) -> list[str]:
        fields = ["student", "course"]
        return [*fields, "status", "enrollment_date", "withdrawal_date"] if obj else fields

    def get_readonly_fields(self, request: HttpRequest, obj: Enrollment | None = None) -> list[str]:
        return ["student", "course", "enrollment_date", "withdrawal_date"] if obj else []

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        # Rows are kept: the status is what is changed, there is nothing to delete.
        context = {"show_delete": False} | (extra_context or {})
        view = super().changeform_view
        if request.method != "POST":
            return view(request, object_id, form_url, context)
        try:
            # Django's view begins the transaction, so a conflict must be retried out here.
            return in_transaction(view)(request, object_id, form_url, context)
        except (services.CourseFull, ObjectDoesNotExist) as error:
            self.message_user(request, f"Nothing was changed. {error}", messages.ERROR)
            given = {name: request.POST.get(name, "") for name in ("student", "course")}
            again = request.path if object_id else f"{request.path}?{urlencode(given)}"
            return HttpResponseRedirect(again)

    def save_model(
        self, request: HttpRequest, obj: Enrollment, form: EnrollmentForm, change: bool
    ) -> None:
        if change:
            services.set_status(student=obj.student_id, course=obj.course_id, status=obj.status)
            return
        row, obj.newly_enrolled = services.enroll(student=obj.student_id, course=obj.course_id)
        obj.pk = row.pk
        obj.refresh_from_db()

    def response_add(
        self, request: HttpRequest, obj: Enrollment, post_url_continue: str | None = None
    ) -> HttpResponse:
        if obj.newly_enrolled:
            return super().response_add(request, obj, post_url_continue)
        self.message_user(request, f"{obj}: enrolled already, nothing was changed.")
        return self.response_post_save_add(request, obj)

    def delete_model(self, request: HttpRequest, obj: Enrollment) -> None:
        services.unenroll(student=obj.student_id, course=obj.course_id)

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: Any) -> HttpResponse:
        self.message_user(request, f"Withdrawn: {obj_display}.", messages.SUCCESS)
        return self.response_post_save_change(request, self.model(pk=obj_id))

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        return LogEntry.objects.log_actions(
            user_id=request.user.pk,
            queryset=queryset,
            action_flag=CHANGE,
            change_message="Withdrawn.",
            single_object=len(queryset) == 1,
        )

    @admin.action(permissions=["delete"], description="Withdraw selected enrolments")
    def delete_selected(
        self, request: HttpRequest, queryset: QuerySet[Enrollment]
    ) -> TemplateResponse | None:
        rows = queryset.counted().order_by("pk")
        if "post" in request.POST:
            withdrawn = in_transaction(self._withdraw)(request, list(rows))
            self.message_user(
                request,
                f"{withdrawn} enrolment{'' if withdrawn == 1 else 's'} withdrawn.",
                messages.SUCCESS,
            )
            return None
        context = self.admin_site.each_context(request) | {
            "title": "Withdraw these students?",
            "opts": self.opts,
            "media": self.media,
            "queryset": queryset,
            "rows": rows,
            "action_checkbox_name": admin.helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(
            request, "admin/enrollments/enrollment/withdraw_selected.html", context
        )

    def _withdraw(self, request: HttpRequest, rows: list[Enrollment]) -> int:
        students = defaultdict(list)
        for row in rows:
            students[row.course_id].append(row.student_id)
        if rows:
            self.log_deletions(request, rows)
        return sum(
            services.unenroll_many(course=course, students=students[course]).withdrawn
            for course in sorted(students)
        )


admin.site.unregister(get_user_model())


@admin.register(get_user_model())
class StudentAdmin(ProtectedByEnrollments, UserAdmin):
    pass
