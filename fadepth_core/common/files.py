"""Atomic file writes, and the folder for cached files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike, write: Callable[[str], None]) -> None:
    """Call `write(temporary path)`, then move the result to `path`. A full disk or a crash leaves the old file."""
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
