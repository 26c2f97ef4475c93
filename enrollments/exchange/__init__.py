"""Import and export of enrollments as CSV files that other systems write and read."""

from enrollments.exchange.base import Format
from enrollments.exchange.canvas import CanvasFormat
from enrollments.exchange.oneroster import OneRosterFormat
from enrollments.exchange.open_university import OpenUniversityFormat

_ALL_FORMATS: list[Format] = [CanvasFormat(), OneRosterFormat(), OpenUniversityFormat()]
FORMATS = {format.name: format for format in _ALL_FORMATS}
