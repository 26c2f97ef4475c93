"""The admin on tables of any size: the work of a page does not grow with its table.

Up to LARGE rows a list is Django's: rows are counted, any column sorts, any filter looks at all.
Beyond, it counts only as far as it links to, sorts and searches by what has an index, and what
a filter without one keeps is of the FARTHEST newest rows; the page says so.
"""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ORDER_VAR, PAGE_VAR, ChangeList
from django.core.paginator import Page, Paginator
from django.db.models import Max, Min, Model, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

LARGE = 50_000  # rows
# Rows that a page may pass by: some 20 milliseconds of an index.
FARTHEST = 100_000
AHEAD = 5  # pages that are linked to beyond the one that is shown


def newest_key(request: HttpRequest, model: type[Model]) -> int:
    return _keys(request, model)[1]


def rows_at_most(request: HttpRequest, model: type[Model]) -> int:
    """A number that a table's rows don't exceed, by its first and last key: read in no time.

    It is higher than theirs where keys between are of rows that were deleted, or not used, as
    on a Galera cluster, which leaves out some.
    """
    oldest, newest = _keys(request, model)
    return newest - oldest + 1


def _keys(request: HttpRequest, model: type[Model]) -> tuple[int, int]:
    known = request.__dict__.setdefault("first_and_last_keys", {})
    if model not in known:
        found = model._base_manager.aggregate(oldest=Min("pk"), newest=Max("pk"))
        known[model] = (found["oldest"] or 1, found["newest"] or 0)
    return known[model]


def is_large(request: HttpRequest, model: type[Model]) -> bool:
    return rows_at_most(request, model) > LARGE


class AheadPaginator(Paginator):
    """Knows of AHEAD pages after the one that is asked for, and counts no further.

    `count` is the number of rows up to there, or of all where there are no more.
    """

    def __init__(self, rows: QuerySet, per_page: int, *args: Any, asked: int, **kwargs: Any):
        super().__init__(rows, per_page, *args, **kwargs)
        # What is skipped is read, too: there is an end to it.
        self._first = (max(1, min(asked, FARTHEST // per_page)) - 1) * per_page
        self._end = min(self._first + per_page * AHEAD, FARTHEST)

    @cached_property
    def _keys(self) -> list[Any]:
        return list(self.object_list.values_list("pk", flat=True)[self._first : self._end + 1])

    @property
    def has_more(self) -> bool:
        return self._first + len(self._keys) > self._end

    @property
    def ends_early(self) -> bool:
        """Whether there are rows that no page leads to."""
        return self.has_more and self._end == FARTHEST

    @cached_property
    def count(self) -> int:
        return self._first + len(self._keys) - self.has_more

    @property
    def rows(self) -> QuerySet:
        """Those of the page that was asked for."""
        return self.object_list.filter(pk__in=self._keys[: self.per_page])

    def page(self, number: int | str) -> Page:
        return self._get_page(self.rows, self.validate_number(number), self)


class LargeTableList(ChangeList):
    is_large = False
    # Whether the filters have looked at the FARTHEST newest rows only.
    is_of_newest = False

    @property
    def farthest(self) -> int:
        return FARTHEST

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet:
        self.is_large = is_large(request, self.model)
        if self.is_large and self.model_admin.search_help_when_large:
            self.search_help_text = self.model_admin.search_help_when_large
        rows = super().get_queryset(request, *args, **kwargs)
        # What is looked up by an index first leaves few rows to a filter.
        narrowed = (self.query and self.model_admin.search_finds_few) or any(
            name.endswith("__id__exact") for name in request.GET
        )
        self.is_of_newest = (
            self.is_large
            and bool(self.get_filters_params())
            and not narrowed
            and not self.model_admin.filters_have_indexes
        )
        if self.is_of_newest:
            rows = rows.filter(pk__gt=newest_key(request, self.model) - FARTHEST)
            # In the order of another index, all of that would be read.
            rows = rows.order_by("-pk")
        return rows

    def get_ordering_field(self, field_name: str) -> Any:
        # Django only leaves out the link: an address can ask for any column.
        if self.sortable_by is not None and field_name not in self.sortable_by:
            return None
        return super().get_ordering_field(field_name)

    def get_ordering(self, request: HttpRequest, queryset: QuerySet) -> list[Any]:
        ordering = super().get_ordering(request, queryset)
        if self.is_large and ORDER_VAR in self.params:
            # Columns of which no two rows have the same need no other to decide.
            decide = {"pk", *(field.name for field in self.lookup_opts.fields if field.unique)}
            first = ordering[0]
            is_total = isinstance(first, str) and first.lstrip("-") in decide
            ordering = [first] if is_total else [first, "-pk"]
        # An index is read in one direction: the key that decides among equals goes with it.
        if ordering[-1] == "-pk" and len(ordering) > 1 and str(ordering[-2])[0] != "-":
            ordering[-1] = "pk"
        return ordering

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if self.is_large:
            if self.page_num > self.paginator.num_pages:
                raise IncorrectLookupParameters
            self.result_list = self.paginator.rows
            self.can_show_all = self.is_facets_optional = self.add_facets = False


class LargeTableAdmin(admin.ModelAdmin):
    list_per_page = 50
    show_full_result_count = False

    class Media:
        css = {"all": ["site/admin.css"]}

    # Columns with an index.
    sortable_when_large: Sequence[str] = ()
    # Looked up in an index; None: the same as ever.
    search_fields_when_large: Sequence[str] | None = None
    search_help_when_large = ""
    search_finds_few = False
    # Whether what the filters keep is found without reading all other rows.
    filters_have_indexes = False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LargeTableList

    def get_sortable_by(self, request: HttpRequest) -> Sequence[str]:
        if is_large(request, self.model):
            return self.sortable_when_large
        return super().get_sortable_by(request)

    def get_search_fields(self, request: HttpRequest) -> Sequence[str]:
        if self.search_fields_when_large is not None and is_large(request, self.model):
            return self.search_fields_when_large
        return super().get_search_fields(request)

    def get_paginator(
        self, request: HttpRequest, queryset: QuerySet, *args: Any, **kwargs: Any
    ) -> Paginator:
        if not is_large(request, queryset.model):
            return super().get_paginator(request, queryset, *args, **kwargs)
        # The autocompletion's name for it is another.
        try:
            asked = int(request.GET.get(PAGE_VAR) or request.GET.get("page", 1))
        except ValueError:
            asked = 1  # as in ChangeList
        return AheadPaginator(queryset, *args, asked=asked, **kwargs)


class Site(admin.AdminSite):
    def get_log_entries(self, request: HttpRequest) -> QuerySet:
        # The newest first, as Django has it; by time, all of the person's would be sorted.
        return super().get_log_entries(request).order_by("-pk")
