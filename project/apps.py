from django.contrib.admin.apps import AdminConfig


class LargeTablesAdminConfig(AdminConfig):
    default_site = "project.large_tables.Site"
