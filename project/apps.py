from django.contrib.admin.apps import AdminConfig


class CatalogAdminConfig(AdminConfig):
    default_site = "project.admin.CatalogAdminSite"

    def ready(self) -> None:
        super().ready()
        from project import erasure  # noqa: F401  (connects its receiver)
