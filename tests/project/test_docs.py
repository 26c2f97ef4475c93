"""Check what the README and the pages in docs/ name, print and promise to run."""

import os
import pydoc
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands

from courses.models import Course
from enrollments.services import enroll
from enrollments.signals import enrollments_changed
from tests.support.docs import DOCS, PROJECT, README, code_blocks, python_blocks

PAGES = [README, PROJECT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
MAX_README_WORDS = 900
PACKAGES = "courses|enrollments|project|tests|benchmarks"
PATH = re.compile(rf"(?<![\w/])(?:{PACKAGES}|docs)/[\w./-]*(?:\.(?:py|sql|md)\b|/(?=`))")
MODULE = re.compile(rf"`(?!\w+\.csv`)((?:{PACKAGES})(?:\.\w+)+)(?:\(\))?`")
MAKE_TARGET = re.compile(r"(?:`|^ *)make ([a-z-]+)", re.MULTILINE)
MAKE_VARIABLE = re.compile(r"(?:`|^ *)make [a-z-]+ ([A-Z]+)=", re.MULTILINE)
COMMAND = re.compile(r"(?:manage\.py|^ *catalog) ([a-z]\w+)", re.MULTILINE)


def named_on(document: Path, pattern: re.Pattern[str]) -> set[str]:
    return set(pattern.findall(document.read_text()))


@pytest.mark.parametrize("document", PAGES, ids=lambda document: str(document.relative_to(PROJECT)))
def test_named_files_exist(document: Path) -> None:
    folders = [PROJECT, document.parent]  # a link is relative to its page
    names = named_on(document, PATH)
    assert not [name for name in names if not any((at / name).exists() for at in folders)]


@pytest.mark.parametrize("document", PAGES, ids=lambda document: str(document.relative_to(PROJECT)))
def test_named_modules_and_attributes_exist(document: Path) -> None:
    assert not {name for name in named_on(document, MODULE) if pydoc.locate(name) is None}


@pytest.mark.parametrize("document", PAGES, ids=lambda document: str(document.relative_to(PROJECT)))
def test_named_commands_and_make_targets_exist(document: Path) -> None:
    makefile = PROJECT / "Makefile"
    targets = named_on(makefile, re.compile(r"^([a-z-]+):", re.MULTILINE))
    variables = named_on(makefile, re.compile(r"^([A-Z]+) [:?]=", re.MULTILINE))
    assert named_on(document, MAKE_TARGET) <= targets
    assert named_on(document, MAKE_VARIABLE) <= variables
    assert named_on(document, COMMAND) <= get_commands().keys()


def test_readme_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert links
    assert not [link for link in links if not (PROJECT / link).exists()]


def test_readme_is_short() -> None:
    assert len(README.read_text().split()) <= MAX_README_WORDS


def test_configuration_page_lists_all_variables() -> None:
    files = [PROJECT / "project/settings.py", PROJECT / "gunicorn.conf.py"]
    read = re.compile(
        r"""(?:environ\.get\(|environ\[|_split\(|_switch\(|_number\()["']([A-Z_]+)["']"""
    )
    variables = {name for file in files for name in read.findall(file.read_text())}
    assert {"DATABASE_URL", "SECRET_KEY", "WEB_CONCURRENCY"} <= variables
    listed = set(re.findall(r"`([A-Z_]+)`", (DOCS / "configuration.md").read_text()))
    assert variables <= listed


@pytest.fixture
def sample_names(
    make_course: Callable[..., Course], make_students: Callable[[int], list[Any]]
) -> dict[str, Any]:
    """Return the variables that samples use without defining them."""
    students = make_students(3)
    course, other_course = make_course(), make_course()
    return {
        "student": students[0],
        "other_student": students[1],
        "students": students,
        "course": course,
        "other_course": other_course,
    }


@pytest.mark.parametrize("name", ["services.md", "data-model.md", "verify-and-repair.md"])
def test_python_samples_run_and_leave_no_drift(name: str, sample_names: dict[str, Any]) -> None:
    blocks = python_blocks(DOCS / name)
    receivers = enrollments_changed.receivers[:]  # a sample connects another one
    try:
        for block in blocks:
            exec(block, dict(sample_names))
    finally:
        enrollments_changed.receivers = receivers
    assert blocks
    assert not Course.objects.drifted().exists()


def test_readme_sample_runs(sample_names: dict[str, Any]) -> None:
    enroll(student=sample_names["other_student"], course=sample_names["course"])
    (sample,) = python_blocks(README)
    assert len(sample.splitlines()) <= 15
    exec(sample, sample_names)
    assert not Course.objects.drifted().exists()


@pytest.mark.sqlite
def test_readme_demonstration_prints_what_it_shows(tmp_path: Path) -> None:
    (session,) = code_blocks(README, "console")
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = kept | {"DATABASE_URL": f"sqlite:///{tmp_path}/demo.sqlite3"}

    def run(script: str) -> str:
        result = subprocess.run(
            ["bash", "-c", script],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )
        return result.stdout

    # What `make run` does before it serves.
    run(
        "export DEBUG=1; .venv/bin/python manage.py migrate --verbosity 0 "
        "&& .venv/bin/python manage.py load_demo"
    )
    commands = "\n".join(re.findall(r"^\$ (.*)", session, re.MULTILINE))
    output = re.sub(r"^\$ .*\n", "", session, flags=re.MULTILINE)
    assert run(commands) == output
