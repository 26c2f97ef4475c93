"""Many rows in one INSERT, faster than bulk_create()."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from django.db import connection
from django.db.models import Model

# Keys in one IN (…) and rows in one INSERT. Of 1,000 keys MariaDB makes a join, which reads
# and locks what it passes by.
CHUNK = 900


def insert(
    model: type[Model], columns: Sequence[str], rows: Sequence[tuple[Any, tuple[Any, ...]]]
) -> None:
    """Insert rows, each given as the value of the first of the columns and those of the others.

    What rows have in common is quoted once and not once a row. That, and bulk_create(), take
    longer than the database does, and all that time a course is locked.
    Raises IntegrityError where a key doesn't allow a row; earlier chunks are in then.
    """
    fields: list[Any] = [model._meta.get_field(name) for name in columns]
    quote_name = connection.ops.quote_name
    names = ", ".join(quote_name(field.column) for field in fields)
    into = f"INSERT INTO {quote_name(model._meta.db_table)} ({names}) VALUES "
    first = fields[0].target_field if fields[0].is_relation else fields[0]
    quote = connection.schema_editor().quote_value

    @cache
    def row_of(others: tuple[Any, ...]) -> str:
        values = zip(fields[1:], others, strict=True)
        prepared = [field.get_db_prep_save(value, connection) for field, value in values]
        quoted = ["NULL" if value is None else str(quote(value)) for value in prepared]
        return f"(%s, {', '.join(quoted).replace('%', '%%')})"

    with connection.cursor() as cursor:
        for chunk in chunks(rows):
            cursor.execute(
                into + ", ".join([row_of(others) for _, others in chunk]),
                [first.get_db_prep_value(value, connection, prepared=True) for value, _ in chunk],
            )


def chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
