"""The WSGI application that gunicorn serves."""

import os
import re
from typing import Any

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
_django = get_wsgi_application()
_CHARSET = re.compile(r";\s*charset\*?\s*=[^;]*", re.IGNORECASE)


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """Let Django decode all requests as UTF-8.

    Django uses the codec that a request names. It fails outside of all error handling if that
    codec cannot decode text, and repeatedly while it renders the error page of a form.
    """
    environ["CONTENT_TYPE"] = _CHARSET.sub("", environ.get("CONTENT_TYPE", ""))
    return _django(environ, start_response)
