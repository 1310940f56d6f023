"""A tiny KITTI RAW for tests: two rendered drives in KITTI's layout, with LiDAR sweeps made from the rendered depth."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import cv2
import numpy as np

from fadepth_core.common.pinhole import unproject
from fadepth_core.rendering.raster import SKY_DEPTH
from fadepth_core.rendering.textures import build_atlas
from fadepth_core.synthetic.dataset import draw_intrinsics, draw_street

SIZE = (96, 320)  # height and width of the pictures
TRAIN = "2011_09_26/2011_09_26_drive_0001_sync"
TEST = "2011_09_28/2011_09_28_drive_0002_sync"

#: LiDAR: x ahead, y left, z up; 0.27 m behind the camera and 0.08 m above it.
_ROTATION = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
_TRANSLATION = np.array([0, 0.08, -0.27])


def write_kitti(root: Path, frames: int = 5) -> None:
    """Write the drives `TRAIN` and `TEST`, each with `frames` frames and its own calibration.

    train.txt and test.txt beside them list the frames that have both neighbours.
    """
    root.mkdir()
    for seed, (drive, name) in enumerate(((TRAIN, "train.txt"), (TEST, "test.txt"))):
        _write_drive(root / drive, np.random.default_rng(seed), frames)
        (root / name).write_text("".join(f"{drive} {frame} l\n" for frame in range(1, frames - 1)))


def _write_drive(drive: Path, rng: np.random.Generator, frames: int) -> None:
    for folder in ("image_02/data", "velodyne_points/data", "oxts/data"):
        (drive / folder).mkdir(parents=True)
    scene, (first, second, _), interval, speed = draw_street(rng, build_atlas(0), moving=False, stride=1.0)
    intrinsics = draw_intrinsics(rng, SIZE, "driving")
    step, pose, shots = np.linalg.inv(first) @ second, first, []
    for number in range(frames):
        shots.append(scene.render_at(number * interval, intrinsics, pose, SIZE))
        pose = pose @ step
    exposure = 0.2 / np.median([light for light, _ in shots])
    start, times = datetime(2011, 9, 26, 13, 2, 25), []
    for number, (light, depth) in enumerate(shots):
        picture = np.clip(light * exposure, 0, 1) ** (1 / 2.2) * 255
        cv2.imwrite(str(drive / f"image_02/data/{number:010d}.png"), picture.astype(np.uint8)[..., ::-1])
        _sweep(depth, intrinsics).tofile(drive / f"velodyne_points/data/{number:010d}.bin")
        fields = np.zeros(30)
        fields[8] = speed  # metres per second, forward
        (drive / f"oxts/data/{number:010d}.txt").write_text(" ".join(map(str, fields)))
        times.append(f"{start + timedelta(seconds=number * interval):%Y-%m-%d %H:%M:%S.%f}000\n")
    (drive / "image_02/timestamps.txt").write_text("".join(times))
    _write_calibration(drive.parent, intrinsics)


def _sweep(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """LiDAR points float32 [N, 4], from every third pixel of every second row: x, y, z in the LiDAR's axes, reflectance."""
    v, u = np.mgrid[0 : SIZE[0] : 2, 0 : SIZE[1] : 3].reshape(2, -1)
    known = depth[v, u] < SKY_DEPTH
    v, u = v[known], u[known]
    points = (unproject(depth[v, u], intrinsics, (u, v)) - _TRANSLATION) @ _ROTATION
    return np.column_stack([points, np.full(len(u), 0.3)]).astype(np.float32)


def _write_calibration(day: Path, intrinsics: np.ndarray) -> None:
    projection = np.column_stack([intrinsics, np.zeros(3)])
    (day / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\nR_rect_00: {_numbers(np.eye(3))}\nP_rect_02: {_numbers(projection)}\n"
    )
    (day / "calib_velo_to_cam.txt").write_text(
        f"calib_time: 15-Mar-2012 11:37:16\nR: {_numbers(_ROTATION)}\nT: {_numbers(_TRANSLATION)}\n"
    )


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.9e}" for value in np.ravel(values))
