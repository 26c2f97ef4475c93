"""Import and export of enrollments as CSV files that other systems write and read."""

from enrollments.exchange.base import Format
from enrollments.exchange.canvas import CanvasFormat
from enrollments.exchange.oneroster import OneRosterFormat
from enrollments.exchange.open_university import OpenUniversityFormat

FORMATS: dict[str, Format] = {
    format.name: format for format in (CanvasFormat(), OneRosterFormat(), OpenUniversityFormat())
}
