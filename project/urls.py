"""The site's URLs."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from project.api import api

urlpatterns = [
    path("", include("courses.urls")),
    path("", include("enrollments.urls")),
    path("accounts/", include("project.accounts")),
    path("api/", api.urls),
    path("admin/", admin.site.urls),
    path("favicon.ico", RedirectView.as_view(url=static("site/icon.svg"))),
]
