"""Read code blocks, links and headings from the documentation."""

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
DOCS = PROJECT / "docs"
README = PROJECT / "README.md"


def python_blocks(page: Path) -> list[str]:
    return code_blocks(page, "python")


def code_blocks(page: Path, language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)
