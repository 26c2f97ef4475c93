"""The admin site."""

from django.conf import settings
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest


class CatalogAdminSite(admin.AdminSite):
    site_title = site_header = f"{settings.SITE_NAME} administration"

    def get_log_entries(self, request: HttpRequest) -> QuerySet:
        # Django's order by time would sort all entries of the user.
        return super().get_log_entries(request).order_by("-pk")
