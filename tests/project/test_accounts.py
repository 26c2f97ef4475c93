from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.contrib.auth import get_user_model
from django.db.models.signals import pre_save
from django.test import Client, RequestFactory
from django.utils import timezone

from courses.models import Course
from enrollments.models import SelfRegistration
from project.accounts import client_address
from tests.support.commands import manage
from tests.support.databases import failing_first_insert
from tests.support.pages import visible_text
from tests.support.site import Visitor
from tests.support.threads import ConcurrentThread

PASSWORD = "corr3ct-horse"
SIGN_UP_FORM = {"username": "anna", "password1": PASSWORD, "password2": PASSWORD}


@pytest.fixture
def anna(django_user_model: Any) -> Any:
    return django_user_model.objects.create_user("anna", password=PASSWORD)


@pytest.fixture(autouse=True)
def open_sign_up(settings: Any) -> None:
    settings.SIGN_UP_OPEN = True


def sign_in(client: Client, password: str = PASSWORD, **extra: Any) -> Any:
    form = {"username": "anna", "password": password}
    return client.post("/accounts/sign-in/", form, **extra)


def test_sign_up_signs_in_and_redirects_to_next(client: Client, db: None) -> None:
    response = client.post("/accounts/sign-up/", SIGN_UP_FORM | {"next": "/courses/x/"})
    assert response.url == "/courses/x/"
    assert client.get("/my-courses/").status_code == 200
    user = get_user_model().objects.get()
    assert (user.username, user.is_staff, user.is_superuser) == ("anna", False, False)


@pytest.mark.parametrize("page", ["sign-in", "sign-up"])
def test_next_cannot_redirect_to_another_site(client: Client, anna: Any, page: str) -> None:
    form = (
        SIGN_UP_FORM | {"username": "ben"}
        if page == "sign-up"
        else {"username": "anna", "password": PASSWORD}
    )
    response = client.post(f"/accounts/{page}/", form | {"next": "https://evil.example/"})
    assert response.url == "/"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"password2": "other"}, "The two password fields didn’t match."),
        ({"password1": "1234", "password2": "1234"}, "This password is too short."),
        ({"username": "ANNA"}, "A user with that username already exists."),
        ({"is_staff": "1", "is_superuser": "1", "username": "a b"}, "Enter a valid username."),
        ({"username": "\N{CYRILLIC SMALL LETTER A}nna"}, "unaccented lowercase a-z"),
        ({"username": "ann\N{LATIN SMALL LETTER A WITH ACUTE}"}, "unaccented lowercase a-z"),
        ({"username": "\N{FULLWIDTH LATIN SMALL LETTER A}nna"}, "username already exists."),
    ],
)
def test_sign_up_reports_invalid_input(
    client: Client, anna: Any, changes: dict[str, str], error: str
) -> None:
    response = client.post("/accounts/sign-up/", SIGN_UP_FORM | {"username": "ben"} | changes)
    assert (response.status_code, error in visible_text(response)) == (200, True)
    assert get_user_model().objects.count() == 1


@pytest.mark.parametrize("is_open", [True, False])
def test_sign_up_is_offered_only_if_it_is_open(
    client: Client, db: None, settings: Any, is_open: bool
) -> None:
    settings.SIGN_UP_OPEN = is_open
    pages = [client.get(path) for path in ("/", "/accounts/sign-in/")]
    assert ['href="/accounts/sign-up/' in page.content.decode() for page in pages] == [is_open] * 2
    assert ("Ask your school for one." in visible_text(pages[1])) is not is_open
    assert client.get("/accounts/sign-up/").status_code == (200 if is_open else 404)
    assert client.post("/accounts/sign-up/", SIGN_UP_FORM).status_code == (302 if is_open else 404)
    assert get_user_model().objects.exists() is is_open


