"""Pictures of the pages, by Chromium: python -m tests.system.screenshots FOLDER [--all]

Two pictures for the README (the catalog, the admin's drift column), or with --all the pages at
1280 and 390 pixels, light and dark. On demo data in an SQLite file of its own.
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

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.commands import PROJECT
from tests.support.programs import chromium_options
from tests.support.site import running_site

DRIFT = """
from courses.models import Course
Course.objects.filter(slug="advanced-french").update(total_enrollments=801)
Course.objects.filter(slug="advanced-economics").update(total_enrollments=390)
"""
COURSE = "/courses/advanced-economics/"
# Name, path, and who looks.
PAGES = [
    ("catalog", "/", None),
    ("nothing-found", "/?search=nothing", None),
    ("course", COURSE, None),
    ("course-enrolled", COURSE, "enrolled"),
    ("my-courses", "/my-courses/", "enrolled"),
    ("sign-in", "/accounts/sign-in/", None),
    ("sign-up", "/accounts/sign-up/", None),
    ("not-found", "/nowhere", None),
    ("admin-courses", "/admin/courses/course/?o=-3", "admin"),
    ("admin-count-health", "/admin/courses/course/health/", "admin"),
]
README = {"catalog": 640, "admin-courses": 640}  # heights


def main() -> int:
    parser = argparse.ArgumentParser(prog="pictures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with _site() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(**chromium_options())
        if options.all:
            for width in (1280, 390):
                for scheme in ("light", "dark"):
                    _pictures(browser, url, options.folder, width=width, scheme=scheme)
        else:
            _pictures(browser, url, options.folder, width=1280, scheme="light", only=README)
        browser.close()
    return 0


def _pictures(
    browser: Browser,
    url: str,
    folder: Path,
    *,
    width: int,
    scheme: str,
    only: dict[str, int] | None = None,
) -> None:
    pages: dict[str | None, Page] = {}
    for name, path, who in PAGES:
        if only and name not in only:
            continue
        if who not in pages:
            context = browser.new_context(
                base_url=url, viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            pages[who] = context.new_page()
            _sign_in(pages[who], who)
        page = pages[who]
        page.goto(path)
        if only:
            page.set_viewport_size({"width": width, "height": only[name]})
            page.screenshot(path=folder / f"{name}.png")
        else:
            page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)


def _sign_in(page: Page, who: str | None) -> None:
    if who == "admin":
        page.goto("/admin/login/")
        page.fill("#id_username", "admin")
        page.fill("#id_password", "admin")
        page.click("input[type=submit]")
    elif who:
        page.goto(f"/accounts/sign-up/?next={COURSE}")
        page.fill("#id_username", f"anna{time.time_ns()}")
        for field in ("#id_password1", "#id_password2"):
            page.fill(field, "corr3ct-horse")
        page.click("main button")
        page.click("main button")


@contextmanager
def _site() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DATABASE_URL": f"sqlite:///{folder}/db.sqlite3", "DEBUG": "1"}
        environment.pop("REDIS_URL", None)
        for command in (["migrate"], ["load_demo"], ["shell", "--no-imports", "-c", DRIFT]):
            subprocess.run(
                [sys.executable, "manage.py", *command],
                cwd=PROJECT,
                env=environment,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        production = environment | {"DEBUG": "0", "HTTPS": "0", "REDIS_URL": ""}
        with running_site(log=Path(folder, "gunicorn.log"), env=production) as url:
            yield url


if __name__ == "__main__":
    sys.exit(main())
