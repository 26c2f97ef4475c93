"""The catalog and the course pages."""

from collections.abc import Iterable

from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from courses.catalog import InvalidCursor, Order, catalog_page
from courses.models import Course, Subject


class CatalogForm(forms.Form):
    """The search form. Its cleaned data are arguments of `catalog_page()`."""

    search = forms.CharField(required=False, max_length=100, widget=forms.SearchInput)
    subject = forms.ModelChoiceField(
        Subject.objects.all(), required=False, to_field_name="slug", empty_label="All subjects"
    )
    order = forms.TypedChoiceField(
        required=False, choices=Order.choices, empty_value=Order.POPULAR, label="Sort by"
    )


# Neither a proxy nor the browser's back button may show an old count.
@never_cache
@require_safe
def catalog(request: HttpRequest) -> HttpResponse:
    form = CatalogForm(request.GET, label_suffix="")
    if not form.is_valid():
        return _redirect_without(request, form.errors)
    try:
        page = catalog_page(
            **form.cleaned_data,
            after=request.GET.get("after", ""),
            before=request.GET.get("before", ""),
        )
    except InvalidCursor:
        return _redirect_without(request, ["after", "before"])
    return render(request, "courses/catalog.html", {"form": form, "page": page})


def _redirect_without(request: HttpRequest, parameters: Iterable[str]) -> HttpResponse:
    """Redirect to the same page without invalid parameters of the query."""
    query = request.GET.copy()
    for parameter in parameters:
        query.pop(parameter, None)
    return redirect(f"{request.path}?{query.urlencode()}" if query else request.path)


@never_cache
@require_safe
def course(request: HttpRequest, slug: str) -> HttpResponse:
    course = get_object_or_404(Course.objects.select_related("subject", "instructor"), slug=slug)
    enrollment = None
    if request.user.is_authenticated:
        enrollment = course.enrollments.filter(student=request.user.pk).first()
    return render(request, "courses/course.html", {"course": course, "enrollment": enrollment})
