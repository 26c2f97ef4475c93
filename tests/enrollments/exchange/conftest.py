from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[..., Path]:
    """Write text, bytes, or a header and lines into a file, and return its path."""

    def write(*content: str | bytes) -> Path:
        path = tmp_path / "enrollments.csv"
        if isinstance(content[0], bytes):
            (data,) = content
        elif len(content) == 1:
            data = content[0].encode()
        else:
            data = "".join(f"{line}\r\n" for line in content).encode()
        path.write_bytes(data)
        return path

    return write
