"""The statements of the hot path: ORM expressions, compiled once and executed many times.

Django needs longer to build and compile a query than the database needs to execute it, and the
course stays locked for all that time. Each statement below is therefore compiled once per process
and database backend. Executing it only binds new parameters.

`make bench` compares `enroll()` with the same statements through the bare driver, and with the
same ORM expressions compiled on every call.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import AutoField, BigAutoField, CharField, F, Field, Model, Q, QuerySet, Value
from django.db.models.sql import InsertQuery, Query, UpdateQuery

from courses.models import Course
from enrollments.models import Enrollment, EnrollmentEvent


class Parameter(Value):
    """A placeholder for the value at `position` of the arguments of `Statement.execute()`."""

    def __init__(self, position: int, output_field: Field) -> None:
        super().__init__(None, output_field=output_field)
        self.position = position

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        return "%s", [self]


class _Placeholder(NamedTuple):
    """What goes into one placeholder of a compiled statement."""

    position: int | None  # of the value; None: always the literal
    literal: Any
    convert: Callable[..., Any]  # to what the driver accepts


class _Compiled(NamedTuple):
    sql: str
    placeholders: tuple[_Placeholder, ...]


class Statement:
    """A query that is compiled on first use and then only executed.

    `build` returns the query, with a Parameter for each value that changes between executions.
    The compiler (`Query.get_compiler()`, checked on Django 5.2) is not documented as public API;
    tests compare the compiled statements with what the ORM executes.
    """

    def __init__(self, build: Callable[[], Query]) -> None:
        self._build = build
        self.compiled = cache(self._compile)

    def execute(self, cursor: Any, *values: Any) -> int:
        """Execute the statement with `values` and return the number of affected rows."""
        database = cursor.db
        sql, placeholders = self.compiled(database.alias)
        cursor.execute(
            sql,
            [
                literal if position is None else convert(values[position], connection=database)
                for position, literal, convert in placeholders
            ],
        )
        return cursor.rowcount

    def execute_many(self, cursor: Any, rows: Sequence[Sequence[Any]]) -> None:
        """Execute the statement for each row of values; drivers send many rows at a time."""
        sql, placeholders = self.compiled(cursor.db.alias)
        columns = list(zip(*rows, strict=True))
        converted_columns = []
        for position, _, convert in placeholders:
            assert position is not None, "statements for many rows have no literals"
            column = columns[position]
            # Most columns hold the same few values in all rows. Convert each of them once.
            converted = {value: convert(value, connection=cursor.db) for value in set(column)}
            converted_columns.append([converted[value] for value in column])
        cursor.executemany(sql, list(zip(*converted_columns, strict=True)))

    def _compile(self, alias: str) -> _Compiled:
        compiled = self._build().get_compiler(connection=connections[alias]).as_sql()
        # The insert compiler returns a list of statements.
        sql, params = compiled[0] if isinstance(compiled, list) else compiled
        return _Compiled(sql, tuple(_make_placeholder(param) for param in params))


def _make_placeholder(param: Any) -> _Placeholder:
    if not isinstance(param, Parameter):
        return _Placeholder(None, param, _pass_through)
    field = param.output_field
    # A foreign key converts like the primary key that it refers to, only more slowly.
    field = getattr(field, "target_field", field)
    is_plain = type(field) in (CharField, AutoField, BigAutoField)
    return _Placeholder(param.position, None, _pass_through if is_plain else field.get_db_prep_save)


def _pass_through(value: Any, connection: Any) -> Any:
    # Drivers accept strings and validated integers as they are.
    return value


def _update(rows: QuerySet, **values: Any) -> Query:
    query: Any = rows.query.chain(UpdateQuery)
    query.add_update_values(values)
    return query


def _insert(model: type[Model]) -> Query:
    """Return an INSERT of one row, with the values in the order of the model's fields."""
    fields = [field for field in model._meta.concrete_fields if not field.primary_key]
    parameters = {field.attname: Parameter(place, field) for place, field in enumerate(fields)}
    query = InsertQuery(model)
    query.insert_values(fields, [model(**parameters)], raw=True)
    return query


def _build_take_seat() -> Query:
    has_free_seat = Q(capacity=None) | Q(capacity__gt=F("total_enrollments"))
    course = Course.objects.filter(has_free_seat, pk=Parameter(0, Course._meta.pk))
    return _update(course, total_enrollments=F("total_enrollments") + 1)


# Lock a course, check for a free seat and add 1 to its counter. Argument: course_id.
# No affected row means that the course is full or does not exist.
TAKE_SEAT = Statement(_build_take_seat)
# Arguments: student_id, course_id, status, enrollment_date, withdrawal_date.
INSERT_ENROLLMENT = Statement(lambda: _insert(Enrollment))
# Arguments: the fields of `enrollments.history.Event`.
INSERT_EVENT = Statement(lambda: _insert(EnrollmentEvent))
