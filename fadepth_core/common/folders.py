"""Search folders for files and subfolders of the user: one set of rules for all data sets.

Left out are
- hidden names (macOS's ._NAME, .ipynb_checkpoints, .git) and folders that systems create (__MACOSX, @eaDir, ...),
- what this program wrote as a result, e.g. coloured depth, which is listed in the hidden file `OUTPUT_LIST` beside it,
- folders that were already searched, reached again by a symbolic link.

Names need not be valid text; suffixes may be in upper case.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from fadepth_core.common.errors import DataError

#: Folders that operating systems and network drives create.
_SYSTEM_FOLDERS = {
    "__macosx",
    "__pycache__",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
    "#recycle",
}
#: Hidden file in an output folder: the names of the files and folders beside it that this program wrote, one per line.
OUTPUT_LIST = ".fadepth-output"


def check_folder(folder: Path) -> None:
    """Check that `folder` is a folder that can be searched.

    Raises:
        DataError: it is not; the message names it and gives the reason.
    """
    _names(folder)


def visible(folder: Path) -> list[Path]:
    """The files and folders in `folder` that a search looks at, in the order of the numbers in their names.

    Raises:
        DataError: the folder cannot be read.
    """
    names = _names(folder)
    ours = _outputs(folder) if OUTPUT_LIST in names else set()
    found = [
        name for name in names if not name.startswith(".") and name.lower() not in _SYSTEM_FOLDERS and name not in ours
    ]
    return [folder / name for name in sorted(found, key=natural_order)]


def files_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files in `folder` with one of the suffixes (lower case), in the order of the numbers in their names.

    Raises:
        DataError: the folder cannot be read, or a file is empty or a link to nothing. A file that cannot be read is not
            left out, because the numbers of the files after it would change.
    """
    found = []
    for path in visible(folder):
        if path.suffix.lower() not in suffixes or path.is_dir():
            continue
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        if size == 0 and path.is_file():
            raise DataError(f"{path}: the file is empty")
        found.append(path)
    return found


def folders_below(root: Path) -> Iterator[Path]:
    """`root` and all folders below it, each once, a folder before those in it.

    Raises:
        DataError: a folder cannot be read.
    """
    seen = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
        except OSError:  # removed meanwhile, or a circle of links
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder
        below = [path for path in visible(folder) if path.is_dir()]
        # Links last, so that a folder that can be reached in two ways has its own name.
        waiting[:0] = [path for path in reversed(below) if path.is_symlink()]
        waiting += [path for path in reversed(below) if not path.is_symlink()]


def files_below(root: Path) -> list[Path]:
    """The files in `root` and all folders below it, whatever their suffix; sorted by path.

    Raises:
        DataError: `root` or a folder below it cannot be read.
    """
    check_folder(root)
    return sorted(path for folder in folders_below(root) for path in visible(folder) if not path.is_dir())


def mark_output(folder: Path, names: Iterable[str]) -> None:
    """Note that this program wrote `names` in `folder`, so that they are not taken for the user's data.

    Raises:
        OSError: the list cannot be written.
    """
    listed = _outputs(folder)
    if missing := [name for name in names if name not in listed]:
        with open(folder / OUTPUT_LIST, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{name}\n" for name in missing)


def check_output(folder: Path, names: Iterable[str]) -> None:
    """Check, before anything is written, that files or folders `names` in `folder` are not the user's.

    Raises:
        DataError: one of them exists and is not listed by `mark_output`. Empty folders hold nothing that could be lost.
    """
    listed = _outputs(folder)
    for name in names:
        path = folder / name
        if name in listed or not os.path.lexists(path):
            continue
        if path.is_dir() and not path.is_symlink() and not visible(path):
            continue
        raise DataError(f"{path}: exists, and fadepth did not write it; move it, or write to another folder")


def natural_order(name: str) -> list[str | int]:
    """Sort key: 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: not a folder") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(f"{folder}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _outputs(folder: Path) -> set[str]:
    try:
        text = (folder / OUTPUT_LIST).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return set()
    return set(text.splitlines())
