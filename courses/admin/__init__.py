"""The admin of courses, subjects, and audit runs."""

from courses.admin import counts, courses

__all__ = ["counts", "courses"]
