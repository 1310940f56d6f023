"""KITTI RAW (Geiger et al. 2013) as downloaded and unpacked, with the frame lists of Eigen and Zhou.

root/2011_09_26/calib_cam_to_cam.txt  calib_velo_to_cam.txt
root/2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000000.png (or .jpg)  image_02/timestamps.txt
                                           velodyne_points/data/0000000000.bin     oxts/data/0000000000.txt
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from fadepth_core.common.camera import PinholeCamera, check_rotations
from fadepth_core.common.documents import read_text
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.folders import visible
from fadepth_core.common.sample import LabelledImage, Sample
from fadepth_core.data.images import frames_and_intrinsics, read_depth, read_rgb

#: Camera number of each side in the lists.
_CAMERAS = {"l": "02", "r": "03"}
_DOWNLOAD = "https://www.cvlibs.net/datasets/kitti/raw_data.php"
#: Published frame list for each (split, ground truth).
_TEST_LISTS = {
    ("test", "velodyne"): "eigen_test_files",
    ("test", "improved"): "eigen_benchmark_test_files",
    ("val", "velodyne"): "eigen_zhou_val_files",
}
#: Columns of an oxts file: forward, leftward and upward velocity, metres per second.
_VELOCITY = slice(8, 11)


class Entry(NamedTuple):
    """One frame of a list.

    Attributes:
        drive: folder of the drive below the root, e.g. "2011_09_26/2011_09_26_drive_0001_sync".
        frame: number of the frame in the drive.
        side: "l" for the left camera, "r" for the right one.
    """

    drive: str
    frame: int
    side: str


#: Frames chosen by the user: rows of drive, frame and side, or a text file with one "drive frame side" per line. The
#: published lists have this format.
Entries = Sequence[Entry | Sequence] | str | Path


class KittiDataset(Dataset[Sample]):
    """Three consecutive frames of one colour camera, with the camera's speed where the drive has oxts data.

    Whole images are resized to `size`, as in the published protocols.

    Args:
        root: folder with one subfolder per day.
        split: Zhou's lists without static frames: 39 810 training or 4 424 validation samples.
        size: height and width of the frames, pixels.
        entries: replaces the published list; the frames before and after each entry must exist.

    Raises:
        DataError: `entries` is invalid, drives are missing, or calibration or a frame cannot be read.
    """

    def __init__(
        self,
        root: Path,
        split: Literal["train", "val"] = "train",
        size: tuple[int, int] = (128, 416),
        entries: Entries | None = None,
    ):
        if split not in ("train", "val"):
            raise DataError(f"split must be train or val, got '{split}'")
        self._root, self._size = user_path(root), size
        self._entries = read_list(f"eigen_zhou_{split}_files") if entries is None else parse_entries(entries)
        _check_drives(self._root, self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        drive, frame, side = self._entries[index]
        folder = self._root / drive
        camera = _CAMERAS[side]
        numbers = [frame - 1, frame, frame + 1]
        images = [read_rgb(_picture(folder, camera, n)) for n in numbers]
        matrix = _camera(folder.parent, camera, images[0].shape[:2]).matrix
        frames, intrinsics = frames_and_intrinsics(images, matrix, self._size, crop_to_aspect=False)
        times = _timestamps(folder / f"image_{camera}" / "timestamps.txt")
        if frame + 1 >= len(times):
            raise DataError(f"{folder}: timestamps for {len(times)} frames, but frame {frame + 1} is needed")
        interval = (times[frame + 1] - times[frame - 1]) / 2
        if not interval > 0:
            raise DataError(f"{folder}: the time of frame {frame + 1} is not after that of frame {frame - 1}")
        speed = _speed(folder, frame)
        return Sample(
            frames,
            intrinsics,
            torch.tensor(interval, dtype=torch.float32),
            f"{folder.name}/image_{camera}/{frame}",
            None if speed is None else torch.tensor(speed, dtype=torch.float32),
        )


class KittiTest(Dataset[LabelledImage]):
    """Images with measured depth: Eigen's 697 test frames or Zhou's 4 424 validation frames with LiDAR depth, or the
    652 test frames that have improved depth (Uhrig et al. 2017).

    KITTI lacks the LiDAR sweeps 177 to 180 of 2011_09_26_drive_0009; no published list contains these frames.

    Args:
        root: folder with one subfolder per day.
        ground_truth: "velodyne" projects the LiDAR sweep of the frame; "improved" reads the annotated depth.
        improved_root: folder of the annotated depth. It contains the drives, or `train` and `val` with the drives.
        entries: replaces the published list.
        split: "test" (Eigen) or "val" (Zhou, for choosing a checkpoint). "val" has LiDAR depth only.

    Raises:
        DataError: an option or `entries` is invalid, drives are missing, or a file cannot be read.
    """

    def __init__(
        self,
        root: Path,
        ground_truth: Literal["velodyne", "improved"] = "velodyne",
        improved_root: Path | None = None,
        entries: Entries | None = None,
        split: Literal["test", "val"] = "test",
    ):
        if ground_truth not in ("velodyne", "improved"):
            raise DataError(f"ground_truth must be velodyne or improved, got '{ground_truth}'")
        if split not in ("test", "val"):
            raise DataError(f"split must be test or val, got '{split}'")
        if ground_truth == "improved" and split == "val":
            raise DataError("split val has no improved ground truth; use ground_truth velodyne")
        self._root = user_path(root)
        self._improved: Path | None = None
        if ground_truth == "improved":
            if improved_root is None:
                raise DataError("improved ground truth needs improved_root, the folder of KITTI's annotated depth")
            self._improved = user_path(improved_root)
        name = _TEST_LISTS[split, ground_truth]
        self._entries = read_list(name) if entries is None else parse_entries(entries)
        _check_drives(self._root, self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> LabelledImage:
        drive, frame, side = self._entries[index]
        folder, camera = self._root / drive, _CAMERAS[side]
        image = read_rgb(_picture(folder, camera, frame))
        if self._improved is None:
            depth = velodyne_depth(folder, camera, frame, image.shape[:2])
        else:
            depth = read_depth(_annotation(self._improved, folder.name, camera, frame))
            if depth.shape != image.shape[:2]:
                raise DataError(f"{folder.name} frame {frame}: the annotated depth and the picture differ in size")
        return LabelledImage(
            image, depth, _camera(folder.parent, camera, image.shape[:2]).matrix, f"{folder.name}/{frame}"
        )


def _annotation(root: Path, drive: str, camera: str, frame: int) -> Path:
    """The annotated depth of a frame in KITTI's folder `root`."""
    inner = Path(drive, "proj_depth", "groundtruth", f"image_{camera}", f"{frame:010d}.png")
    for part in ("train", "val", "."):
        if (path := root / part / inner).is_file():
            return path
    raise DataError(f"{root}: neither train nor val holds {inner}")


