"""A folder of single pictures, with or without their depth: to learn from measured or rendered depth, or from a teacher.

    index.json           [{"id": "hall_1", "rgb": "rgb/hall_1.png", "depth": "depth/hall_1.png",
                           "fx": 525.0, "fy": 525.0, "cx": 319.5, "cy": 239.5}, ...]
    rgb/, depth/         the pictures; depth as 16-bit PNG in metres * 256, 0 where unknown

That is the form of `data.folder`; here "depth" may be left out, and so may all four intrinsics where there is no depth. In a
folder without an index all pictures count, of which neither depth nor camera is known, and all folders below it, each with its
index where it has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from fadepth_core.common.errors import DataError
from fadepth_core.common.framing import Framing
from fadepth_core.common.sample import Sample
from fadepth_core.data.folder import INDEX, camera_values, read_index, read_values, write_index
from fadepth_core.data.images import frames_and_intrinsics, read_depth, read_rgb, write_depth

PICTURES = {".png", ".jpg", ".jpeg"}
#: Horizontal field of view that is assumed where no camera is known, degrees. Nothing is measured by it: a teacher's answer
#: is for one focal length, and only the ratio of focal lengths before and after augmentation counts.
_ASSUMED_VIEW = 60.0
#: From this share of known pixels on, depth counts as dense.
_DENSE = 0.4


@dataclass(frozen=True)
class Picture:
    """A picture on disk; `depth` is its file, `intrinsics` K [3, 3], None where unknown."""

    name: str
    rgb: Path
    depth: Path | None = None
    intrinsics: np.ndarray | None = None

    def camera(self, image: np.ndarray) -> np.ndarray:
        """K [3, 3] of the picture, which has been read as `image`; an assumed one where none is known."""
        if self.intrinsics is not None:
            return self.intrinsics
        height, width = image.shape[:2]
        focal = width / 2 / np.tan(np.deg2rad(_ASSUMED_VIEW / 2))
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


class PictureDataset(Dataset[Sample]):
    """Samples of one frame each.

    Args:
        root: the folder.
        size: height and width of the frames, pixels; pictures of another shape are cropped to it in the middle.
        every: take every N-th picture only.
        sharp: whether the shape of depth, its edges above all, can be learnt from it; false for what a teacher predicted.

    Raises:
        DataError: no picture, or an index that cannot be used. A picture's own faults are raised when it is read.
    """

    def __init__(self, root: Path, size: tuple[int, int] = (128, 416), every: int = 1, sharp: bool = True):
        if every < 1:
            raise DataError(f"every must be at least 1, got {every}")
        self._pictures, self._size, self._sharp = list_pictures(Path(root))[::every], tuple(size), sharp

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        picture = self._pictures[index]
        image = read_rgb(picture.rgb)
        frames, matrix = frames_and_intrinsics([image], picture.camera(image), self._size, crop_to_aspect=True)
        depth = None
        if picture.depth is not None:
            framing = Framing.plan(image.shape[:2], self._size, crop_to_aspect=True)
            depth = torch.from_numpy(read_depth_at(framing, picture.depth))
        return Sample(frames, matrix, torch.tensor(0.0), picture.name, depth=depth, sharp=torch.tensor(self._sharp))


def read_depth_at(framing: Framing, path: Path) -> np.ndarray:
    """A depth picture at the network's size, float32 metres [h, w]. Dense depth is looked up: the nearest of all values that
    fall into a pixel, which is right for the few of a LiDAR, would widen everything in front.

    Raises:
        DataError: no depth picture, or one of another size than its picture.
    """
    depth = read_depth(path)
    if depth.shape != framing.camera_size:
        height, width = framing.camera_size
        raise DataError(f"{path}: {depth.shape[1]}x{depth.shape[0]} pixels, its picture has {width}x{height}")
    top, left, height, width = framing.crop
    part = depth[top : top + height, left : left + width]
    if np.count_nonzero(part) < _DENSE * part.size:
        return framing.depth_to_network(depth)
    return cv2.resize(part, framing.network_size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def write_pictures(dataset: Dataset[Sample], out: Path, numbers: Iterable[int], quality: int = 95) -> int:
    """Write the middle frames of a data set, with their depth where it is known, as such a folder; returns their number.

    For what is slow to render or to decode: reading them again takes 3 ms each. Pictures are JPEG, so what was rendered gets
    what cameras do to pictures. Pictures that are there already stay and are not made again, so an interrupted run goes on.

    Args:
        out: the folder.
        numbers: of the samples.
        quality: of the JPEG, 1 to 100.
    """
    for folder in ("rgb", "depth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    index = out / INDEX
    known = {entry["id"]: entry for entry in read_values(index)} if index.is_file() else {}
    count = 0
    for count, number in enumerate(numbers, 1):  # noqa: B007 - how many there were
        name = f"{number:06d}"
        if name not in known:
            sample = dataset[number]
            image = (sample.middle.permute(1, 2, 0) * 255).round().byte().numpy()
            encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            (out / f"rgb/{name}.jpg").write_bytes(encoded.tobytes())
            known[name] = {"id": name, "rgb": f"rgb/{name}.jpg", **camera_values(sample.intrinsics)}
            if sample.depth is not None:
                if sample.depth.shape != sample.middle.shape[1:]:
                    raise DataError(f"{sample.name}: its depth has another size than its frames")
                write_depth(out / f"depth/{name}.png", sample.depth.numpy())
                known[name]["depth"] = f"depth/{name}.png"
            if len(known) % 100 == 0:
                write_index(out, list(known.values()))
    write_index(out, list(known.values()))
    return count


def list_pictures(root: Path) -> list[Picture]:
    """The pictures of a folder, in the order of its index; without one, those in it by their names, then those of the folders
    below.

    Raises:
        DataError: no picture, or an index that cannot be used.
    """
    # Names are counted from `root`, so that pictures of two folders are not confused.
    return [
        replace(picture, name=(folder.relative_to(root) / picture.name).as_posix())
        for folder in picture_folders(root)
        for picture in pictures_of(folder)
    ]


def picture_folders(root: Path) -> list[Path]:
    """The folders at and below `root` that have an index, or pictures and no index. What is below an index belongs to it.

    Raises:
        DataError: there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found = _picture_folders(root)
    if not found:
        raise DataError(f"{root}: neither {INDEX} nor a picture ({', '.join(sorted(PICTURES))}) in it")
    return found


def _picture_folders(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        return [folder]
    here = [folder] if any(_is_picture(path) for path in folder.iterdir()) else []
    return here + [found for path in sorted(folder.iterdir()) if path.is_dir() for found in _picture_folders(path)]


def pictures_of(folder: Path) -> list[Picture]:
    """The pictures of one of `picture_folders`, without those of the folders below.

    Raises:
        DataError: an index that cannot be used.
    """
    if (folder / INDEX).is_file():
        entries = read_index(folder, needs_depth=False)
        return [Picture(entry.name, entry.rgb, entry.depth, entry.intrinsics) for entry in entries]
    return [Picture(path.name, path) for path in sorted(folder.iterdir()) if _is_picture(path)]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.is_file()
