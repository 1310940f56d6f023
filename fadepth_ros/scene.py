"""One frame with its depth, as the viewer shows it: on a page, in Foxglove, or as pictures in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from sensor_msgs.msg import PointCloud2

from fadepth_ros.messages import read_cloud


@dataclass(frozen=True)
class Scene:
    """One frame with its depth.

    Attributes:
        image: [H, W, 3] uint8 RGB, from the camera.
        points: [h, w, 3] float32 metres, optical frame; NaN where there is no depth. [1, N, 3] for a cloud that is no image.
        colors: [h, w, 3] uint8 RGB of the points.
        frame_id: of the image.
        stamp: of the image, nanoseconds.
        figures: rates and times by name, see `status_line`.
        warning: one line of text; empty without a warning.
    """

    image: np.ndarray
    points: np.ndarray
    colors: np.ndarray
    frame_id: str
    stamp: int
    figures: Mapping[str, float | str]
    warning: str

    @property
    def depth(self) -> np.ndarray:
        """[h, w] float32 metres, NaN where there is no depth. Without depth at all if the cloud is no image."""
        return self.points[..., 2] if self.points.shape[0] > 1 else np.full((32, 104), np.nan, np.float32)

    @cached_property
    def finite(self) -> np.ndarray:
        """[h, w] bool, the points with depth."""
        return np.isfinite(self.points).all(-1)

    @property
    def status(self) -> str:
        """One line of text."""
        return status_line(self.figures)


class View(Protocol):
    """Shows scenes one after the other: `PageView`, `FoxgloveView` or `FileView`."""

    def show(self, scene: Scene) -> None: ...

    def close(self) -> None: ...


def status_line(figures: Mapping[str, float | str]) -> str:
    """Figures as one line of text.

    Args:
        figures: some of frames_per_second, latency_ms, dropped, engine; none before the first depth.
    """
    if not figures:
        return "waiting for depth"
    formats = {
        "frames_per_second": "{:5.1f} frames/s",
        "latency_ms": "latency {:5.1f} ms",
        "dropped": "dropped {}",
        "engine": "{}",
    }
    return "   ".join(text.format(figures[name]) for name, text in formats.items() if name in figures)


def cloud_arrays(cloud: PointCloud2) -> tuple[np.ndarray, np.ndarray]:
    """The depth node's cloud as arrays.

    Returns:
        Points [h, w, 3] float32, and their colours [h, w, 3] uint8 RGB: grey if the cloud has only brightness or nothing.
    """
    arrays = read_cloud(cloud)
    points = arrays["points"]
    if "colors" in arrays:
        return points, arrays["colors"]
    if "intensity" in arrays:
        brightness = np.nan_to_num(arrays["intensity"]).clip(0, 255).astype(np.uint8)
        return points, brightness[..., None].repeat(3, -1)
    return points, np.full(points.shape, 200, np.uint8)
