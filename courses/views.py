"""The public catalogue."""

from django.views.generic import ListView

from courses.models import Course


class CatalogueView(ListView):
    """All courses with their stored counts, as they are at this moment."""

    queryset = Course.objects.select_related("subject").order_by("title", "pk")
    paginate_by = 50
    template_name = "courses/catalogue.html"
