"""Atomic file writes, paths given by the user, and the folder for cached files."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def write_atomically(path: str | os.PathLike, write: Callable[[str], object]) -> None:
    """Write a file completely or not at all: a full disk, a crash or a power failure leaves the old file unchanged.

    The file keeps the permissions of the one that it replaces; a new file has those of any new file (umask).

    Args:
        path: the file to write.
        write: called with the path of a temporary file in the same folder, which is then renamed to `path`.

    Raises:
        OSError: the file cannot be written. An error raised by `write` is passed on.
    """
    path = Path(path)
    # Not tempfile.mkstemp: its files are readable by their owner only, and the umask cannot be read without changing it.
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = stat.S_IMODE((path if path.is_file() else part).stat().st_mode)
        write(str(part))
        os.chmod(part, mode)
        _sync(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        _sync(path.parent)


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Add `path` to an OSError that names no file: an error while data are written, e.g. of a full disk, does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _sync(path: Path) -> None:
    """Wait until a file's data or a folder's names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_path(text: str | os.PathLike) -> Path:
    """A path as the user typed it: ~ is replaced by the home folder, and the path has a name (., .. and / have none)."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~name of an unknown user: a file may have that name
        path = Path(text)
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def user_cache() -> Path:
    """This user's cache folder, for files that can be generated again, e.g. compiled engines."""
    configured = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if configured.is_absolute():  # the XDG specification: relative paths are ignored
        return configured / "fadepth"
    try:
        return Path.home() / ".cache" / "fadepth"
    except RuntimeError:  # a user without home folder, e.g. in a container
        return Path(tempfile.gettempdir()) / f"fadepth-{os.getuid()}"
