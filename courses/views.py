"""The catalog and the course pages."""

from typing import Any

from django import forms
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from courses.catalog import InvalidCursor, Order, catalog_page
from courses.models import Course, Subject


class CatalogForm(forms.Form):
    """The search form. Its cleaned data are arguments of `catalog_page()`."""

    search = forms.CharField(required=False, max_length=100)
    subject = forms.ChoiceField(required=False)
    order = forms.ChoiceField(required=False, choices=Order.choices, label="Sort by")

    def __init__(self, data: Any, *, subjects: list[Subject]) -> None:
        super().__init__(data, label_suffix="")
        self._subjects = {subject.slug: subject for subject in subjects}
        self.fields["search"].widget = forms.TextInput({"type": "search", "maxlength": 100})
        subject_field: Any = self.fields["subject"]
        subject_field.choices = [
            ("", "All subjects"),
            *((subject.slug, subject.name) for subject in subjects),
        ]

    def clean_subject(self) -> Subject | None:
        return self._subjects.get(self.cleaned_data["subject"])

    def clean_order(self) -> str:
        return self.cleaned_data["order"] or Order.POPULAR


# Neither a proxy nor the browser's back button may show an old count.
@never_cache
@require_safe
def catalog(request: HttpRequest) -> HttpResponse:
    form = CatalogForm(request.GET, subjects=list(Subject.objects.all()))
    if not form.is_valid():
        return render(request, "courses/catalog.html", {"form": form}, status=400)
    try:
        page = catalog_page(
            **form.cleaned_data,
            after=request.GET.get("after", ""),
            before=request.GET.get("before", ""),
        )
    except InvalidCursor as error:
        raise Http404(str(error)) from error
    return render(request, "courses/catalog.html", {"form": form, "page": page})


@never_cache
@require_safe
def course(request: HttpRequest, slug: str) -> HttpResponse:
    course = get_object_or_404(Course.objects.select_related("subject", "instructor"), slug=slug)
    enrollment = None
    if request.user.is_authenticated:
        enrollment = course.enrollments.filter(student=request.user.pk).first()
    context = {
        "course": course,
        "enrollment": enrollment,
        "next_url": course.get_absolute_url(),
    }
    return render(request, "courses/course.html", context)
