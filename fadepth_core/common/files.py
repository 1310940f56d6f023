"""Atomic file writes, and the folder for cached files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike, write: Callable[[str], object]) -> None:
    """Write a file completely or not at all: a full disk or a crash leaves the old file unchanged.

    Args:
        path: the file to write.
        write: called with the path of a temporary file in the same folder, which is then renamed to `path`.

    Raises:
        OSError: the file cannot be written. An error raised by `write` is passed on.
    """
    path = Path(path)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(part)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def user_cache() -> Path:
    """This user's cache folder, for files that can be generated again, e.g. compiled engines."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fadepth"
