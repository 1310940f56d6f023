"""Decoded videos on disk, bounded in size: those that were not used for the longest time are removed.

FADEPTH_CACHE_GIB=100      largest size of all decoded videos, in GiB; default 20
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_cache

log = logging.getLogger(__name__)

LIMIT = "FADEPTH_CACHE_GIB"
#: 20 GiB hold 36 hours of video at one frame per second and 128x416 pixels, or 90 minutes at 25 frames per second.
_DEFAULT_GIB = 20.0
#: NAME-DIGEST.npy are frames, NAME-DIGEST.flowN.npy belong to them. Other files are never removed.
_FILE = re.compile(r"(.+-[0-9a-f]{16})(\.flow\d+)?\.npy", re.DOTALL)


class _Decoded(NamedTuple):
    """The files of a decoded video, their size in bytes, and when it was last used."""

    files: list[Path]
    size: int
    used: float


class ClipCache:
    """The decoded videos in a folder.

    Args:
        folder: None for the user's cache.

    Attributes:
        folder: the folder; it need not exist.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder if folder is not None else user_cache() / "clips"
        self._limit = limit_bytes()
        self._in_use: set[str] = set()

    def path(self, name: str) -> Path:
        """The file of a decoded video, whether it exists or not. It counts as used from now on, see `trim`."""
        path = self.folder / f"{name}.npy"
        self._in_use.add(name)
        with contextlib.suppress(OSError):  # there is none, or the folder belongs to another user
            # The time of the last access, which most systems do not write at every read.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return path

    def decoded(self) -> dict[str, _Decoded]:
        """The decoded videos by name."""
        found: dict[str, _Decoded] = {}
        try:
            files = list(self.folder.iterdir())
        except OSError:  # there is none, or it belongs to another user: nothing can be removed there
            return found
        for file in files:
            match = _FILE.fullmatch(file.name)
            if match is None:
                continue
            try:
                stat = file.stat()
            except OSError:  # another process has removed it
                continue
            before = found.get(match[1], _Decoded([], 0, 0.0))
            found[match[1]] = _Decoded(
                [*before.files, file], before.size + stat.st_size, max(before.used, stat.st_atime)
            )
        return found

    def trim(self) -> None:
        """Remove decoded videos until the size is below the limit, the one used least recently first.

        Those whose `path` was asked for stay. If they alone exceed the limit, this is logged.
        """
        decoded = self.decoded()
        total = sum(clip.size for clip in decoded.values())
        for name, clip in sorted(decoded.items(), key=lambda item: item[1].used):
            if total <= self._limit:
                return
            if name not in self._in_use:
                _remove(clip.files)
                total -= clip.size
        if total > self._limit:
            log.info(
                "%s: %.1f GiB of decoded video are in use, more than %s=%g", self.folder, total / 2**30, LIMIT,
                self._limit / 2**30,
            )  # fmt: skip

    def clear(self) -> int:
        """Remove all decoded videos; returns their size in bytes."""
        decoded = self.decoded().values()
        for clip in decoded:
            _remove(clip.files)
        return sum(clip.size for clip in decoded)


def limit_bytes() -> float:
    """Largest size of all decoded videos.

    Raises:
        DataError: the environment variable is not a positive number.
    """
    text = os.environ.get(LIMIT, "").strip()
    try:
        gib = float(text) if text else _DEFAULT_GIB
    except ValueError:
        gib = math.nan
    if not gib > 0:
        raise DataError(f"{LIMIT}={text}: expected a positive number, the largest size of all decoded videos in GiB")
    return gib * 2**30


def _remove(files: list[Path]) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed: %s", file, error.strerror)
