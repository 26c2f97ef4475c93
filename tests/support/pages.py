"""Read pages as a visitor sees them, and use the admin as a member of staff does."""

import re
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.http import HttpResponse
from django.test import Client

COURSE_LIST = "/admin/courses/course/"


def visible_text(response: HttpResponse) -> str:
    """Return the page without its tags, with every run of whitespace as one space."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", response.content.decode()))


def displayed_counts(response: HttpResponse) -> list[int]:
    """Return all counts on a public page, in page order."""
    return [int(n) for n in re.findall(r'<data value="(-?\d+)">', response.content.decode())]


def column_values(response: HttpResponse, name: str) -> list[str]:
    """Return the cells of one column of an admin list, without links."""
    cells = re.findall(
        rf'<t[dh] class="field-{name}[^"]*">(.*?)</t[dh]>', response.content.decode()
    )
    return [re.sub(r"</?a.*?>", "", cell) for cell in cells]


def message_texts(response: HttpResponse) -> list[str]:
    """Return the messages that the page displays."""
    return [str(message) for message in response.context["messages"]]


def run_action(client: Client, action: str, courses: list[Any], **data: Any) -> HttpResponse:
    """Run an action of the admin's course list on `courses`; `data` is added to the form."""
    form = {"action": action, "_selected_action": [course.pk for course in courses], **data}
    return client.post(COURSE_LIST, form, follow=True)


def sign_in_staff(client: Client, *permissions: str) -> None:
    """Sign in a member of staff who has only these permissions."""
    user = get_user_model().objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
