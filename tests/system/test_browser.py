"""The public site and the admin in Chromium."""

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth import get_user_model
from django.db import transaction
from playwright.sync_api import Browser, BrowserContext, Page, expect

from courses.models import Course, Subject
from enrollments.models import Enrollment
from enrollments.services import enroll, enroll_many, set_status
from tests.support.counts import drift_by_title
from tests.support.programs import chromium_options
from tests.support.threads import wait_for_lock_waits

# Django refuses queries in a thread with a running event loop, and Playwright runs one in this
# thread. No query is made inside the loop.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

Make = Callable[..., Any]
PASSWORD = "corr3ct-horse"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
UNBROKEN_TITLE = "W" * 200
ARABIC_TITLE = "مقدمة في الرياضيات 2 (الجزء الأول)"

every_viewport = pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
every_color_scheme = pytest.mark.parametrize("color_scheme", ["light", "dark"])


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    return browser_type_launch_args | chromium_options()


@pytest.fixture
def open_browser(
    browser: Browser, live_server: Any, settings: Any
) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a browser of another visitor.

    The test fails if a browser's console shows an error or a warning.
    """
    settings.SIGN_UP_OPEN = True
    contexts: list[BrowserContext] = []
    console_errors: list[str] = []

    def open_page(**options: Any) -> Page:
        context = browser.new_context(
            **({"base_url": live_server.url, "viewport": DESKTOP, "locale": "en-US"} | options)
        )
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning") and console_errors.append(message.text)
            ),
        )
        page.on("pageerror", lambda error: console_errors.append(str(error)))
        return page

    yield open_page
    for context in contexts:
        context.close()
    # Pages with status 400 or 404 are requested on purpose.
    assert [error for error in console_errors if "status of 4" not in error] == []


@pytest.fixture
def art(db: None) -> Subject:
    return Subject.objects.create(name="Art", slug="art")


def sign_up(page: Page, username: str) -> None:
    page.get_by_label("Username").fill(username)
    page.get_by_label("Password:", exact=True).fill(PASSWORD)
    page.get_by_label("Password confirmation").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()


def sign_in(page: Page, username: str, **values: Any) -> Page:
    """Create a user and sign in; return the page."""
    get_user_model().objects.create_user(username, password=PASSWORD, **values)
    page.goto("/accounts/sign-in/")
    page.get_by_label("Username").fill(username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/")
    return page


def displayed_titles(page: Page) -> list[str]:
    return page.locator(".courses h2").all_inner_texts()


def displayed_count(page: Page) -> int:
    return int(page.locator(".enrollment-count data").get_attribute("value"))


def test_catalog_filters_and_sorts_courses(
    open_browser: Make, make_course: Make, make_students: Make, art: Subject
) -> None:
    students = make_students(3)
    for number, title in enumerate(["Graph Theory", "Graph Drawing", "Oil Painting"]):
        course = make_course(title=title, subject=None if number == 0 else art)
        enroll_many(course=course, students=students[: number + 1])
    page = open_browser()
    page.goto("/")
    assert displayed_titles(page) == ["Oil Painting", "Graph Drawing", "Graph Theory"]
    page.get_by_label("Search").fill("graph")
    page.get_by_label("Search").press("Enter")
    assert displayed_titles(page) == ["Graph Drawing", "Graph Theory"]
    page.get_by_label("Subject").select_option("Art")
    page.get_by_role("button", name="Search").click()
    assert displayed_titles(page) == ["Graph Drawing"]
    page.get_by_label("Search").fill("")
    page.get_by_label("Sort by").select_option("Title")
    page.get_by_role("button", name="Search").click()
    assert displayed_titles(page) == ["Graph Drawing", "Oil Painting"]
    page.get_by_role("link", name="Oil Painting").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Oil Painting")
    page.get_by_role("link", name="Art").click()
    assert displayed_titles(page) == ["Oil Painting", "Graph Drawing"]


def test_catalog_pages_show_every_course_in_both_directions(
    open_browser: Make, make_course: Make
) -> None:
    for number in range(101):
        make_course(title=f"Course {number:03}")
    page = open_browser()
    page.goto("/?order=title")
    titles = displayed_titles(page)
    for _ in range(2):
        page.get_by_role("link", name="Next").click()
        titles += displayed_titles(page)
    assert titles == sorted(Course.objects.values_list("title", flat=True))
    expect(page.get_by_role("link", name="Next")).to_have_count(0)
    page.get_by_role("link", name="Previous").click()
    page.get_by_role("link", name="Previous").click()
    assert displayed_titles(page) == titles[:50]
    expect(page.get_by_role("link", name="Previous")).to_have_count(0)


@pytest.mark.parametrize("java_script", [True, False], ids=["js", "no_js"])
def test_new_student_enrolls_and_leaves(
    open_browser: Make, course: Course, make_students: Make, java_script: bool
) -> None:
    enroll_many(course=course, students=make_students(2))
    page = open_browser(java_script_enabled=java_script)
    page.goto(course.get_absolute_url())
    assert displayed_count(page) == 2
    page.get_by_role("link", name="Sign in to enroll").click()
    page.get_by_role("main").get_by_role("link", name="Sign up").click()
    sign_up(page, "anna")
    expect(page.get_by_role("heading", level=1)).to_have_text(course.title)
    page.get_by_role("button", name="Enroll").click()
    expect(page.get_by_role("status")).to_contain_text("You are enrolled in")
    assert displayed_count(page) == 3
    page.get_by_role("link", name="My courses").click()
    expect(page.get_by_role("region", name="Active")).to_contain_text(course.title)
    page.get_by_role("link", name=course.title).click()
    page.get_by_role("button", name="Leave this course").click()
    expect(page.get_by_role("status")).to_contain_text("You have left")
    assert displayed_count(page) == 2
    page.get_by_role("link", name="My courses").click()
    expect(page.get_by_role("region", name="Withdrawn")).to_contain_text(course.title)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()
    assert drift_by_title() == {}


def test_back_button_shows_the_current_count(
    open_browser: Make, course: Course, student: Any
) -> None:
    page = open_browser()
    page.goto(course.get_absolute_url())
    page.locator("header").get_by_role("link").first.click()
    enroll(student=student, course=course)
    page.go_back()
    assert displayed_count(page) == 1


def test_full_course_rejects_and_explains(
    open_browser: Make, make_course: Make, student: Any
) -> None:
    course = make_course(title="Popular", capacity=1)
    page = sign_in(open_browser(), "anna")
    page.goto(course.get_absolute_url())
    enroll(student=student, course=course)
    page.get_by_role("button", name="Enroll").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("“Popular” is full"))
    expect(page.get_by_role("button", name="Enroll")).to_have_count(0)
    expect(page.locator(".seats")).to_have_text("Full · 1 seat")
    assert (displayed_count(page), drift_by_title()) == (1, {})


def test_last_seat_goes_to_one_of_two_simultaneous_students(
    open_browser: Make, make_course: Make
) -> None:
    course = make_course(capacity=1)
    pages = [sign_in(open_browser(), name) for name in ("anna", "ben")]
    for page in pages:
        page.goto(course.get_absolute_url())
    with transaction.atomic():
        Course.objects.select_for_update().get(pk=course.pk)
        for page in pages:
            # click() of Playwright would wait for the response, which needs the lock.
            page.evaluate("() => { document.querySelector('.enrollment button').click() }")
        wait_for_lock_waits(len(pages))
    for page in pages:
        expect(page.get_by_role("status")).to_be_visible()
    messages = [page.get_by_role("status").inner_text() for page in pages]
    assert sorted("is full" in message for message in messages) == [False, True]
    assert Enrollment.objects.counted().count() == 1
    assert drift_by_title() == {}


def test_enrolling_needs_only_the_keyboard(open_browser: Make, course: Course) -> None:
    get_user_model().objects.create_user("anna", password=PASSWORD)
    page = open_browser()
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
    assert displayed_count(page) == 1


@pytest.fixture
def public_paths(
    make_course: Make, make_students: Make, art: Subject
) -> Callable[[Any], list[str]]:
    """Return a function that returns the paths of all pages, with content of each kind."""
    for title in ("A title that is long enough to wrap " * 3, UNBROKEN_TITLE, ARABIC_TITLE):
        make_course(title=title, subject=art)
    make_course(title="Closed", capacity=0)
    enroll_many(course=make_course(title="Full", capacity=2), students=make_students(2))

    def paths(student: Any) -> list[str]:
        if student is not None:
            for number, status in enumerate(Enrollment.Status):
                course = make_course(title=f"Mine {number}", subject=art, capacity=20_000)
                enroll(student=student, course=course)
                set_status(student=student, course=course, status=status)
        return [
            *("/", "/?search=no+such+course", "/no-such-page"),
            *(course.get_absolute_url() for course in Course.objects.order_by("pk")),
            *(["/my-courses/"] if student else ["/accounts/sign-in/", "/accounts/sign-up/"]),
        ]

    return paths


@every_viewport
@every_color_scheme
@pytest.mark.parametrize("is_student", [False, True], ids=["visitor", "student"])
def test_public_pages_are_accessible_and_fit_the_screen(
    open_browser: Make,
    public_paths: Make,
    viewport: dict[str, int],
    color_scheme: str,
    is_student: bool,
) -> None:
    page = open_browser(viewport=viewport, color_scheme=color_scheme)
    if is_student:
        sign_in(page, "anna")
    faults = {}
    for path in public_paths(get_user_model().objects.filter(username="anna").first()):
        page.goto(path)
        if page_faults := find_faults(page, viewport):
            faults[path] = page_faults
    assert faults == {}


def test_titles_have_their_own_direction(open_browser: Make, make_course: Make) -> None:
    make_course(title=ARABIC_TITLE)
    page = open_browser()
    page.goto("/")
    link = page.get_by_role("link", name=ARABIC_TITLE)
    expect(link).to_have_css("direction", "rtl")
    link.click()
    expect(page.locator("h1 bdi")).to_have_css("direction", "rtl")
    expect(page.locator("h1")).to_have_css("direction", "ltr")


@every_viewport
@every_color_scheme
def test_messages_are_accessible_and_fit_the_screen(
    open_browser: Make, make_course: Make, viewport: dict[str, int], color_scheme: str
) -> None:
    course = make_course(title=UNBROKEN_TITLE)
    page = sign_in(open_browser(viewport=viewport, color_scheme=color_scheme), "anna")
    page.goto(course.get_absolute_url())
    stale_page = page.context.new_page()
    stale_page.goto(course.get_absolute_url())
    for text, button, tab in [
        ("You are enrolled in", "Enroll", page),
        ("You were already enrolled in", "Enroll", stale_page),
        ("You have left", "Leave this course", page),
    ]:
        tab.get_by_role("button", name=button).click()
        expect(tab.get_by_role("status")).to_contain_text(text)
        assert find_faults(tab, viewport) == {}
    Course.objects.update(capacity=0)
    page.get_by_role("button", name="Enroll").click()
    expect(page.get_by_role("status")).to_contain_text("is not open for enrollment")
    assert find_faults(page, viewport) == {}


@every_viewport
@every_color_scheme
def test_rejected_account_forms_are_accessible(
    open_browser: Make, db: None, viewport: dict[str, int], color_scheme: str
) -> None:
    page = open_browser(viewport=viewport, color_scheme=color_scheme)
    page.goto("/accounts/sign-in/")
    page.get_by_label("Username").fill("nobody")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    username = page.get_by_label("Username")
    expect(username).to_be_focused()
    expect(username).to_have_accessible_description(re.compile("enter a correct username"))
    expect(page).to_have_title(re.compile("^Error: Sign in"))
    assert find_faults(page, viewport) == {}

    page.goto("/accounts/sign-up/")
    valid_border = page.get_by_label("Username").evaluate("e => getComputedStyle(e).borderColor")
    sign_up(page, "not a name")
    expect(page.get_by_label("Username")).to_have_accessible_description(
        re.compile("Enter a valid username")
    )
    expect(page.get_by_label("Username")).not_to_have_css("border-color", valid_border)
    expect(page).to_have_title(re.compile("^Error: Sign up"))
    assert find_faults(page, viewport) == {}


@every_viewport
@pytest.mark.parametrize("path", ["/", "/accounts/sign-up/"])
def test_focus_rings_do_not_touch_labels(
    open_browser: Make, db: None, viewport: dict[str, int], path: str
) -> None:
    page = open_browser(viewport=viewport)
    page.goto(path)
    for label in page.locator("main label").all():
        control = page.locator(f"#{label.get_attribute('for')}")
        control.focus()
        ring = control.evaluate(
            "e => (s => parseInt(s.outlineWidth) + parseInt(s.outlineOffset))(getComputedStyle(e))"
        )
        box = label.bounding_box()
        assert ring > 0
        assert box["y"] + box["height"] <= control.bounding_box()["y"] - ring


def find_faults(page: Page, viewport: dict[str, int], context: str | None = None) -> dict[str, Any]:
    """Return accessibility violations by rule, and the width of a page that is too wide."""
    faults: dict[str, Any] = {
        violation["id"]: [node["html"] for node in violation["nodes"]]
        for violation in Axe().run(page, context=context).response["violations"]
    }
    width = page.evaluate("document.documentElement.scrollWidth")
    return faults | ({"width": width} if width > viewport["width"] else {})


def test_admin_filters_and_corrects_drifted_courses(open_browser: Make, make_course: Make) -> None:
    make_course(title="Correct")
    drifted = make_course(title="Wrong")
    Course.objects.filter(pk=drifted.pk).update(total_enrollments=5)
    page = sign_in(open_browser(), "staff", is_staff=True, is_superuser=True)
    page.get_by_role("link", name="Administration").click()
    page.get_by_role("rowheader", name="Courses").get_by_role("link").click()
    expect(page.locator("tr", has_text="Wrong").locator(".field-drift")).to_have_text("+5")
    expect(page.locator("tr", has_text="Correct").locator(".field-drift")).to_have_text("0")
    page.get_by_role("link", name="Drifted now").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    page.get_by_label("Select all objects on this page for an action").check()
    page.locator("select[name=action]").select_option(
        label="Rebuild counts of the selected courses"
    )
    page.locator("button[name=index]").click()
    expect(page.locator(".messagelist")).to_contain_text("Corrected 1 course.")
    expect(page.locator("#result_list")).to_have_count(0)
    assert drift_by_title() == {}


@every_viewport
@every_color_scheme
def test_count_health_checks_counts_and_is_accessible(
    open_browser: Make,
    make_course: Make,
    make_students: Make,
    viewport: dict[str, int],
    color_scheme: str,
) -> None:
    enroll_many(course=make_course(title="Correct"), students=make_students(3))
    drifted = make_course(title="Wrong " * 20)
    page = open_browser(viewport=viewport, color_scheme=color_scheme)
    sign_in(page, "staff", is_staff=True, is_superuser=True)
    page.goto("/admin/")
    page.get_by_role("link", name="Count health").click()
    expect(page.get_by_role("heading", name="No check of all courses")).to_be_visible()
    assert find_faults(page, viewport, "#content") == {}
    page.get_by_role("button", name="Check now").click()
    expect(page.locator(".messagelist")).to_contain_text("2 courses checked")
    expect(page.get_by_role("heading", name="All counts were correct at")).to_be_visible()
    assert find_faults(page, viewport, "#content") == {}

    Course.objects.filter(pk=drifted.pk).update(total_enrollments=5)
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_role("heading", name="1 of 2 courses drifted")).to_be_visible()
    expect(page.get_by_role("row", name="Wrong")).to_contain_text("+5")
    chart = page.get_by_role("img", name="Drifted courses")
    assert chart.locator("rect.bar.drifted").bounding_box()["height"] > 50
    page.get_by_text("Show as a table").click()
    expect(page.locator("figure").get_by_role("row")).to_have_count(2)
    assert find_faults(page, viewport, "#content") == {}

    page.get_by_role("rowheader", name="Wrong").get_by_role("link").click()
    page.locator(".object-tools").get_by_role("link", name="Discrepancies").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)


@every_viewport
def test_long_titles_leave_the_counts_of_the_admin_in_view(
    open_browser: Make, make_course: Make, student: Any, viewport: dict[str, int]
) -> None:
    subject = Subject.objects.create(name="N" * 100, slug="n")
    course = make_course(title=UNBROKEN_TITLE, subject=subject, slug="a")
    make_course(title=ARABIC_TITLE, slug="b")
    enroll(student=student, course=course)
    page = open_browser(viewport=viewport)
    sign_in(page, "staff", is_staff=True, is_superuser=True)
    page.goto("/admin/courses/course/")
    for name in ("stored", "true", "drift"):
        for cell in page.locator(f"#result_list td.field-{name}").all():
            box = cell.bounding_box()
            assert box["x"] + box["width"] <= viewport["width"]
    for path in (
        *("courses/course/", f"courses/course/{course.pk}/change/"),
        *(f"courses/course/{course.pk}/history/", f"courses/course/{course.pk}/delete/"),
        f"enrollments/enrollment/?course__id__exact={course.pk}",
        f"enrollments/enrollment/{course.enrollments.get().pk}/change/",
    ):
        page.goto(f"/admin/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"], path


@every_viewport
@every_color_scheme
def test_admin_messages_are_accessible_and_fit_the_screen(
    open_browser: Make, make_course: Make, viewport: dict[str, int], color_scheme: str
) -> None:
    course = make_course(title=UNBROKEN_TITLE)
    page = open_browser(viewport=viewport, color_scheme=color_scheme)
    sign_in(page, "staff", is_staff=True, is_superuser=True)
    page.goto(f"/admin/courses/course/{course.pk}/change/")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".messagelist .success")).to_contain_text("was changed successfully")
    assert find_faults(page, viewport, ".messagelist") == {}
    page.locator("button[name=index]").click()
    expect(page.locator(".messagelist .warning")).to_have_count(1)
    assert find_faults(page, viewport, ".messagelist") == {}


def test_admin_autocomplete_works_with_the_content_security_policy(
    open_browser: Make, make_course: Make, art: Subject
) -> None:
    course = make_course(title="Drawing")
    page = sign_in(open_browser(), "staff", is_staff=True, is_superuser=True)
    page.goto(f"/admin/courses/course/{course.pk}/change/")
    page.locator(".field-subject .select2-selection").click()
    page.get_by_role("option", name="Art").click()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".messagelist")).to_contain_text("was changed successfully")
    course.refresh_from_db()
    assert course.subject == art
