"""Depth as pictures: 16-bit millimetres for programs, colours for people."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

#: Default depth of the first and the last colour (red, blue), metres.
COLOR_RANGE = (2.0, 80.0)


def depth_to_millimetres(depth: np.ndarray) -> np.ndarray:
    """16-bit encoding of REP-118: metres float32 [h, w] -> millimetres uint16 [h, w], 0 if unknown or beyond 65.535 m."""
    valid = (depth >= 0.0) & (depth <= 65.535)
    return np.where(valid, depth * 1000.0 + 0.5, 0.0).astype(np.uint16)


def depth_to_color(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Depth as colours: log scale from `near` (red) to `far` (blue), metres; black where depth is not finite.

    Shapes: [h, w] float32 -> [h, w, 3] uint8 RGB.
    """
    finite = np.isfinite(depth)
    level = np.log(far / np.clip(np.where(finite, depth, far), near, far)) * (255.0 / np.log(far / near))
    color = cv2.cvtColor(cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    color[~finite] = 0
    return color


def write_png(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Write [h, w] uint8 or uint16, or [h, w, 3] uint8 BGR.

    Raises:
        OSError: the file cannot be written. OpenCV's own `imwrite` reports only that it failed.
    """
    Path(path).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