@pytest.mark.django_db(transaction=True)
def test_sign_ups_are_limited_per_network_and_hour(
    live_server: Any, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.PROXIES = 1
    settings.SIGN_UPS_PER_HOUR = 3
    numbers = count(1)

    def sign_up_from(address: str) -> Any:
        form = SIGN_UP_FORM | {"username": f"visitor{next(numbers)}"}
        return Visitor(live_server.url).post("/accounts/sign-up/", form, X_Forwarded_For=address)

    responses = [sign_up_from(f"2001:db8:1:2::{number}") for number in range(1, 6)]
    assert [response.status_code for response in responses] == [302] * 3 + [429] * 2
    assert 3500 < int(responses[-1].headers["Retry-After"]) <= 3600
    assert "SIGN_UPS_PER_HOUR is reached for 2001:db8:1:2::." in caplog.text
    assert "Try again in 60 minutes, or ask your school" in responses[-1].text
    assert sign_up_from("2001:db8:1:3::1").status_code == 302
    an_hour_ago = timezone.now() - timedelta(hours=1)
    SelfRegistration.objects.filter(user__username="visitor1").update(created_at=an_hour_ago)
    assert sign_up_from("2001:db8:1:2::9").status_code == 302
    assert sign_up_from("2001:db8:1:2::9").status_code == 429
    assert list(
        SelfRegistration.objects.order_by("pk").values_list("user__username", "address")
    ) == [
        ("visitor1", None),
        ("visitor2", "2001:db8:1:2::"),
        ("visitor3", "2001:db8:1:2::"),
        ("visitor6", "2001:db8:1:3::"),
        ("visitor7", "2001:db8:1:2::"),
    ]
    assert get_user_model().objects.count() == 5


@pytest.mark.django_db(transaction=True)
def test_concurrent_sign_ups_do_not_exceed_the_limit(client: Client, settings: Any) -> None:
    settings.SIGN_UPS_PER_HOUR = 2
    Client().post("/accounts/sign-up/", SIGN_UP_FORM)
    forms = [SIGN_UP_FORM | {"username": name} for name in ("ben", "eve")]
    concurrent = ConcurrentThread(lambda: Client().post("/accounts/sign-up/", forms[1]).status_code)

    def sign_up_concurrently(*args: Any, **kwargs: Any) -> None:
        pre_save.disconnect(sign_up_concurrently, sender=get_user_model())
        concurrent.start_and_wait_until_blocked()

    pre_save.connect(sign_up_concurrently, sender=get_user_model())
    assert client.post("/accounts/sign-up/", forms[0]).status_code == 302
    assert concurrent.finish() == 429


@pytest.mark.django_db(transaction=True)
def test_a_retried_sign_up_changes_no_other_user(client: Client) -> None:
    with failing_first_insert(get_user_model(), username="ben"):
        assert client.post("/accounts/sign-up/", SIGN_UP_FORM).status_code == 302
    users = get_user_model().objects.order_by("pk").values_list("username", flat=True)
    assert list(users) == ["ben", SIGN_UP_FORM["username"]]
    assert SelfRegistration.objects.get().user.username == SIGN_UP_FORM["username"]


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_sign_up_reports_a_name_that_was_taken_concurrently(client: Client) -> None:
    concurrent = ConcurrentThread(
        lambda: Client().post("/accounts/sign-up/", SIGN_UP_FORM).status_code
    )

    def take_name(*args: Any, **kwargs: Any) -> None:
        # The form has been validated, but not saved.
        pre_save.disconnect(take_name, sender=get_user_model())
        assert concurrent.start_and_finish() == 302

    pre_save.connect(take_name, sender=get_user_model())
    response = client.post("/accounts/sign-up/", SIGN_UP_FORM)
    assert "A user with that username already exists." in visible_text(response)
    assert get_user_model().objects.count() == 1


def test_sign_out_requires_post(client: Client, anna: Any) -> None:
    client.force_login(anna)
    assert client.get("/accounts/sign-out/").status_code == 405
    assert client.post("/accounts/sign-out/").url == "/"
    assert client.get("/my-courses/").status_code == 302


@pytest.mark.parametrize("path", ["/accounts/sign-in/", "/admin/login/"])
def test_ten_failed_sign_ins_lock_out_for_fifteen_minutes(
    client: Client, anna: Any, django_user_model: Any, path: str
) -> None:
    django_user_model.objects.update(is_staff=True)
    for _ in range(10):
        response = client.post(path, {"username": "anna", "password": "guess"})
    assert response.status_code == 429
    response = client.post(path, {"username": "anna", "password": PASSWORD})
    assert response.status_code == 429
    assert "Try again in 15 minutes." in visible_text(response)
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=16))
    assert client.post(path, {"username": "anna", "password": PASSWORD}).status_code == 302


def test_lockout_spares_other_addresses_and_other_names(
    client: Client, anna: Any, django_user_model: Any
) -> None:
    for _ in range(10):
        sign_in(client, "guess")
    assert sign_in(client, REMOTE_ADDR="192.0.2.1").status_code == 302
    django_user_model.objects.create_user("ben", password=PASSWORD)
    form = {"username": "ben", "password": PASSWORD}
    assert Client().post("/accounts/sign-in/", form).status_code == 302


