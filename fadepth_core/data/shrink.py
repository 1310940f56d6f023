"""A smaller copy of folders of pictures, to train on another machine: fewer pictures, at the network's size, in fewer bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.framing import PIXELS, Framing, choose_network_size
from fadepth_core.data.folder import camera_values, write_index
from fadepth_core.data.images import encode_depth, read_rgb
from fadepth_core.data.pictures import Picture, picture_folders, pictures_of, read_depth_at

#: Depth is rounded to powers of this number: steps of 1.2 %, which halves the size of its PNG files.
_DEPTH_STEP = 1.012
#: Distance of neighbouring numbers in a sequence of which every first part is spread evenly over 0..1 (the golden ratio).
_GOLDEN = (5**0.5 - 1) / 2


def shrink_folders(
    root: Path, out: Path, limit: int, pixels: int = PIXELS, quality: int = 80, skip: Sequence[str] = ()
) -> dict[str, int]:
    """Copy the folders of pictures at and below `root`; returns how many pictures of each were taken, by its path below `root`.

    Every folder loses the same share of its pictures, and those that stay are spread evenly over it. The copies are folders
    that the data set "pictures" takes, at the same place below `out`. Files that are not pictures are not copied.

    Args:
        root: the folder of folders.
        out: where to write.
        limit: bytes that pictures and depth may have in all; indexes add 100 to 200 bytes a picture.
        pixels: about how many each copy has; it keeps its aspect ratio, with sides in multiples of 32.
        quality: of the JPEG files, 1 to 100.
        skip: folders to leave out, by their path below `root`.

    Raises:
        DataError: no pictures, a picture that cannot be read, something in `out`, or a limit below one picture of each folder.
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
        spread = sorted(range(len(pictures)), key=lambda number: number * _GOLDEN % 1)
        order += [(rank / len(pictures), folder, number, pictures[number]) for rank, number in enumerate(spread)]
    order.sort(key=lambda item: item[0])
    written, entries = 0, {folder: {} for folder in folders}
    for rank, folder, number, picture in order:
        place = out / folder.relative_to(root)
        files, entry = _smaller(picture, f"{number:06d}", pixels, quality)
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
    return {folder.relative_to(root).as_posix(): len(values) for folder, values in entries.items()}


def _smaller(picture: Picture, name: str, pixels: int, quality: int) -> tuple[dict[str, bytes], dict]:
    """The files of a picture's copy, by their path, and its entry in the index."""
    image = read_rgb(picture.rgb)
    size = choose_network_size(image.shape[:2], pixels)
    framing = Framing.plan(image.shape[:2], size, crop_to_aspect=True)
    bgr = framing.to_network(image)[..., ::-1]
    files = {f"rgb/{name}.jpg": cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()}
    entry = {"id": name, "rgb": f"rgb/{name}.jpg"}
    if picture.intrinsics is not None:
        entry |= camera_values(framing.output_intrinsics(picture.intrinsics))
    if picture.depth is not None:
        depth = read_depth_at(framing, picture.depth)
        known = depth > 0
        depth[known] = _DEPTH_STEP ** np.round(np.log(depth[known]) / np.log(_DEPTH_STEP))
        files[f"depth/{name}.png"] = encode_depth(depth)
        entry["depth"] = f"depth/{name}.png"
    return files, entry
