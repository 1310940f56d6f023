"""Make small copies of picture folders, for training on another machine: fewer, smaller and more compressed images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.folders import mark_output
from fadepth_core.common.framing import PIXELS, Framing, choose_network_size
from fadepth_core.data.folder import camera_values, write_index
from fadepth_core.data.images import encode_depth, read_depth_at, read_rgb
from fadepth_core.data.pictures import Picture, picture_folders, pictures_of

#: Depth is rounded to powers of this number (steps of 1.2 %), which halves the size of its PNG files.
_DEPTH_STEP = 1.012
#: The fractional parts of the first n multiples of this number are spread evenly over 0..1 for every n.
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def shrink_folders(
    root: Path, out: Path, limit: int, pixels: int = PIXELS, quality: int = 80, skip: Sequence[str] = ()
) -> dict[str, int]:
    """Copy the picture folders at and below `root`, with as many images as fit into `limit`.

    The same share of images is copied from every folder, spread evenly over it. Each copy is at the same path below
    `out` and can be read as data set "pictures". Other files are not copied.

    Args:
        root: the folder that is searched for picture folders.
        out: where to write. It must be empty or not exist.
        limit: largest total size of images and depth, bytes; indexes add 100 to 200 bytes per image.
        pixels: approximate number of pixels of each copy, which keeps its aspect ratio with sides in multiples of 32.
        quality: JPEG quality, 1 to 100.
        skip: folders to leave out, by their path below `root`.

    Returns:
        The number of images copied from each folder, by its path below `root`.

    Raises:
        DataError: no images, an unreadable image, `out` is not empty, or `limit` is too small for one image of each
            folder.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: not empty")
    left_out = [root / path for path in skip]
    folders = [f for f in picture_folders(root) if not any(f.is_relative_to(path) for path in left_out)]
    if not folders:
        raise DataError(f"{root}: no pictures in it")
    order = []
    for folder in folders:
        pictures = pictures_of(folder)
        spread = sorted(range(len(pictures)), key=lambda number: number * _GOLDEN_RATIO % 1)
        order += [(rank / len(pictures), folder, number, pictures[number]) for rank, number in enumerate(spread)]
    order.sort(key=lambda item: item[0])
    written = 0
    entries: dict[Path, dict[int, dict[str, Any]]] = {folder: {} for folder in folders}
    for rank, folder, number, picture in order:
        place = out / folder.relative_to(root)
        files, entry = _shrink(picture, f"{number:06d}", pixels, quality)
        size = sum(len(data) for data in files.values())
        if written + size > limit:
            if rank == 0:
                raise DataError(f"{limit} bytes do not hold one picture of each of {len(folders)} folders")
            break
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        written += size
        entries[folder][number] = entry
    for folder, values in entries.items():
        write_index(out / folder.relative_to(root), [values[number] for number in sorted(values)])
        mark_output(out / folder.relative_to(root), ("rgb", "depth"))
    return {folder.relative_to(root).as_posix(): len(values) for folder, values in entries.items()}


def _shrink(picture: Picture, name: str, pixels: int, quality: int) -> tuple[dict[str, bytes], dict]:
    """The copy of a picture: the contents of its files by their path in its folder, and its index entry."""
    image = read_rgb(picture.rgb)
    size = choose_network_size(image.shape[:2], pixels)
    framing = Framing.plan(image.shape[:2], size, crop_to_aspect=True)
    bgr = framing.to_network(image)[..., ::-1]
    files = {f"rgb/{name}.jpg": cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()}
    entry: dict[str, Any] = {"id": name, "rgb": f"rgb/{name}.jpg"}
    if picture.intrinsics is not None:
        entry |= camera_values(framing.output_intrinsics(picture.camera(image)))
    if picture.depth is not None:
        depth = read_depth_at(framing, picture.depth)
        known = depth > 0
        depth[known] = _DEPTH_STEP ** np.round(np.log(depth[known]) / np.log(_DEPTH_STEP))
        files[f"depth/{name}.png"] = encode_depth(depth)
        entry["depth"] = f"depth/{name}.png"
    return files, entry
