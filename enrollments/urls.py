"""URLs of the students' own enrollments."""

from django.urls import path

from enrollments import views

urlpatterns = [
    path("courses/<slug:slug>/enroll/", views.enroll, name="enroll"),
    path("courses/<slug:slug>/leave/", views.leave, name="leave"),
    path("my-courses/", views.my_courses, name="my-courses"),
]
