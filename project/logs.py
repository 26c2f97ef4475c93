"""The text format of the log."""

import logging
import re
import textwrap
from typing import Any

_CONTROL_CHARACTERS = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class TextFormatter(logging.Formatter):
    """Escape control characters of messages, and indent tracebacks.

    Messages contain the paths of requests. A path with `%0A` could otherwise forge an event.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = _CONTROL_CHARACTERS.sub(_escape, record.message)
        return super().formatMessage(record)

    def formatException(self, exc_info: Any) -> str:  # noqa: N802
        return textwrap.indent(super().formatException(exc_info), "    ")


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
