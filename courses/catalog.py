"""The course catalog: search, sorting and cursor pagination."""

from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import F, Q, TextChoices, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Concat

from courses.models import Course, Subject

PAGE_SIZE = 50  # courses


class Order(TextChoices):
    POPULAR = "popular", "Most popular"
    NEWEST = "newest", "Newest"
    TITLE = "title", "Title"


class InvalidCursor(ValueError):
    """The cursor cannot be read, or belongs to another order. Start from the first page."""


@dataclass(frozen=True, slots=True)
class CatalogPage:
    """One page of courses, with the cursors of the pages before and after it.

    An empty cursor means that there is no such page.
    """

    courses: list[Course]
    before: str = ""
    after: str = ""


def catalog_page(
    *,
    search: str = "",
    subject: Subject | None = None,
    order: str = Order.POPULAR,
    after: str = "",
    before: str = "",
    size: int = PAGE_SIZE,
) -> CatalogPage:
    """Return a page of at most `size` courses with their live counts, in one query.

    A course matches if its title contains every word of `search`. `after` and `before` are
    cursors from another page of the same order.

    A cursor names the course at which a page ended. Every page therefore takes the same time,
    and courses that are added or deleted between two requests cause no gaps or repetitions.

    Raises InvalidCursor, and ValueError if `order` does not exist.
    """
    sort_key = _SORT_KEYS[Order(order)]
    is_backward = bool(before and not after)
    cursor = before if is_backward else after
    descending = sort_key.descending != is_backward
    courses = Course.objects.select_related("subject", "instructor")
    for word in search.split():
        courses = courses.filter(title__icontains=word)
    if subject is not None:
        courses = courses.filter(subject=subject)
    if cursor:
        courses = courses.filter(_after_cursor(sort_key, cursor, descending))
    # An index returns the first courses of a list immediately. A search for a rare word would
    # read all rows through the index, one by one and in random order, so it sorts instead.
    courses = courses.order_by(sort_key.unindexed if search.split() else sort_key.column, "pk")
    if descending:
        courses = courses.reverse()
    # One course more than the page holds shows whether there is another page.
    rows = list(courses[: size + 1])
    has_more, page = len(rows) > size, rows[:size]
    if not page:
        return CatalogPage([])
    if is_backward:
        page.reverse()
    has_previous, has_next = (has_more, True) if is_backward else (bool(cursor), has_more)
    return CatalogPage(
        page,
        before=sort_key.cursor(page[0]) if has_previous else "",
        after=sort_key.cursor(page[-1]) if has_next else "",
    )


@dataclass(frozen=True, slots=True)
class _SortKey:
    """What an order sorts by. Courses with equal values are sorted by primary key."""

    column: str
    descending: bool
    # An expression with the values of `column`, for which the database cannot use an index.
    unindexed: Combinable

    def cursor(self, course: Course) -> str:
        return f"{course.pk}.{getattr(course, self.column)}"


_SORT_KEYS: dict[str, _SortKey] = {
    Order.POPULAR: _SortKey("total_enrollments", True, F("total_enrollments") + 0),
    Order.NEWEST: _SortKey("id", True, F("id")),
    Order.TITLE: _SortKey("title", False, Concat("title", Value(""))),
}


def _after_cursor(sort_key: _SortKey, cursor: str, descending: bool) -> Q:
    """Return the condition for the courses after a cursor."""
    pk, _, value = cursor.partition(".")
    lookup = "lt" if descending else "gt"
    column: Any = Course._meta.get_field(sort_key.column)
    try:
        column_value = column.to_python(value)
        pk_condition = {f"pk__{lookup}": Course._meta.pk.to_python(pk)}
    except ValidationError:
        raise InvalidCursor(
            f"The cursor {cursor!r:.80} does not belong to this order. Start from the first page."
        ) from None
    # Two ranges of one index. Written with <= and AND, MariaDB reads all rows with equal values.
    return Q((f"{column.name}__{lookup}", column_value)) | Q(
        (column.name, column_value), **pk_condition
    )
