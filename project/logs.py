"""The text format of the log."""

import logging
import re
import textwrap
from typing import Any

_CONTROL_CHARACTERS = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class TextFormatter(logging.Formatter):
    """Escape control characters, and indent tracebacks.

    Messages and tracebacks contain paths and headers of requests. A path with `%0A` could
    otherwise forge an event.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = _CONTROL_CHARACTERS.sub(_escape, record.message)
        return super().formatMessage(record)

    def formatException(self, exc_info: Any) -> str:  # noqa: N802
        lines = super().formatException(exc_info).split("\n")
        text = "\n".join(_CONTROL_CHARACTERS.sub(_escape, line) for line in lines)
        return textwrap.indent(text, "    ")


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
