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
from django.db.models import F, Field, Model, Q, QuerySet, Value
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


class _Compiled(NamedTuple):
    sql: str
    params: tuple[Any, ...]  # literals, and a Parameter for each value to bind


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
        sql, params = self.compiled(cursor.db.alias)
        cursor.execute(
            sql,
            [
                _prepare(param, values[param.position], cursor.db)
                if isinstance(param, Parameter)
                else param
                for param in params
            ],
        )
        return cursor.rowcount

    def execute_many(self, cursor: Any, rows: Sequence[Sequence[Any]]) -> None:
        """Execute the statement for each row of values; drivers send many rows at a time."""
        sql, params = self.compiled(cursor.db.alias)
        columns = list(zip(*rows, strict=True))
        prepared = []
        for param in params:
            column = columns[param.position]
            # Most columns hold the same few values in all rows. Convert each of them once.
            converted = {value: _prepare(param, value, cursor.db) for value in set(column)}
            prepared.append([converted[value] for value in column])
        cursor.executemany(sql, list(zip(*prepared, strict=True)))

    def _compile(self, alias: str) -> _Compiled:
        compiled = self._build().get_compiler(connection=connections[alias]).as_sql()
        # The insert compiler returns a list of statements.
        sql, params = compiled[0] if isinstance(compiled, list) else compiled
        return _Compiled(sql, tuple(params))


def _prepare(param: Parameter, value: Any, database: Any) -> Any:
    return param.output_field.get_db_prep_save(value, connection=database)


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
