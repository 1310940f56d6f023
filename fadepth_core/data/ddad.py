"""DDAD in the format in which Toyota distributes it (DGP): the front camera with poses, and LiDAR depth for evaluation.

root/ddad.json                    scenes for training (split "0") and for validation (split "1")
root/000000/scene_<hash>.json     time steps, each with the files and poses of its sensors
           calibration/<hash>.json  rgb/CAMERA_01/<time>.png  point_cloud/LIDAR/<time>.npz
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch.utils.data import Dataset

from fadepth_core.common.camera import PinholeCamera
from fadepth_core.common.documents import as_number, read_json
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.sample import LabelledImage, Sample
from fadepth_core.data.images import frames_and_intrinsics, read_rgb

CAMERA, LIDAR = "CAMERA_01", "LIDAR"
_DOWNLOAD = "https://github.com/TRI-ML/DDAD"
_SPLITS = {"train": "0", "val": "1"}
#: A smaller skew moves no pixel by more than half a pixel.
_MAX_SKEW = 0.5


@dataclass(frozen=True)
class _Frame:
    """One time step of a scene: files and sensor-to-world poses [4, 4] of camera and LiDAR, intrinsics, seconds."""

    picture: Path
    points: Path
    camera_pose: np.ndarray
    lidar_pose: np.ndarray
    camera: PinholeCamera
    time: float


class DdadDataset(Dataset[Sample]):
    """Three consecutive frames of the front camera with their poses. Whole images are resized to `size`.

    Args:
        root: folder with ddad.json.
        split: "train" (150 scenes) or "val" (50 scenes).
        size: height and width of the frames, pixels.

    Raises:
        DataError: files are missing or not of this format.
    """

    def __init__(self, root: Path, split: Literal["train", "val"] = "train", size: tuple[int, int] = (384, 640)):
        if split not in _SPLITS:
            raise DataError(f"split must be train or val, got '{split}'")
        self._size, self._scenes = size, _read_scenes(user_path(root), split)
        self._middles = [(scene, i) for scene, frames in enumerate(self._scenes) for i in range(1, len(frames) - 1)]
        if not self._middles:
            raise DataError(f"{root}: no scene of split '{split}' has three frames")

    def __len__(self) -> int:
        return len(self._middles)

    def __getitem__(self, index: int) -> Sample:
        scene, middle = self._middles[index]
        three = self._scenes[scene][middle - 1 : middle + 2]
        images = [read_rgb(frame.picture) for frame in three]
        matrix = three[1].camera.with_size(images[1].shape[:2]).matrix
        frames, intrinsics = frames_and_intrinsics(images, matrix, self._size, crop_to_aspect=False)
        # Relative to the middle camera, coordinates are small enough for float32.
        to_middle = np.linalg.inv(three[1].camera_pose)
        poses = np.stack([to_middle @ frame.camera_pose for frame in three])
        picture = three[1].picture
        return Sample(
            frames,
            intrinsics,
            torch.tensor((three[2].time - three[0].time) / 2, dtype=torch.float32),
            f"{picture.parents[2].name}/{picture.stem}",
            poses=torch.from_numpy(poses).float(),
        )


class DdadTest(Dataset[LabelledImage]):
    """All images of the validation scenes, with depth from the LiDAR sweep of the same time step.

    Args:
        root: folder with ddad.json.

    Raises:
        DataError: files are missing or not of this format.
    """

    def __init__(self, root: Path):
        self._frames = [frame for frames in _read_scenes(user_path(root), "val") for frame in frames]

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> LabelledImage:
        frame = self._frames[index]
        image = read_rgb(frame.picture)
        matrix = frame.camera.with_size(image.shape[:2]).matrix
        depth = lidar_depth(_read_points(frame.points), frame, image.shape[:2])
        picture = frame.picture
        return LabelledImage(image, depth, matrix, f"{picture.parents[2].name}/{picture.stem}")


def lidar_depth(points: np.ndarray, frame: _Frame, size: tuple[int, int]) -> np.ndarray:
    """Project LiDAR points [N, 3] into the frame's camera: float32 depth [H, W] in metres, 0 where unknown.

    Camera and LiDAR measure at different times while the vehicle moves, so each has its own pose in the world. If
    several points fall into one pixel, the nearest counts.
    """
    to_camera = np.linalg.inv(frame.camera_pose) @ frame.lidar_pose
    seen = points @ to_camera[:3, :3].T + to_camera[:3, 3]
    seen = seen[seen[:, 2] > 1e-3]
    pixels = seen @ frame.camera.matrix.T
    column, row = (np.round(pixels[:, axis] / pixels[:, 2]).astype(int) for axis in (0, 1))
    inside = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
    depth = np.full(size, np.inf, np.float32)
    np.minimum.at(depth, (row[inside], column[inside]), seen[inside, 2].astype(np.float32))
    return np.where(np.isinf(depth), 0, depth)


def _read_scenes(root: Path, split: str) -> list[list[_Frame]]:
    """The frames of each scene of a split."""
    path = root / "ddad.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; DDAD (train+val) is at {_DOWNLOAD}")
    index = read_json(path)
    try:
        names = index["scene_splits"][_SPLITS[split]]["filenames"]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a file name is no text")
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: no scenes of split '{split}': {error!r}") from None
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{root}: {len(missing)} of the {len(names)} scenes of split '{split}' are missing: {shown}")
    scenes = [_read_scene(root / name) for name in names]
    if not any(scenes):
        raise DataError(f"{path}: split '{split}' is empty")
    return scenes


def _read_scene(path: Path) -> list[_Frame]:
    """The frames of one scene in the order of their times."""
    scene = read_json(path)
    try:
        data = {datum["key"]: datum for datum in scene["data"]}
        calibrations: dict[str, PinholeCamera] = {}
        frames = []
        for sample in scene["samples"]:
            sensors = {data[key]["id"]["name"]: data[key] for key in sample["datum_keys"]}
            camera, lidar = sensors[CAMERA], sensors[LIDAR]
            key = sample["calibration_key"]
            if key not in calibrations:
                calibrations[key] = _read_intrinsics(path.parent / "calibration" / f"{key}.json")
            image, points = camera["datum"]["image"], lidar["datum"]["point_cloud"]
            frames.append(
                _Frame(
                    path.parent / image["filename"],
                    path.parent / points["filename"],
                    _pose(image["pose"]),
                    _pose(points["pose"]),
                    calibrations[key],
                    datetime.fromisoformat(camera["id"]["timestamp"].replace("Z", "+00:00")).timestamp(),
                )
            )
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a DDAD scene: {error!r}") from None
    return sorted(frames, key=lambda frame: frame.time)


def _read_intrinsics(path: Path) -> PinholeCamera:
    """The camera of a calibration file."""
    calibration = read_json(path)
    try:
        values = calibration["intrinsics"][calibration["names"].index(CAMERA)]
        if abs(as_number(values.get("skew", 0.0), "skew", path)) > _MAX_SKEW:
            raise DataError(f"{path}: intrinsics with skew are not supported")
        return PinholeCamera.from_values(values, path)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: no intrinsics of {CAMERA}: {error!r}") from None


def _pose(values: dict[str, Any]) -> np.ndarray:
    """Sensor-to-world pose [4, 4]. Fields that are zero may be missing in the file."""
    w, x, y, z = (as_number(values["rotation"].get(key, 0.0), key, "rotation") for key in ("qw", "qx", "qy", "qz"))
    norm = np.hypot(np.hypot(w, x), np.hypot(y, z))
    if not 0.5 < norm < 2:
        raise ValueError(f"the rotation quaternion has length {norm:g} instead of 1")
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = [as_number(values["translation"].get(key, 0.0), key, "translation") for key in "xyz"]
    return pose


def _read_points(path: Path) -> np.ndarray:
    """Points [N, 3] in the LiDAR's frame, metres."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with np.load(path) as archive:  # allow_pickle is off: files are untrusted
            return archive["data"][:, :3].astype(np.float64)
    except (ValueError, KeyError, IndexError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: not a point cloud: {error}") from None
