"""Folders of images with ground-truth depth, from any camera: the test set of the `folder` protocol.

    index.json           [{"id": "hall_1", "rgb": "rgb/hall_1.png", "depth": "depth/hall_1.png",
                           "fx": 525.0, "fy": 525.0, "cx": 319.5, "cy": 239.5, "group": "indoor"}, ...]
    rgb/, depth/         the images; depth as 16-bit PNG in metres * 256, 0 where unknown

Paths are relative to the folder, intrinsics are in pixels. "group" is optional, and other keys are ignored. A folder
whose subfolders have this format is a test set too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from fadepth_core.common.camera import INTRINSICS, PinholeCamera
from fadepth_core.common.documents import as_object, read_json, shown
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path, write_atomically
from fadepth_core.common.folders import visible
from fadepth_core.common.sample import LabelledImage
from fadepth_core.data.images import read_depth, read_rgb

INDEX = "index.json"
#: Position of each intrinsic in K.
_CAMERA = {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}


@dataclass(frozen=True)
class Entry:
    """An image listed in an index. `depth` and `camera` are None if the index does not state them."""

    name: str
    rgb: Path
    depth: Path | None
    camera: PinholeCamera | None
    group: str


class FolderTest(Dataset[LabelledImage]):
    """The images listed in a folder's `index.json`, in its order.

    Args:
        root: the folder.
        groups: use only the images of these groups; None: all.

    Attributes:
        groups: the group of each image; "" if the index states none.

    Raises:
        DataError: no index, an invalid index, or no image of a requested group. For an invalid image or depth file, the
            error is raised when the item is read.
    """

    def __init__(self, root: str | os.PathLike, groups: Collection[str] | None = None):
        root = user_path(root)
        self._entries = _read_indexes(root)
        if groups is not None:
            known = {entry.group for entry in self._entries}
            if missing := sorted(set(groups) - known):
                raise DataError(
                    f"{root}: no pictures of group {', '.join(missing)}; groups: {', '.join(sorted(known))}"
                )
            self._entries = [entry for entry in self._entries if entry.group in groups]
        self.groups = [entry.group for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> LabelledImage:
        entry = self._entries[index]
        assert entry.depth is not None  # `read_index` needs depth
        assert entry.camera is not None
        image, depth = read_rgb(entry.rgb), read_depth(entry.depth)
        if image.shape[:2] != depth.shape:
            raise DataError(
                f"{entry.depth}: {depth.shape[1]}x{depth.shape[0]} pixels, "
                f"its picture has {image.shape[1]}x{image.shape[0]}"
            )
        return LabelledImage(image, depth, entry.camera.with_size(depth.shape).matrix, entry.name)


def _read_indexes(root: Path) -> list[Entry]:
    """The entries of the folder's index, or of the indexes of its subfolders."""
    if (root / INDEX).is_file() or not root.is_dir():
        return read_index(root)
    below = [folder for folder in visible(root) if (folder / INDEX).is_file()]
    if not below:
        return read_index(root)
    return [replace(entry, name=f"{folder.name}/{entry.name}") for folder in below for entry in read_index(folder)]


def read_index(root: Path, needs_depth: bool = True) -> list[Entry]:
    """The images listed in the folder's index, in its order.

    Args:
        root: the folder.
        needs_depth: refuse an image without depth.

    Raises:
        DataError: no index, or an invalid one.
    """
    path = root / INDEX
    return [_entry(path, number, value, needs_depth) for number, value in enumerate(read_values(path))]


def read_values(path: Path) -> list:
    """The entries of an index as JSON values.

    Raises:
        DataError: no index, not JSON, or not a list with at least one entry.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; the folder needs an index of its pictures")
    values = read_json(path)
    if not isinstance(values, list) or not values:
        raise DataError(f"{path}: expected a list with at least one picture")
    return values


def write_index(root: Path, values: Sequence[dict]) -> None:
    """Write a folder's index atomically: the old index stays until the new one is complete on disk.

    Args:
        root: the folder.
        values: the entries as JSON values.
    """
    text = json.dumps(list(values), indent=0)
    write_atomically(root / INDEX, lambda part: Path(part).write_text(text, encoding="utf-8"))


def camera_values(matrix: np.ndarray | Tensor) -> dict[str, float]:
    """K [3, 3] as the keys fx, fy, cx, cy of an index entry."""
    return {key: float(matrix[place]) for key, place in _CAMERA.items()}


def _entry(path: Path, number: int, value: object, needs_depth: bool) -> Entry:
    where = f"{path}: picture {number}"
    value = as_object(value, where)
    try:
        has_depth = needs_depth or "depth" in value
        # Depth cannot be used without intrinsics, so an entry with depth must have them.
        has_camera = has_depth or any(key in value for key in INTRINSICS)
        camera = PinholeCamera.from_values(value, where) if has_camera else None
        depth = _file(path, where, value, "depth") if has_depth else None
        name = value["id"]
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise DataError(f"{where}: id must be text or a whole number, got {shown(name)}")
        return Entry(str(name), _file(path, where, value, "rgb"), depth, camera, str(value.get("group", "")))
    except KeyError as error:
        raise DataError(f"{where} has no {error}") from error


def _file(index: Path, where: str, value: dict, key: str) -> Path:
    """The path that an entry states."""
    name = value[key]
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{where}: {key} must be the path of a file, got {shown(name)}")
    return index.parent / user_path(name)
