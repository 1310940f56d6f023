"""Writing files, and where files that can be made again are kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike, write: Callable[[str], None]) -> None:
    """Call `write(temporary path)` and move the result to `path`, so that a full disk or a crash leaves the old file."""
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
    """The folder for this user's files that can be made again, e.g. compiled engines."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fadepth"
