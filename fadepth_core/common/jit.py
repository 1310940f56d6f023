"""Compiles functions with numba, and finds a folder for the compiled code."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from typing import Any

try:
    import numba
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError("rendered scenes and multi-view stereo need numba: pip install 'fadepth_ros[train]'") from error

_OPTIONS: dict[str, Any] = {"fastmath": True, "nogil": True, "error_model": "numpy"}


def jit(function: Callable) -> Callable:
    """Compile a function with numba at its first call. Compiled code is kept beside this file or in the user's cache.

    If neither can be written (a read-only installation in an account without a home), it is kept in a temporary folder of
    this user; without one, it is compiled again in each process.
    """
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba: "no locator available"
        folder = _temporary_folder()
    if folder is not None:
        os.environ["NUMBA_CACHE_DIR"] = folder  # for the processes that this one starts
        setattr(numba.config, "CACHE_DIR", folder)  # noqa: B010 (numba sets its attributes in a loop, which mypy does not see)
        try:
            return numba.njit(cache=True, **_OPTIONS)(function)
        except RuntimeError:  # the folder cannot be written
            pass
    return numba.njit(**_OPTIONS)(function)


def _temporary_folder() -> str | None:
    """A folder for compiled code that no other user can write; None if there is none. numba runs what it finds there."""
    folder = os.path.join(tempfile.gettempdir(), f"fadepth-numba-{os.getuid()}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError:
        return None
    found = os.lstat(folder)
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if private else None
