import re

from tests.support.commands import PROJECT

PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    """Return the version of each package in a file."""
    return {package.lower(): version for package, version in PIN.findall(read(name))}


def read(name: str) -> str:
    return (PROJECT / name).read_text()


def test_lock_has_the_version_of_every_requirement() -> None:
    """If this fails, run: make lock"""
    required = pins("requirements-base.txt") | pins("requirements.txt")
    assert len(required) > 10
    assert required.items() <= pins("requirements.lock").items()


def test_every_locked_package_has_hashes_and_no_index() -> None:
    lock = read("requirements.lock")
    entries = re.split(r"\n(?=\w)", lock[lock.index("\n") :])[1:]
    assert len(entries) == len(pins("requirements.lock"))
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in lock


def test_guide_and_image_install_only_locked_packages() -> None:
    for name in ("docs/deployment.md", "Containerfile"):
        installs = re.findall(r"pip install .*", read(name))
        assert installs
        for command in installs:
            assert "--require-hashes -r" in command
            assert "requirements.lock" in command
