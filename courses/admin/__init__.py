"""The admin of courses and of their counts."""

from courses.admin import counts, courses

__all__ = ["counts", "courses"]
