"""Messages and runs of the node that several tests share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

#: Seconds after which a test gives up waiting. Only failing tests wait so long, so it allows for a very busy machine.
PATIENCE = 300.0
SIZE = (120, 160)
FRAME_ID = "camera_optical_frame"


def image_message(
    pixels: np.ndarray, encoding: str, stamp_ns: int, frame_id: str = FRAME_ID, padding: int = 0
) -> Image:
    """An Image of `pixels` [H, W, ...] with `padding` bytes at the end of every row."""
    rows = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    message = Image(
        height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1], data=rows.tobytes()
    )
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return message


def info_message(size: tuple[int, int] = SIZE, frame_id: str = FRAME_ID, focal: float = 140.0) -> CameraInfo:
    h, w = size
    k = [focal, 0.0, w / 2 - 3.0, 0.0, 1.1 * focal, h / 2 + 2.0, 0.0, 0.0, 1.0]
    p = [*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0]
    info = CameraInfo(height=h, width=w, distortion_model="plumb_bob", d=[0.0] * 5, k=k, p=p)
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.header.frame_id = frame_id
    return info


def cloud_message(points: np.ndarray, fields: Sequence[str] = ("x", "y", "z"), *columns: np.ndarray) -> PointCloud2:
    """A cloud with the fields x, y, z of points [h, w, 3] and others, each [h, w]."""
    values = np.stack([*np.moveaxis(points, -1, 0), *columns], -1).astype(np.float32)
    message = PointCloud2(height=values.shape[0], width=values.shape[1], point_step=4 * values.shape[2])
    message.row_step = message.width * message.point_step
    message.fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, name in enumerate(fields)
    ]
    message.data = values.tobytes()
    return message


def noise(size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def run_program(module: str, *arguments: str) -> tuple[int, str]:
    """Run a ROS program of the package that is expected to end by itself. Returns its exit status and its stderr."""
    command = [sys.executable, "-m", f"fadepth_ros.{module}", *arguments]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=root)
    return result.returncode, result.stderr


def run_node(*arguments: str) -> tuple[int, str]:
    """Run a node that is expected to end by itself. Returns its exit status and its stderr."""
    return run_program("node", "--ros-args", *arguments)
