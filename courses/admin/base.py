"""The admin on tables of any size: the work of a page does not grow with its table.

Up to LARGE rows a list is Django's: rows are counted, any column sorts, any filter looks at all.
Beyond, it counts only as far as it links to, sorts and searches by what has an index, and what
a filter without one keeps is of the FARTHEST newest rows; the page says so.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ORDER_VAR, PAGE_VAR, ChangeList
from django.core.paginator import Page, Paginator
from django.db import IntegrityError, OperationalError
from django.db.models import Exists, Max, Min, Model, OuterRef, ProtectedError, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.functional import cached_property

from courses.managers import CourseQuerySet
from courses.transactions import is_transient, retry_transaction

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


# One line for each of them, up to here; the rest is summed up.
MOST_LINES = 20
# Courses, students and the like that an action takes at a time.
MOST_SELECTED = 500
# Rows that are counted for a page that only says why something is kept.
MOST_TOLD = 1_000


def retry_on_conflict(
    view: Callable[..., HttpResponse | None],
) -> Callable[..., HttpResponse | None]:
    """Have POSTs of a view try again after conflicts.

    Django's views begin the transaction, so it must be done around them. They are not
    idempotent: where the answer to COMMIT is lost, only the person can look what was done.
    """

    def attempt(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse | None:
        # What an attempt before this one said did not come true.
        messages.get_messages(request)._queued_messages.clear()
        return view(request, *args, **kwargs)

    def posted(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse | None:
        if request.method != "POST":
            return view(request, *args, **kwargs)
        try:
            return retry_transaction(idempotent=False)(attempt)(request, *args, **kwargs)
        except OperationalError as error:
            if not is_transient(error):
                raise
            messages.get_messages(request)._queued_messages.clear()
            messages.error(
                request,
                "The database was too busy, or the connection to it was lost: look whether "
                "your change is there before you send it again.",
            )
            return HttpResponseRedirect(request.get_full_path())

    return posted


def actor_label(request: HttpRequest) -> str:
    """Who did it, as the ledger has it."""
    return f"admin: {request.user.get_username()}"


def selected_pks(queryset: QuerySet) -> list[Any] | None:
    """The keys of what is selected, or None where it is more than MOST_SELECTED."""
    keys = list(queryset.values_list("pk", flat=True)[: MOST_SELECTED + 1])
    return keys if len(keys) <= MOST_SELECTED else None


class RetryingAdmin(LargeTableAdmin):
    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return retry_on_conflict(super().changeform_view)(request, *args, **kwargs)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return retry_on_conflict(super().delete_view)(request, *args, **kwargs)


class ProtectedDeleteAdmin(RetryingAdmin):
    """Something that can't be deleted while rows of another table refer to it.

    Django's own page would read and list every row, and there may be a million.
    """

    actions = ["delete_selected"]
    kept_by: str  # the relation
    kept_by_one: str
    kept_by_many: str
    added_meanwhile: str

    def get_deleted_objects(
        self, objs: Iterable[Model], request: HttpRequest
    ) -> tuple[Any, dict[str, int], set[str], list[str]]:
        keys = [obj.pk for obj in objs]
        relation = self.model._meta.get_field(self.kept_by)
        rows, name = relation.related_model._default_manager.order_by(), relation.field.name
        # Not as a condition: of that MariaDB makes a join, which reads all rows.
        is_kept = Exists(rows.filter(**{name: OuterRef("pk")}))
        asked = self.model._default_manager.filter(pk__in=keys).annotate(is_kept=is_kept)
        kept = [obj for obj in asked.order_by("pk") if obj.is_kept]
        protected = []
        for obj in kept[:MOST_LINES]:
            number = rows.filter(**{name: obj.pk})[: MOST_TOLD + 1].count()
            told = f"more than {MOST_TOLD:,}" if number > MOST_TOLD else number
            protected.append(
                f"{obj}: {told} {self.kept_by_one if number == 1 else self.kept_by_many}"
            )
        if len(kept) > MOST_LINES:
            protected.append("… and more")
        if not protected:
            return super().get_deleted_objects(objs, request)
        return [], {}, set(), protected

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().delete_view(request, *args, **kwargs)
        except (ProtectedError, IntegrityError):
            return self._added_meanwhile(request)

    @admin.action(permissions=["delete"], description="Delete selected %(verbose_name_plural)s")
    def delete_selected(
        self, request: HttpRequest, queryset: CourseQuerySet
    ) -> TemplateResponse | HttpResponse | None:
        if selected_pks(queryset) is None:
            self.message_user(
                request,
                f"Nothing was deleted: select at most {MOST_SELECTED} at a time.",
                messages.ERROR,
            )
            return None
        try:
            return retry_on_conflict(partial(delete_selected, self))(request, queryset)
        except (ProtectedError, IntegrityError):
            return self._added_meanwhile(request)

    def _added_meanwhile(self, request: HttpRequest) -> HttpResponse:
        self.message_user(
            request, f"Nothing was deleted: {self.added_meanwhile} meanwhile.", messages.ERROR
        )
        return HttpResponseRedirect(request.get_full_path())


class ProtectedByEnrollments(ProtectedDeleteAdmin):
    kept_by = "enrollments"
    kept_by_one, kept_by_many = "enrollment row, kept for ever", "enrollment rows, kept for ever"
    added_meanwhile = "somebody was enrolled"


class ReadOnlyAdmin(LargeTableAdmin):
    """Written by checks and rebuilds, and by nobody here."""

    ordering = ["-pk"]

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
