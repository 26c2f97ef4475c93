"""Test files are independent of each other. Shared helpers are in tests/support."""

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def test_no_test_file_imports_another_test_file() -> None:
    imports = [
        f"{file.relative_to(TESTS)} imports {module}"
        for file in TESTS.rglob("*.py")
        for module in _imported_modules(file)
        if module.startswith("tests.") and module.rpartition(".")[2].startswith("test_")
    ]
    assert imports == []


def _imported_modules(file: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return modules + [
        name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    ]
