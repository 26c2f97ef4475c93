"""The public list of courses: searched, sorted, and paged at the same speed on every page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import F, Q, TextChoices, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Concat

from courses.managers import CourseQuerySet
from courses.models import Course, Subject

PAGE_SIZE = 50  # courses


class Order(TextChoices):
    POPULAR = "popular", "Most popular"
    NEWEST = "newest", "Newest"
    TITLE = "title", "Title"


@dataclass(frozen=True, slots=True)
class _Key:
    """What an order sorts by, before the primary key: a column, and which way."""

    column: str
    descending: bool
    # The same values, but not the index on them.
    unindexed: Combinable


_KEYS: Mapping[str, _Key] = {
    Order.POPULAR: _Key("total_enrollments", True, F("total_enrollments") + 0),
    Order.NEWEST: _Key("pk", True, F("pk")),
    Order.TITLE: _Key("title", False, Concat("title", Value(""))),
}


class InvalidCursor(ValueError):
    """No page begins there: begin with the first."""


@dataclass(frozen=True, slots=True)
class CatalogPage:
    """Some courses, and the positions for the pages before and after; empty: there is none."""

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
    """Return at most `size` courses, with the counts that are stored at this moment.

    Titles contain all words of `search`. `after` and `before` are positions from another page
    of the same order. A page begins where that one ended, not so many courses further, so no
    row is counted or passed by, and none is left out because others came or went. One query.
    Raises InvalidCursor, and ValueError for an order that doesn't exist.
    """
    key = _KEYS[Order(order)]
    courses = Course.objects.select_related("subject", "instructor")
    for word in search.split():
        courses = courses.filter(title__icontains=word)
    if subject is not None:
        courses = courses.filter(subject=subject)
    backwards = bool(before and not after)
    position = before if backwards else after
    descending = key.descending != backwards
    if position:
        courses = courses.filter(_beyond(key, position, descending=descending))
    found = list(
        _sorted(courses, key, descending=descending, by_index=not search.split())[: size + 1]
    )
    more, page = len(found) > size, found[:size]
    if backwards:
        page.reverse()
    if not page:
        return CatalogPage([])
    return CatalogPage(
        page,
        before=_position(key, page[0]) if (more if backwards else position) else "",
        after=_position(key, page[-1]) if (more or backwards) else "",
    )


def _sorted(
    courses: CourseQuerySet, key: _Key, *, descending: bool, by_index: bool
) -> CourseQuerySet:
    # In the order of an index, the first courses of a list are there at once, but a search for
    # something rare would fetch all rows one by one, in an order that the disk doesn't have.
    by: Any = F(key.column) if by_index else key.unindexed
    pk = F("pk")
    if descending:
        return courses.order_by(by.desc(), pk.desc())
    return courses.order_by(by.asc(), pk.asc())


def _beyond(key: _Key, position: str, *, descending: bool) -> Q:
    """The condition for what comes after a position."""
    first, _, rest = position.partition(".")
    beyond = "lt" if descending else "gt"
    try:
        further = {f"pk__{beyond}": Course._meta.pk.to_python(first)}
        if key.column == "pk":
            return Q(**further)
        column: Any = Course._meta.get_field(key.column)
        value = column.to_python(rest)
    except ValidationError:
        raise InvalidCursor(f"There is no position {position!r:.80} in this order.") from None
    # Written as two ranges of one index: with ≤ and AND, MariaDB reads all that are equal.
    return Q((f"{key.column}__{beyond}", value)) | Q((key.column, value), **further)


def _position(key: _Key, course: Course) -> str:
    if key.column == "pk":
        return str(course.pk)
    return f"{course.pk}.{getattr(course, key.column)}"
