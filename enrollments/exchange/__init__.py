"""Import and export of enrollments as CSV files that other systems write and read."""

from collections.abc import Mapping
from datetime import date
from types import MappingProxyType

from enrollments.exchange.base import Format
from enrollments.exchange.canvas import CanvasFormat
from enrollments.exchange.oneroster import OneRosterFormat
from enrollments.exchange.open_university import OpenUniversityFormat


def available_formats(
    *, first_days: Mapping[str, date] = MappingProxyType({}), school: str = ""
) -> dict[str, Format]:
    """Return all formats by name. The arguments are explained at the format that uses them."""
    formats: list[Format] = [
        CanvasFormat(),
        OneRosterFormat(school=school),
        OpenUniversityFormat(first_days=first_days),
    ]
    return {format.name: format for format in formats}


FORMATS = available_formats()