def velodyne_depth(drive: Path, camera: str, frame: int, size: tuple[int, int]) -> np.ndarray:
    """Project the LiDAR points of a frame into the rectified camera: float32 depth [H, W] in metres, 0 where unknown.

    All published figures of the Eigen split use two conventions, which are followed here: depth is the distance ahead
        of
    the *scanner*, which is 0.27 m behind the camera, and 1 is subtracted from the rounded pixel coordinates. The
    improved ground truth uses neither of them. If several points fall into one pixel, the nearest counts.

    Args:
        drive: folder of the drive.
        camera: "02" (left) or "03" (right).
        frame: number of the frame.
        size: (height, width) of its image, pixels.

    Raises:
        DataError: the sweep or a calibration file is missing or invalid.
    """
    path = drive / "velodyne_points" / "data" / f"{frame:010d}.bin"
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    values = np.fromfile(path, np.float32)
    if values.size == 0 or values.size % 4:
        raise DataError(f"{path}: {values.size} numbers; expected four for each point")
    points = values.reshape(-1, 4)[:, :3].astype(np.float64)
    points = points[points[:, 0] >= 0]  # ahead of the scanner
    seen = np.column_stack([points, np.ones(len(points))]) @ _lidar_to_pixels(drive.parent, camera).T
    visible = seen[:, 2] > 0
    seen, ahead = seen[visible], points[visible, 0]
    column, row = (np.round(seen[:, axis] / seen[:, 2]).astype(int) - 1 for axis in (0, 1))
    height, width = size
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    depth = np.full(size, np.inf, np.float32)
    np.minimum.at(depth, (row[inside], column[inside]), ahead[inside].astype(np.float32))
    return np.where(np.isinf(depth), 0, depth)


def read_list(name: str) -> list[Entry]:
    """Read a published frame list, which is part of this package, by its file name without suffix."""
    text = gzip.decompress((files("fadepth_core.data") / "splits" / f"{name}.txt.gz").read_bytes()).decode()
    return [Entry(drive, int(frame), side) for drive, frame, side in map(str.split, text.splitlines())]


def parse_entries(source: Entries) -> list[Entry]:
    """Parse the `entries` of a configuration.

    Raises:
        DataError: no such file, no entries, or a row that is not drive, frame and side; the message names the row.
    """
    if isinstance(source, (str, Path)):
        path = user_path(source)
        if not path.is_file():
            raise DataError(f"entries: {path}: no such file")
        rows: list[tuple[str, Any]]
        lines = enumerate(read_text(path).splitlines(), 1)
        rows = [(f"{path}, line {number}", line.split()) for number, line in lines if line.strip()]
    elif isinstance(source, Sequence):
        rows = [(f"entries, row {number}", row) for number, row in enumerate(source)]
    else:
        raise DataError(f"entries must be a list of [drive, frame, side] or the path of a text file, got {source!r}")
    if not rows:
        raise DataError("entries: the list is empty")
    return [_entry(row, where) for where, row in rows]


