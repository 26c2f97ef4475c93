"""Template tags that every template can use without {% load %}."""

from django import template
from django.conf import settings

register = template.Library()


# A tag and not a context processor: Django renders 500.html without a request.
@register.simple_tag
def site_name() -> str:
    """Return the name of the site, as set in settings.SITE_NAME."""
    return settings.SITE_NAME
