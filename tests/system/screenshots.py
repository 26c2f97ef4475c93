"""Take screenshots of the site with Chromium, on demo data in a temporary SQLite file.

By default these are the screenshots of the README: the catalog and the admin's course list.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.commands import PROJECT
from tests.support.programs import chromium_options
from tests.support.site import running_site

COURSE = "/courses/advanced-economics/"
README_HEIGHT = 640
# The drift that the README creates.
CREATE_DRIFT = """
from courses.models import Course
Course.objects.filter(slug="advanced-law").update(total_enrollments=7)
"""


class Screenshot(NamedTuple):
    name: str
    path: str
    user: str | None = None  # "student", "admin", or None for an anonymous visitor


README = [
    Screenshot("catalog", "/"),
    Screenshot("admin-courses", "/admin/courses/course/?o=4", "admin"),
]
ALL = [
    *README,
    Screenshot("no-courses-found", "/?search=nothing"),
    Screenshot("course", COURSE),
    Screenshot("course-enrolled", COURSE, "student"),
    Screenshot("my-courses", "/my-courses/", "student"),
    Screenshot("sign-in", "/accounts/sign-in/"),
    Screenshot("sign-up", "/accounts/sign-up/"),
    Screenshot("not-found", "/no-such-page"),
    Screenshot("admin-count-health", "/admin/courses/countrun/health/", "admin"),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=PROJECT / "docs" / "screenshots")
    parser.add_argument(
        "--all", action="store_true", help="all pages, 1280 and 390 pixels wide, light and dark"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with _demo_site() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(**chromium_options())
        if options.all:
            for width in (1280, 390):
                for scheme in ("light", "dark"):
                    suffix = f"-{width}-{scheme}"
                    browse = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
                    _take(ALL, browser, options.folder, suffix, base_url=url, **browse)
        else:
            viewport = {"width": 1280, "height": README_HEIGHT}
            _take(README, browser, options.folder, base_url=url, viewport=viewport)
        browser.close()
    return 0


def _take(
    screenshots: list[Screenshot],
    browser: Browser,
    folder: Path,
    suffix: str = "",
    **context_options: Any,
) -> None:
    """Save each screenshot as NAME + suffix. With a suffix it shows the full page."""
    pages: dict[str | None, Page] = {}
    for screenshot in screenshots:
        if screenshot.user not in pages:
            page = browser.new_context(**context_options).new_page()
            _sign_in(page, screenshot.user)
            pages[screenshot.user] = page
        page = pages[screenshot.user]
        page.goto(screenshot.path)
        page.screenshot(path=folder / f"{screenshot.name}{suffix}.png", full_page=bool(suffix))


def _sign_in(page: Page, user: str | None) -> None:
    if user == "admin":
        page.goto("/admin/login/")
        page.fill("#id_username", "admin")
        page.fill("#id_password", "admin")
        page.click("input[type=submit]")
    elif user == "student":
        page.goto(f"/accounts/sign-up/?next={COURSE}")
        page.fill("#id_username", f"anna{time.time_ns()}")
        for field in ("#id_password1", "#id_password2"):
            page.fill(field, "corr3ct-horse")
        page.get_by_role("button", name="Sign up").click()
        page.get_by_role("button", name="Enroll").click()


@contextmanager
def _demo_site() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DATABASE_URL": f"sqlite:///{folder}/db.sqlite3", "DEBUG": "1"}
        environment.pop("REDIS_URL", None)
        for command in (["migrate"], ["load_demo"], ["shell", "--no-imports", "-c", CREATE_DRIFT]):
            subprocess.run(
                [sys.executable, "manage.py", *command],
                cwd=PROJECT,
                env=environment,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        production = environment | {"DEBUG": "0", "HTTPS": "0", "SECRET_KEY": "for screenshots"}
        production["SIGN_UP"] = "open"
        with running_site(log=Path(folder, "gunicorn.log"), env=production) as url:
            yield url


if __name__ == "__main__":
    sys.exit(main())
