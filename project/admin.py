"""The admin site."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest


class CatalogAdminSite(admin.AdminSite):
    def get_log_entries(self, request: HttpRequest) -> QuerySet:
        # The newest first, as Django has it; by time, all of the person's would be sorted.
        return super().get_log_entries(request).order_by("-pk")
