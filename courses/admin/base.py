"""Admin base classes for tables of any size and for writes that conflict with others.

No page of these classes counts or reads a whole table. Lists are read page by page, sort by
indexed columns, and accept only filters and searches that an index serves or that few rows bound.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ORDER_VAR, PAGE_VAR, ChangeList
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.core.paginator import InvalidPage, Page, Paginator
from django.db import DEFAULT_DB_ALIAS, IntegrityError, OperationalError
from django.db.models import Exists, ForeignKey, Model, OuterRef, ProtectedError, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.functional import cached_property
from django.utils.text import capfirst

from courses.transactions import is_transient, retry_transaction

LOOKAHEAD_PAGES = 5
# Rows before and on the last page of a list. Skipping them takes about 20 milliseconds.
MAX_OFFSET = 100_000
MAX_SELECTED = 500  # objects that one run of an action accepts

View = Callable[..., HttpResponse | None]


class MinimumCount(int):
    """A number of rows that is known to be exceeded. It is displayed as "250+"."""

    def __str__(self) -> str:
        return f"{int(self)}+"


class BoundedPaginator(Paginator):
    """Paginate without counting the rows.

    Read the primary keys of the page `page_number` and of the next pages, LOOKAHEAD_PAGES
    pages in total. `count` ends there: it is a MinimumCount if more rows follow. `page()`
    returns the page `page_number` only.
    """

    def __init__(
        self, object_list: QuerySet, per_page: int, *args: Any, page_number: int, **kwargs: Any
    ) -> None:
        super().__init__(object_list, per_page, *args, **kwargs)
        last_page = MAX_OFFSET // self.per_page
        self._start = (max(1, min(page_number, last_page)) - 1) * self.per_page
        self._stop = min(self._start + self.per_page * LOOKAHEAD_PAGES, MAX_OFFSET)

    @cached_property
    def _pks(self) -> list[Any]:
        return list(self.object_list.values_list("pk", flat=True)[self._start : self._stop + 1])

    @cached_property
    def count(self) -> int:
        count = self._start + len(self._pks)
        return count if count <= self._stop else MinimumCount(self._stop)

    def page(self, number: int | str) -> Page:
        number = self.validate_number(number)
        rows = self.object_list.filter(pk__in=self._pks[: self.per_page])
        return self._get_page(rows, number, self)


class BoundedChangeList(ChangeList):
    """A change list that sorts and filters only by what its admin declares."""

    def get_filters(self, request: HttpRequest) -> tuple[Any, ...]:
        names = [
            item[0] if isinstance(item, tuple) else getattr(item, "parameter_name", item)
            for item in self.list_filter
        ]
        for lookup in self.get_filters_params():
            # Django would filter by any column in the address, with or without an index.
            is_related = lookup.endswith(("__id__exact", "__pk__exact"))
            if lookup.split("__")[0] not in names and not is_related:
                raise IncorrectLookupParameters
        return super().get_filters(request)

    def get_ordering_field(self, field_name: str) -> Any:
        # Django only hides the links of other columns: an address could still sort by them.
        is_sortable = field_name in (self.sortable_by or ())
        return super().get_ordering_field(field_name) if is_sortable else None

    def get_ordering(self, request: HttpRequest, queryset: QuerySet) -> list[Any]:
        if ORDER_VAR not in self.params:
            return super().get_ordering(request, queryset)
        self.params[ORDER_VAR] = self.params[ORDER_VAR].split(".")[0]
        column = super().get_ordering(request, queryset)[0]
        unique_columns = {"pk", *(field.name for field in self.lookup_opts.fields if field.unique)}
        if str(column).lstrip("-") in unique_columns:
            return [column]
        # An index contains one column, followed by the primary key in the same direction.
        is_descending = column[0] == "-" if isinstance(column, str) else column.descending
        return [column, "-pk" if is_descending else "pk"]

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not self.query and not self.get_filters_params():
            # The list shows everything, so the search form needs no number of results.
            self.full_result_count = self.result_count
        # Django would run the query again if there is only one page.
        try:
            self.result_list = self.paginator.page(self.page_num).object_list
        except InvalidPage as error:
            raise IncorrectLookupParameters from error


class ForgivingAutocompleteSelect(AutocompleteSelect):
    """Select that is empty if the address or the form contains an invalid key."""

    def optgroups(self, name: str, value: list[Any], attr: Any = None) -> list[Any]:
        model = self.field.related_model
        return super().optgroups(name, [key for key in value if _is_key(model, key)], attr)


def _is_key(model: type[Model], value: str) -> bool:
    """Return whether the text can be a primary key of the model."""
    try:
        model._meta.pk.clean(value, None)
    except ValidationError:
        return False
    return True


class BoundedAdmin(admin.ModelAdmin):
    """Admin whose list never counts its table.

    List filters must have an index, or few rows to read. Lookups by a related object, such as
    "course__id__exact", are always allowed.
    """

    list_per_page = 50
    list_max_show_all = 0
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    # List the columns that have an index.
    sortable_by: list[str] | tuple[str, ...] = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        # Drift is verified on the primary, and a form that was read from a stale replica would
        # revert later changes.
        return super().get_queryset(request).using(DEFAULT_DB_ALIAS)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return BoundedChangeList

    def get_paginator(
        self, request: HttpRequest, queryset: QuerySet, per_page: int, *args: Any, **kwargs: Any
    ) -> Paginator:
        # The autocomplete view has its own name for the parameter.
        number = request.GET.get(PAGE_VAR) or request.GET.get("page") or 1
        try:
            page_number = int(number)
        except ValueError:
            page_number = 1
        return BoundedPaginator(queryset, per_page, *args, page_number=page_number, **kwargs)

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """Name the objects by which the list is filtered in its title."""
        try:
            changelist = super().get_changelist_instance(request)
        except OverflowError as error:  # a date out of range, or on SQLite an integer
            raise IncorrectLookupParameters from error
        if names := list(self._filtering_objects(changelist)):
            changelist.title = f"{capfirst(self.opts.verbose_name_plural)}: {', '.join(names)}"
        return changelist

    def _filtering_objects(self, changelist: ChangeList) -> Iterator[str]:
        for lookup, values in changelist.get_filters_params().items():
            name, _, suffix = lookup.partition("__")
            if suffix in ("id__exact", "pk__exact"):
                model = self.opts.get_field(name).related_model
                keys = [key for key in values if _is_key(model, key)]
                yield from map(
                    str, model._default_manager.using(DEFAULT_DB_ALIAS).filter(pk__in=keys)
                )

    def formfield_for_foreignkey(
        self, db_field: ForeignKey, request: HttpRequest, **kwargs: Any
    ) -> forms.ModelChoiceField | None:
        if db_field.name in self.get_autocomplete_fields(request):
            kwargs["widget"] = ForgivingAutocompleteSelect(db_field, self.admin_site)
        kwargs["using"] = DEFAULT_DB_ALIAS
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Model | None:
        # Django looks up a field without a name for "?_to_field=".
        return super().get_object(request, object_id, from_field or None)

    def response_action(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        selected = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
        if not all(_is_key(self.model, key) for key in selected):
            message = "Nothing was changed, because the selection is invalid."
            self.message_user(request, message, messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())
        # Parsed like the field of Django's form: without it, only rows of the page are selected.
        selects_all = forms.BooleanField().to_python(request.POST.get("select_across"))
        if selects_all and queryset.order_by()[MAX_SELECTED:].exists():
            message = f"Select at most {MAX_SELECTED} {self.opts.verbose_name_plural}."
            self.message_user(request, message, messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())
        return super().response_action(request, queryset)


class ReadOnlyAdmin(BoundedAdmin):
    """Admin of rows that only the system writes, newest first."""

    ordering = ["-pk"]

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    has_change_permission = has_delete_permission = has_add_permission


def retry_on_conflict(view: View) -> View:
    """Run POST requests to `view` in one transaction and retry it on database conflicts.

    Decorate the view itself, because Django's admin views begin the transaction. They are not
    idempotent: if the connection is lost during COMMIT, the view is not retried, and a message
    asks the user to check the result. A message also reports a violated constraint, and an object
    that was deleted concurrently.
    """

    def attempt(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse | None:
        _discard_new_messages(request)
        return view(request, *args, **kwargs)

    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse | None:
        if request.method != "POST":
            return view(request, *args, **kwargs)
        try:
            return retry_transaction(idempotent=False)(attempt)(request, *args, **kwargs)
        except (ProtectedError, IntegrityError, ObjectDoesNotExist):
            message = "Nothing was changed, because related rows changed just now. Try again."
        except OperationalError as error:
            if not is_transient(error):
                raise
            message = (
                "The database was too busy. "
                "Check whether your change was saved before you try again."
            )
        _discard_new_messages(request)
        messages.error(request, message)
        return HttpResponseRedirect(request.get_full_path())

    return wrapper


def _discard_new_messages(request: HttpRequest) -> None:
    """Discard the messages of an attempt that was rolled back."""
    # Private API, checked on Django 5.2. Iterating over the storage, which is public, would
    # also discard the messages of earlier requests.
    messages.get_messages(request)._queued_messages.clear()


def actor_label(request: HttpRequest) -> str:
    """Return the name under which audit runs record the user."""
    return f"admin: {request.user.get_username()}"


class RetryingAdmin(BoundedAdmin):
    """Admin whose forms are saved again after a database conflict."""

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return retry_on_conflict(super().changeform_view)(request, *args, **kwargs)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return retry_on_conflict(super().delete_view)(request, *args, **kwargs)


class ProtectedDeleteAdmin(RetryingAdmin):
    """Admin of objects that cannot be deleted while rows of a relation refer to them.

    Django's confirmation page would read and list all of these rows. This class names the
    objects instead.
    """

    actions = ["delete_selected"]
    protected_relation: str  # the related name

    def get_deleted_objects(
        self, objs: Iterable[Model], request: HttpRequest
    ) -> tuple[Any, dict[str, int], set[str], list[str]]:
        relation = self.model._meta.get_field(self.protected_relation)
        rows = relation.related_model._default_manager.filter(
            **{relation.field.name: OuterRef("pk")}
        )
        # MariaDB would turn a filter by this subquery into a join that reads all rows.
        objects = self.model._default_manager.using(DEFAULT_DB_ALIAS)
        objects = objects.annotate(is_protected=Exists(rows.order_by()))
        protected = [
            f"{relation.related_model._meta.verbose_name_plural} of {obj}"
            for obj in objects.filter(pk__in=[obj.pk for obj in objs]).order_by("pk")
            if obj.is_protected
        ]
        if protected:
            return [], {}, set(), protected
        return super().get_deleted_objects(objs, request)

    @admin.action(permissions=["delete"], description="Delete selected %(verbose_name_plural)s")
    def delete_selected(self, request: HttpRequest, queryset: QuerySet) -> HttpResponse | None:
        return retry_on_conflict(partial(delete_selected, self))(request, queryset)