def _entry(row: object, where: str) -> Entry:
    """Check one row of `parse_entries`; `where` names it in error messages."""
    if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 3:
        raise DataError(f"{where}: expected drive, frame and side, got {row!r}")
    drive, frame, side = row
    if not isinstance(drive, str):
        raise DataError(
            f"{where}: the drive must be a folder such as 2011_09_26/2011_09_26_drive_0001_sync, got {drive!r}"
        )
    if isinstance(frame, bool) or not str(frame).isdecimal():
        raise DataError(f"{where}: the frame must be a whole number, got {frame!r}")
    if str(side) not in _CAMERAS:
        raise DataError(f"{where}: side '{side}'; sides are l and r")
    return Entry(drive, int(frame), side)


def _check_drives(root: Path, entries: Iterable[Entry]) -> None:
    """Raise DataError if a drive's folder is missing."""
    drives = sorted({entry.drive for entry in entries})
    missing = [drive for drive in drives if not (root / drive).is_dir()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{root}: {len(missing)} of the list's {len(drives)} drives are missing: {shown}. Each is the 'synced+rectified "
            f"data' of KITTI RAW, with the 'calibration' of its day: {_DOWNLOAD}"
        )


def _picture(drive: Path, camera: str, frame: int) -> Path:
    folder = drive / f"image_{camera}" / "data"
    return folder / f"{frame:010d}{_suffix(folder)}"


@lru_cache(maxsize=512)
def _suffix(folder: Path) -> str:
    """File suffix of a drive's images: PNG as downloaded, or JPEG if converted to save space."""
    if folder.is_dir():
        suffixes = {path.suffix for path in visible(folder) if path.suffix.lower() in (".png", ".jpg")}
        for suffix in sorted(suffixes, key=lambda suffix: suffix.lower() == ".jpg"):
            return suffix
    raise DataError(f"{folder}: no pictures, neither .png nor .jpg")


@lru_cache(maxsize=512)
def _timestamps(path: Path) -> np.ndarray:
    """Seconds since the drive's first frame."""
    try:
        # The file has nine decimals, but `datetime` reads six.
        times = [datetime.fromisoformat(line.strip()[:26]) for line in read_text(path).splitlines() if line.strip()]
        return np.array([(time - times[0]).total_seconds() for time in times])
    except (ValueError, TypeError) as error:  # TypeError: only some of the times have a time zone
        raise DataError(f"{path}: not times: {error}") from None


def _speed(drive: Path, frame: int) -> float | None:
    """Speed from the inertial unit, metres per second; None for a drive without oxts data."""
    folder = drive / "oxts" / "data"
    if not folder.is_dir():
        return None
    path = folder / f"{frame:010d}.txt"
    try:
        velocity = np.array(read_text(path).split()[_VELOCITY], float)
    except ValueError as error:
        raise DataError(str(error) if isinstance(error, DataError) else f"{path}: not numbers: {error}") from None
    if velocity.size != 3 or not np.isfinite(velocity).all():
        raise DataError(f"{path}: no velocity in it")
    return float(np.linalg.norm(velocity))


@lru_cache(maxsize=64)
def _calibration(path: Path) -> dict[str, str]:
    """Values by key of a calibration file with lines "key: values"."""
    lines = (line.partition(":") for line in read_text(path).splitlines())
    return {key.strip(): values for key, _, values in lines}


def _matrix(path: Path, key: str, shape: tuple[int, int]) -> np.ndarray:
    """The matrix `key` of a calibration file."""
    values = _calibration(path).get(key, "")
    try:
        matrix = np.array(values.split(), float).reshape(shape)
    except ValueError:
        raise DataError(f"{path}: no '{key}' of {shape[0] * shape[1]} numbers") from None
    if not np.isfinite(matrix).all():
        raise DataError(f"{path}: a value of '{key}' is not a finite number")
    return matrix


def _projection(day: Path, camera: str) -> np.ndarray:
    """Projection matrix P_rect [3, 4] of a camera."""
    return _matrix(day / "calib_cam_to_cam.txt", f"P_rect_{camera}", (3, 4))


def _camera(day: Path, camera: str, size: tuple[int, int]) -> PinholeCamera:
    """The rectified camera, checked for pictures of `size` (height, width)."""
    where = f"{day / 'calib_cam_to_cam.txt'}: P_rect_{camera}"
    return PinholeCamera.from_matrix(_projection(day, camera)[:, :3], where, size)


def _lidar_to_pixels(day: Path, camera: str) -> np.ndarray:
    """P_rect · R_rect_00 · T_velo→cam, [3, 4]: homogeneous LiDAR points to (u·z, v·z, z)."""
    to_camera, rectify = np.eye(4), np.eye(4)
    to_camera[:3, :3] = _matrix(day / "calib_velo_to_cam.txt", "R", (3, 3))
    to_camera[:3, 3:] = _matrix(day / "calib_velo_to_cam.txt", "T", (3, 1))
    rectify[:3, :3] = _matrix(day / "calib_cam_to_cam.txt", "R_rect_00", (3, 3))
    check_rotations(to_camera[None, :3, :3], f"{day / 'calib_velo_to_cam.txt'}: R")
    check_rotations(rectify[None, :3, :3], f"{day / 'calib_cam_to_cam.txt'}: R_rect_00")
    return _projection(day, camera) @ rectify @ to_camera
