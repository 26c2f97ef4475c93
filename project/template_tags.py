"""Template tags that every template can use without {% load %}."""

from typing import Any

from django import template
from django.conf import settings
from django.db import Error

register = template.Library()


# Tags and not a context processor: Django renders 500.html without a request.
@register.simple_tag
def site_name() -> str:
    """Return the name of the site, as set in settings.SITE_NAME."""
    return settings.SITE_NAME


@register.simple_tag
def is_sign_up_open() -> bool:
    """Return whether visitors can create accounts, as set in settings.SIGN_UP_OPEN."""
    return settings.SIGN_UP_OPEN


@register.simple_tag(takes_context=True)
def loaded_user(context: dict[str, Any]) -> Any:
    """Return the user of the request, or None if there is no request or no database.

    Error pages use this, because the database may have caused the error.
    """
    user = getattr(context.get("request"), "user", None)
    try:
        return user if user else None  # loads the user
    except Error:
        return None
