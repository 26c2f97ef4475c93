"""The public catalogue."""

from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_control
from django.views.generic import ListView

from courses.models import Course


# Proxies may keep a page that says nothing about it, and the counts in it would be old.
@method_decorator(cache_control(no_cache=True), name="dispatch")
class CatalogueView(ListView):
    """All courses with their stored counts, as they are at this moment."""

    queryset = Course.objects.select_related("subject").order_by("title", "pk")
    paginate_by = 50
    template_name = "courses/catalogue.html"
