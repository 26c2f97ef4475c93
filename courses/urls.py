"""URLs of the catalog."""

from django.urls import path

from courses import views

urlpatterns = [
    path("", views.catalog, name="catalog"),
    path("courses/<slug:slug>/", views.course, name="course"),
]
