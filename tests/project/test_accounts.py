from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.contrib.auth import get_user_model
from django.db.models.signals import pre_save
from django.test import Client, RequestFactory
from django.utils import timezone

from project.accounts import client_address
from tests.support.pages import text
from tests.support.threads import ConcurrentThread

Make = Callable[..., Any]

PASSWORD = "corr3ct-horse"
NEW = {"username": "anna", "password1": PASSWORD, "password2": PASSWORD}


@pytest.fixture
def anna(django_user_model: Any) -> Any:
    return django_user_model.objects.create_user("anna", password=PASSWORD)


def sign_in(client: Client, password: str = PASSWORD, **where: Any) -> Any:
    form = {"username": "anna", "password": password}
    return client.post("/accounts/sign-in/", form, **where)


def test_signing_up_signs_in_and_leads_back(client: Client, db: None) -> None:
    page = client.post("/accounts/sign-up/", NEW | {"next": "/courses/x/"})
    assert page.url == "/courses/x/"
    assert client.get("/my-courses/").status_code == 200
    user = get_user_model().objects.get()
    assert (user.username, user.is_staff, user.is_superuser) == ("anna", False, False)


@pytest.mark.parametrize("page", ["sign-in", "sign-up"])
def test_nobody_is_led_to_another_site(client: Client, anna: Any, page: str) -> None:
    form = (
        NEW | {"username": "ben"}
        if page == "sign-up"
        else {"username": "anna", "password": PASSWORD}
    )
    answer = client.post(f"/accounts/{page}/", form | {"next": "https://evil.example/"})
    assert answer.url == "/"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"password2": "other"}, "The two password fields didn’t match."),
        ({"password1": "1234", "password2": "1234"}, "This password is too short."),
        ({"username": "ANNA"}, "A user with that username already exists."),
        ({"is_staff": "1", "is_superuser": "1", "username": "a b"}, "Enter a valid username."),
    ],
)
def test_what_is_wrong_is_said(client: Client, anna: Any, changed: dict, said: str) -> None:
    page = client.post("/accounts/sign-up/", NEW | {"username": "ben"} | changed)
    assert (page.status_code, said in text(page)) == (200, True)
    assert get_user_model().objects.count() == 1


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_a_name_that_is_taken_meanwhile_is_said(client: Client) -> None:
    rival = ConcurrentThread(lambda: Client().post("/accounts/sign-up/", NEW).status_code)

    def take(*args: Any, **kwargs: Any) -> None:
        # After the form has looked, before it saves.
        pre_save.disconnect(take, sender=get_user_model())
        assert rival.start_and_finish() == 302

    pre_save.connect(take, sender=get_user_model())
    page = client.post("/accounts/sign-up/", NEW)
    assert "A user with that username exists already." in text(page)
    assert get_user_model().objects.count() == 1


def test_signing_out_needs_a_press(client: Client, anna: Any) -> None:
    client.force_login(anna)
    assert client.get("/accounts/sign-out/").status_code == 405
    assert client.post("/accounts/sign-out/").url == "/"
    assert client.get("/my-courses/").status_code == 302


def test_who_is_signed_in_has_nothing_to_do_there(client: Client, anna: Any) -> None:
    client.force_login(anna)
    for page in ("sign-in", "sign-up"):
        assert client.get(f"/accounts/{page}/").url == "/"


@pytest.mark.parametrize("address", ["/accounts/sign-in/", "/admin/login/"])
def test_guessing_is_stopped_and_goes_on_after_a_while(
    client: Client, anna: Any, django_user_model: Any, address: str
) -> None:
    django_user_model.objects.update(is_staff=True)
    for _ in range(10):
        page = client.post(address, {"username": "anna", "password": "guess"})
    assert page.status_code == 429
    page = client.post(address, {"username": "anna", "password": PASSWORD})
    assert page.status_code == 429
    assert "Please wait for 15 minutes" in text(page)
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=16))
    assert client.post(address, {"username": "anna", "password": PASSWORD}).status_code == 302


def test_others_are_not_locked_out(client: Client, anna: Any, django_user_model: Any) -> None:
    for _ in range(10):
        sign_in(client, "guess")
    assert sign_in(client, REMOTE_ADDR="192.0.2.1").status_code == 302
    django_user_model.objects.create_user("ben", password=PASSWORD)
    form = {"username": "ben", "password": PASSWORD}
    assert Client().post("/accounts/sign-in/", form).status_code == 302


@pytest.mark.parametrize("address", ["/accounts/sign-in/", "/admin/login/"])
def test_a_name_of_any_length_is_only_wrong(client: Client, db: None, address: str) -> None:
    for name in ("x" * 5_000, "\x00", ""):
        page = client.post(address, {"username": name, "password": "guess"})
        assert page.status_code == 200


def test_sign_in_does_not_lead_to_itself(client: Client, anna: Any) -> None:
    client.force_login(anna)
    assert client.get("/accounts/sign-in/?next=/accounts/sign-in/").url == "/"
    assert client.get("/accounts/sign-in/?next=/accounts/sign-in/?next=x").url == "/"


def test_the_address_that_is_counted_is_the_one_behind_the_proxy(
    client: Client, anna: Any, settings: Any
) -> None:
    settings.PROXIES = 1
    for address in ("192.0.2.1", "192.0.2.2"):
        sign_in(client, "guess", headers={"X-Forwarded-For": address})
    addresses = AccessAttempt.objects.order_by("pk").values_list("ip_address", flat=True)
    assert list(addresses) == ["192.0.2.1", "192.0.2.2"]


def test_success_forgets_failures(client: Client, anna: Any) -> None:
    for _ in range(9):
        sign_in(client, "guess")
    assert sign_in(client).status_code == 302
    assert not AccessAttempt.objects.exists()


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "", "192.0.2.9"),
        (0, "198.51.100.1", "192.0.2.9"),
        (1, "198.51.100.1", "198.51.100.1"),
        (1, "spoofed, 198.51.100.1", "198.51.100.1"),
        (2, "198.51.100.1, 10.0.0.1", "198.51.100.1"),
        (3, "198.51.100.1", "198.51.100.1"),
        (1, "nonsense", None),
        (1, "2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_address_is_what_our_own_proxies_saw(
    settings: Any, proxies: int, forwarded: str, address: str | None
) -> None:
    settings.PROXIES = proxies
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    request = RequestFactory().get("/", headers=headers, REMOTE_ADDR="192.0.2.9")
    assert client_address(request) == address