@pytest.mark.parametrize("path", ["/accounts/sign-in/", "/admin/login/"])
def test_sign_in_rejects_unusual_names(client: Client, db: None, path: str) -> None:
    for name in ("x" * 5_000, "\x00", ""):
        response = client.post(path, {"username": name, "password": "guess"})
        assert response.status_code == 200


def test_failures_are_counted_for_the_address_behind_the_proxy(
    client: Client, anna: Any, settings: Any
) -> None:
    settings.PROXIES = 1
    for address in ("192.0.2.1", "192.0.2.2"):
        sign_in(client, "guess", headers={"X-Forwarded-For": address})
    addresses = AccessAttempt.objects.order_by("pk").values_list("ip_address", flat=True)
    assert list(addresses) == ["192.0.2.1", "192.0.2.2"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/accounts/sign-in/", "/admin/login/"])
def test_an_ipv6_network_is_locked_out_as_a_whole(
    live_server: Any, anna: Any, django_user_model: Any, settings: Any, path: str
) -> None:
    settings.PROXIES = 1
    django_user_model.objects.update(is_staff=True)
    visitor = Visitor(live_server.url)

    def try_from(address: str, password: str = "guess") -> int:
        form = {"username": "anna", "password": password}
        return visitor.post(path, form, X_Forwarded_For=f"192.0.2.1, {address}").status_code

    statuses = [try_from(f"2001:db8:1:2:{number}::{number}") for number in range(1, 11)]
    assert statuses == [200] * 9 + [429]
    assert try_from("2001:db8:1:2::ffff", PASSWORD) == 429
    assert try_from("2001:db8:1:3::1", PASSWORD) == 302


def test_lockout_log_lines_name_user_and_address_but_no_password(
    client: Client, db: None, caplog: pytest.LogCaptureFixture
) -> None:
    form = {"username": "anna\r\n2026 ERROR\u2028forged", "password": "secret-guess"}
    for _ in range(10):
        client.post("/accounts/sign-in/?password=secret-guess", form)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("axes")]
    who = r"user 'anna\r\n2026 ERROR\u2028forged' from 127.0.0.1 at '/accounts/sign-in/'"
    assert f"AXES: Locking out {who} after repeated login failures." in lines
    assert [line for line in lines if who not in line or "secret" in line] == []


def test_successful_sign_in_resets_the_failures(client: Client, anna: Any) -> None:
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
        # A provider assigns at least a /64 to each of its customers.
        (1, "2001:db8::1", "2001:db8::"),
        (1, "2001:db8:0:1:ffff::1", "2001:db8:0:1::"),
        (1, "fe80::1%eth0", "fe80::"),
        (1, "::ffff:198.51.100.1", "198.51.100.1"),
    ],
)
def test_client_address_trusts_only_own_proxies(
    settings: Any, proxies: int, forwarded: str, address: str | None
) -> None:
    settings.PROXIES = proxies
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    request = RequestFactory().get("/", headers=headers, REMOTE_ADDR="192.0.2.9")
    assert client_address(request) == address


@pytest.mark.django_db(transaction=True)
def test_a_self_registered_account_cannot_squat_on_a_student_number(
    live_server: Any, course: Course, tmp_path: Path
) -> None:
    path = tmp_path / "enrollments.csv"
    path.write_text(f"course_id,user_id,role,status\n{course.slug},s1001,student,active\n")
    squatter, staff = Visitor(live_server.url), Visitor(live_server.url)
    squatter.post("/accounts/sign-up/", SIGN_UP_FORM | {"username": "s1001"})
    result = manage("import_enrollments", path)
    assert result.returncode == 1
    assert "user s1001 signed up and may be somebody else" in result.stderr
    assert course.title not in squatter.get("/my-courses/").text

    get_user_model().objects.create_superuser("root", password=PASSWORD)
    staff.post("/admin/login/", {"username": "root", "password": PASSWORD})
    assert "s1001" in staff.get("/admin/auth/user/?self_registered=yes").text
    account = get_user_model().objects.get(username="s1001")
    form = {"action": "confirm", "_selected_action": account.pk}
    assert staff.post("/admin/auth/user/", form).status_code == 302
    assert manage("import_enrollments", path).returncode == 0
    assert course.title in squatter.get("/my-courses/").text
