"""A secret key for those who gave none: random, made once, kept beside the project."""

import contextlib
import os
import tempfile
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key


def local_secret_key(path: Path) -> str:
    """Return the key stored at `path`, making it first if it isn't there.

    Raises ImproperlyConfigured where the file can be neither read nor made:
    set SECRET_KEY in the environment then. Several machines need that as well,
    for each would make a key of its own.
    """
    try:
        if not path.exists():
            _create(path)
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(
            f"SECRET_KEY is not set, and {path} can't be used instead ({error}): "
            "set SECRET_KEY in the environment."
        ) from error


def _create(path: Path) -> None:
    # Workers start together: a link appears whole, and only one of them makes it.
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(get_random_secret_key())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
