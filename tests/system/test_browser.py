"""What people see and do, in Chromium."""

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from playwright.sync_api import Browser, BrowserContext, Page, expect

from courses.models import Course, Subject
from enrollments.models import Enrollment
from enrollments.services import enroll, enroll_many, set_status
from tests.conftest import drifts
from tests.support import servers
from tests.support.threads import wait_for_lock_waits

# Playwright's loop runs in this thread, which makes Django careful; no query is made in the loop.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

Make = Callable[..., Any]
PASSWORD = "corr3ct-horse"
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    return browser_type_launch_args | servers.chromium_options()


@pytest.fixture
def visitor(browser: Browser, live_server: Any) -> Iterator[Callable[..., Page]]:
    """Opens browsers of different people. What their consoles complain of fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_browser(**options: Any) -> Page:
        context = browser.new_context(
            **({"base_url": live_server.url, "viewport": DESK, "locale": "en-GB"} | options)
        )
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda said: said.type in ("error", "warning") and complaints.append(said.text),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_browser
    for context in contexts:
        context.close()
    assert [said for said in complaints if "status of 4" not in said] == []


@pytest.fixture
def art(db: None) -> Subject:
    return Subject.objects.create(name="Art", slug="art")


def sign_up(page: Page, name: str) -> None:
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password:", exact=True).fill(PASSWORD)
    page.get_by_label("Password confirmation").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()


def signed_in(page: Page, name: str, **values: Any) -> Page:
    get_user_model().objects.create_user(name, password=PASSWORD, **values)
    page.goto("/accounts/sign-in/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/")
    return page


def titles(page: Page) -> list[str]:
    return page.locator(".courses h2").all_inner_texts()


def shown_count(page: Page) -> int:
    return int(page.locator(".students data").get_attribute("value"))


def test_browsing_and_searching(
    visitor: Make, make_course: Make, make_students: Make, art: Subject
) -> None:
    students = make_students(3)
    for number, title in enumerate(["Graph Theory", "Graph Drawing", "Oil Painting"]):
        course = make_course(title=title, subject=None if number == 0 else art)
        enroll_many(course=course, students=students[: number + 1])
    page = visitor()
    page.goto("/")
    assert titles(page) == ["Oil Painting", "Graph Drawing", "Graph Theory"]
    page.get_by_label("Search").fill("graph")
    page.get_by_label("Search").press("Enter")
    assert titles(page) == ["Graph Drawing", "Graph Theory"]
    page.get_by_label("Subject").select_option("Art")
    page.get_by_role("button", name="Show").click()
    assert titles(page) == ["Graph Drawing"]
    page.get_by_label("Search").fill("")
    page.get_by_label("Sort by").select_option("Title")
    page.get_by_role("button", name="Show").click()
    assert titles(page) == ["Graph Drawing", "Oil Painting"]
    page.get_by_role("link", name="Oil Painting").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Oil Painting")
    page.get_by_role("link", name="Art").click()
    assert titles(page) == ["Oil Painting", "Graph Drawing"]


def test_paging_there_and_back(visitor: Make, make_course: Make) -> None:
    for number in range(101):
        make_course(title=f"Course {number:03}")
    page = visitor()
    page.goto("/?order=title")
    seen = titles(page)
    for _ in range(2):
        page.get_by_role("link", name="Next").click()
        seen += titles(page)
    assert seen == sorted(Course.objects.values_list("title", flat=True))
    expect(page.get_by_role("link", name="Next")).to_have_count(0)
    page.get_by_role("link", name="Previous").click()
    page.get_by_role("link", name="Previous").click()
    assert titles(page) == seen[:50]
    expect(page.get_by_role("link", name="Previous")).to_have_count(0)


@pytest.mark.parametrize("scripts", [True, False])
def test_signing_up_enrolling_and_leaving(
    visitor: Make, course: Course, make_students: Make, scripts: bool
) -> None:
    enroll_many(course=course, students=make_students(2))
    page = visitor(java_script_enabled=scripts)
    page.goto(course.get_absolute_url())
    assert shown_count(page) == 2
    page.get_by_role("link", name="Sign in to enroll").click()
    page.get_by_role("main").get_by_role("link", name="Sign up").click()
    sign_up(page, "anna")
    expect(page.get_by_role("heading", level=1)).to_have_text(course.title)
    page.get_by_role("button", name="Enroll").click()
    expect(page.get_by_role("status")).to_contain_text("You are enrolled in")
    assert shown_count(page) == 3
    page.get_by_role("link", name="My courses").click()
    expect(page.get_by_role("region", name="Active")).to_contain_text(course.title)
    page.get_by_role("link", name=course.title).click()
    page.get_by_role("button", name="Leave this course").click()
    expect(page.get_by_role("status")).to_contain_text("You have left")
    assert shown_count(page) == 2
    page.get_by_role("link", name="My courses").click()
    expect(page.get_by_role("region", name="Withdrawn")).to_contain_text(course.title)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()
    assert drifts() == {}


def test_the_way_back_shows_no_old_count(visitor: Make, course: Course, student: Any) -> None:
    page = visitor()
    page.goto(course.get_absolute_url())
    page.get_by_role("link", name="Course catalog").click()
    enroll(student=student, course=course)
    page.go_back()
    assert shown_count(page) == 1


def test_a_full_course_offers_no_seat_and_says_why(
    visitor: Make, make_course: Make, student: Any
) -> None:
    course = make_course(title="Wanted", capacity=1)
    page = signed_in(visitor(), "anna")
    page.goto(course.get_absolute_url())
    enroll(student=student, course=course)
    page.get_by_role("button", name="Enroll").click()
    expect(page.get_by_role("status")).to_have_text(
        re.compile("“Wanted” is full: all 1 seats are taken.")
    )
    expect(page.get_by_role("button", name="Enroll")).to_have_count(0)
    expect(page.locator(".seats")).to_have_text("Full · 1 seat")
    assert (shown_count(page), drifts()) == (1, {})


def test_two_browsers_press_at_the_same_moment_for_the_last_seat(
    visitor: Make, make_course: Make
) -> None:
    course = make_course(capacity=1)
    pages = [signed_in(visitor(), name) for name in ("anna", "ben")]
    for page in pages:
        page.goto(course.get_absolute_url())
    with transaction.atomic():
        Course.objects.select_for_update().get(pk=course.pk)
        for page in pages:
            # Doesn't wait for the answer, which can't come yet.
            page.evaluate("() => { document.querySelector('.enrollment button').click() }")
        wait_for_lock_waits(len(pages))
    for page in pages:
        expect(page.get_by_role("status")).to_be_visible()
    said = [page.get_by_role("status").inner_text() for page in pages]
    assert sorted("is full" in each for each in said) == [False, True]
    assert Enrollment.objects.counted().count() == 1
    assert drifts() == {}


def test_all_can_be_done_with_the_keyboard(visitor: Make, course: Course) -> None:
    get_user_model().objects.create_user("anna", password=PASSWORD)
    page = visitor()
    page.goto(course.get_absolute_url())
    press = page.keyboard.press
    press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    press("Enter")
    press("Tab")
    expect(page.get_by_role("link", name="Sign in to enroll")).to_be_focused()
    press("Enter")
    expect(page.get_by_label("Username")).to_be_focused()
    page.keyboard.type("anna")
    press("Tab")
    page.keyboard.type(PASSWORD)
    press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(course.title)
    for _ in range(10):
        if page.evaluate("document.activeElement.textContent") == "Enroll":
            break
        press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    press("Enter")
    expect(page.get_by_role("status")).to_contain_text("You are enrolled")
    assert shown_count(page) == 1


@pytest.fixture
def addresses(make_course: Make, make_students: Make, art: Subject) -> Callable[[Any], list[str]]:
    """The addresses of all pages, with something of each kind on them."""
    open_one = make_course(title="A title that is long enough to be broken " * 3, subject=art)
    full = make_course(title="Full", capacity=2)
    enroll_many(course=full, students=make_students(2))

    def of(user: Any) -> list[str]:
        if user is not None:
            for number, status in enumerate(Enrollment.Status):
                course = make_course(title=f"Mine {number}", subject=art, capacity=20_000)
                enroll(student=user, course=course)
                set_status(student=user, course=course, status=status)
        return [
            *("/", "/?search=nothing+at+all", "/?search=" + "x" * 101),
            *(each.get_absolute_url() for each in Course.objects.order_by("pk")),
            *(["/my-courses/"] if user else ["/accounts/sign-in/", "/accounts/sign-up/"]),
            *("/nowhere", open_one.get_absolute_url()),
        ]

    return of


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("is_student", [False, True], ids=["visitor", "student"])
def test_all_pages_are_accessible_and_fit(
    visitor: Make, addresses: Make, size: dict[str, int], scheme: str, is_student: bool
) -> None:
    page = visitor(viewport=size, color_scheme=scheme)
    if is_student:
        signed_in(page, "anna")
    found = {}
    for address in addresses(get_user_model().objects.filter(username="anna").first()):
        page.goto(address)
        for wrong in Axe().run(page).response["violations"]:
            found[address, wrong["id"]] = [node["html"] for node in wrong["nodes"]]
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > size["width"]:
            found[address, "too wide"] = [wide]
    assert found == {}


def test_the_admin_shows_filters_and_corrects_drift(visitor: Make, make_course: Make) -> None:
    right, wrong = make_course(title="Right"), make_course(title="Wrong")
    Course.objects.filter(pk=wrong.pk).update(total_enrollments=5)
    page = signed_in(visitor(), "staff", is_staff=True, is_superuser=True)
    page.get_by_role("link", name="Administration").click()
    page.get_by_role("rowheader", name="Courses").get_by_role("link").click()
    expect(page.locator("tr", has_text="Wrong").locator(".field-drift")).to_have_text("+5")
    expect(page.locator("tr", has_text="Right").locator(".field-drift")).to_have_text("0")
    page.get_by_role("link", name="Drifted now").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    page.get_by_label("Select all objects on this page for an action").check()
    page.locator("select[name=action]").select_option(
        label="Rebuild counts of the selected courses"
    )
    page.locator("button[name=index]").click()
    expect(page.locator(".messagelist")).to_contain_text("Corrected 1 course: “Wrong” from 5 to 0.")
    expect(page.locator("#result_list")).to_have_count(0)
    assert drifts() == {}
    assert right.title == "Right"


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_count_health_is_accessible_fits_and_checks_at_a_press(
    visitor: Make, make_course: Make, make_students: Make, size: dict[str, int], scheme: str
) -> None:
    right, wrong = make_course(title="Right"), make_course(title="Wrong " * 20)
    enroll_many(course=right, students=make_students(3))
    page = signed_in(
        visitor(viewport=size, color_scheme=scheme), "staff", is_staff=True, is_superuser=True
    )

    def complaints() -> dict[str, Any]:
        found = {
            wrong["id"]: [node["html"] for node in wrong["nodes"]]
            for wrong in Axe().run(page, context="#content").response["violations"]
        }
        wide = page.evaluate("document.documentElement.scrollWidth")
        return found | ({"too wide": wide} if wide > size["width"] else {})

    page.goto("/admin/")
    page.get_by_role("link", name="Count health").click()
    expect(
        page.get_by_role("heading", name="No check of all courses has finished yet")
    ).to_be_visible()
    assert complaints() == {}
    page.get_by_role("button", name="Check now").click()
    expect(page.locator(".messagelist")).to_have_text("2 courses checked: all counts are correct.")
    expect(page.get_by_role("heading", name="All counts were correct at")).to_be_visible()
    assert complaints() == {}

    Course.objects.filter(pk=wrong.pk).update(total_enrollments=5)
    page.get_by_role("button", name="Check now").click()
    expect(
        page.get_by_role("heading", name="1 of 2 courses drifted, by 5 enrollments in total")
    ).to_be_visible()
    expect(page.get_by_role("row", name="Wrong")).to_contain_text("+5")
    drawn = page.get_by_role("img", name="Drifted courses")
    assert drawn.locator("rect.bar").bounding_box()["height"] > 50
    assert page.locator("rect.bar").count() == 1  # no course is corrected yet
    page.get_by_text("Show as a table").click()
    expect(page.get_by_role("figure").get_by_role("row")).to_have_count(2)
    assert complaints() == {}

    page.get_by_role("rowheader", name="Wrong").get_by_role("link").click()
    page.locator(".object-tools").get_by_role("link", name="Discrepancies").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)


def test_the_admins_autocomplete_works_under_the_policy(
    visitor: Make, make_course: Make, art: Subject
) -> None:
    course = make_course(title="Drawing")
    page = signed_in(visitor(), "staff", is_staff=True, is_superuser=True)
    page.goto(f"/admin/courses/course/{course.pk}/change/")
    page.locator(".field-subject .select2-selection").click()
    page.get_by_role("option", name="Art").click()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".messagelist")).to_contain_text("was changed successfully")
    course.refresh_from_db()
    assert course.subject == art
    assert connection.in_atomic_block is False
