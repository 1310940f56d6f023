"""Folders of single images with optional depth, for training on measured or rendered depth or with a teacher.

    index.json           [{"id": "hall_1", "rgb": "rgb/hall_1.png", "depth": "depth/hall_1.png",
                           "fx": 525.0, "fy": 525.0, "cx": 319.5, "cy": 239.5}, ...]
    rgb/, depth/         the images; depth as 16-bit PNG in metres * 256, 0 where unknown

The format is that of `data.folder`, but "depth" is optional, and so are the four intrinsics of an image without depth.
A folder without an index yields all its images, without depth or intrinsics, and then those of its subfolders. A
subfolder may have its own index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from fadepth_core.common.camera import PinholeCamera
from fadepth_core.common.color import to_picture
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.folders import files_in, folders_below, mark_output
from fadepth_core.common.framing import Framing
from fadepth_core.common.sample import Sample, SampleDataset
from fadepth_core.data.folder import INDEX, camera_values, read_index, read_values, write_index
from fadepth_core.data.images import PICTURES, frames_and_intrinsics, read_depth_at, read_rgb, write_depth

#: Horizontal field of view assumed for images with unknown intrinsics, degrees. Its value has no effect on training:
#: these images are labelled by a teacher, whose depth is scaled to one focal length (`data.focal`), and augmentation
#: only uses the ratio of the focal lengths before and after the change.
_ASSUMED_VIEW = 60.0


@dataclass(frozen=True)
class Picture:
    """An image file, with its depth file and its intrinsics; None if unknown."""

    name: str
    rgb: Path
    depth: Path | None = None
    intrinsics: PinholeCamera | None = None

    def camera(self, image: np.ndarray) -> np.ndarray:
        """K [3, 3] of the picture; if it is unknown, an assumed one for the size of `image` [H, W, 3].

        Raises:
            DataError: no camera with pictures of that size has the intrinsics.
        """
        height, width = image.shape[:2]
        if self.intrinsics is not None:
            return self.intrinsics.with_size((height, width)).matrix
        focal = width / 2 / np.tan(np.deg2rad(_ASSUMED_VIEW / 2))
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


class PictureDataset(Dataset[Sample]):
    """Samples of one frame each.

    Args:
        root: the folder.
        size: height and width of the frames, pixels; images of another aspect ratio are cropped at the centre.
        every: use only every N-th image.
        sharp: whether the edges in depth are accurate enough to learn from; false for depth predicted by a teacher.

    Raises:
        DataError: no image, or an invalid index. For an invalid image or depth file, the error is raised when the item
            is read.
    """

    def __init__(self, root: Path, size: tuple[int, int] = (128, 416), every: int = 1, sharp: bool = True):
        if every < 1:
            raise DataError(f"every must be at least 1, got {every}")
        self._pictures, self._size, self._sharp = list_pictures(user_path(root))[::every], (size[0], size[1]), sharp

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


def write_pictures(dataset: SampleDataset, out: Path, numbers: Iterable[int], quality: int = 95) -> int:
    """Write the middle frames of a data set, with depth if known, as a folder of this format.

    For data that is slow to render or decode: reading a written image takes 3 ms. Images are JPEG, so that rendered
    images get the compression artefacts of a camera. An image that is already listed in the folder's index is not
    rendered again, so an interrupted run can be resumed.

    Args:
        dataset: its samples may have any number of frames.
        out: the folder.
        numbers: indices of the samples.
        quality: JPEG quality, 1 to 100.

    Returns:
        The number of samples, including those written before.

    Raises:
        DataError: the depth of a sample differs in size from its frames, or the folder's index is invalid.
    """
    for folder in ("rgb", "depth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    mark_output(out, ("rgb", "depth"))
    index = out / INDEX
    known = {}
    if index.is_file():
        read_index(out, needs_depth=False)  # checks it
        known = {entry["id"]: entry for entry in read_values(index)}
    count = 0
    for count, number in enumerate(numbers, 1):  # noqa: B007 - returned
        name = f"{number:06d}"
        if name not in known:
            sample = dataset[number]
            image = to_picture(sample.middle)
            encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            (out / f"rgb/{name}.jpg").write_bytes(encoded.tobytes())
            known[name] = {"id": name, "rgb": f"rgb/{name}.jpg", **camera_values(sample.intrinsics)}
            if sample.depth is not None:
                if sample.depth.shape != sample.middle.shape[1:]:
                    raise DataError(f"{sample.name}: its depth and frames differ in size")
                write_depth(out / f"depth/{name}.png", sample.depth.numpy())
                known[name]["depth"] = f"depth/{name}.png"
            if len(known) % 100 == 0:
                write_index(out, list(known.values()))
    write_index(out, list(known.values()))
    return count


def list_pictures(root: Path) -> list[Picture]:
    """The pictures of a folder in the order of its index. Without an index: its images by name, then its subfolders.

    Raises:
        DataError: no picture, or an invalid index.
    """
    # Names are relative to `root`, so that they are unique.
    return [
        replace(picture, name=(folder.relative_to(root) / picture.name).as_posix())
        for folder in picture_folders(root)
        for picture in pictures_of(folder)
    ]


def picture_folders(root: Path) -> list[Path]:
    """The folders at and below `root` that have an index or images. Below a folder with an index nothing is searched.

    Raises:
        DataError: there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found = _picture_folders(root)
    if not found:
        raise DataError(f"{root}: neither {INDEX} nor a picture ({', '.join(sorted(PICTURES))}) in it")
    return found


def _picture_folders(root: Path) -> list[Path]:
    found: list[Path] = []
    with_index: list[Path] = []
    for folder in folders_below(root):
        if any(above in with_index for above in folder.parents):
            continue
        if (folder / INDEX).is_file():
            with_index.append(folder)
            found.append(folder)
        elif files_in(folder, PICTURES):
            found.append(folder)
    return found


def pictures_of(folder: Path) -> list[Picture]:
    """The pictures of one folder found by `picture_folders`, without its subfolders.

    Raises:
        DataError: the index is invalid.
    """
    if (folder / INDEX).is_file():
        entries = read_index(folder, needs_depth=False)
        return [Picture(entry.name, entry.rgb, entry.depth, entry.camera) for entry in entries]
    return [Picture(path.name, path) for path in files_in(folder, PICTURES)]
