"""Depth of pictures and videos as files, for whoever works offline.

    OUT/depth/NAME.png    16 bits, millimetres, 0 unknown or beyond 65.535 m (REP-118); or NAME.npy, float32 metres
    OUT/color/NAME.png    for people; of a video OUT/color.mp4 instead

All at the size of the frames. NAME is a picture's own, or the number of a video's frame, from 0.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from fadepth_core.data.frames import Frames
from fadepth_core.data.video import read_camera
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import DepthEngine
from fadepth_core.runtime.pictures import depth_to_color, depth_to_millimetres

log = logging.getLogger(__name__)

FORMATS = ("png", "npy")
#: Metres, red and blue in the coloured pictures: the node's default.
COLOR_RANGE = (2.0, 80.0)
#: Frames per second of the coloured video, where the source does not know its own.
FPS = 25.0


def predict(
    frames: Frames,
    checkpoint: Checkpoint,
    intrinsics: np.ndarray | None = None,
    camera: Path | None = None,
    backend: str = "auto",
    precision: str = "auto",
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and depth [H, W] in metres of every frame, at the frame's size.

    Args:
        frames: pictures may differ in size; each change makes a new engine.
        intrinsics: K [3, 3] of the camera, pixels.
        camera: JSON file with them. Where both are None, the one beside the frames; without that, depth is right up to
            one factor, and a warning says so.
        backend, precision: as for `DepthEngine.load`.

    Raises:
        DataError: frames or camera that cannot be used.
        EngineError, CheckpointError, FramingError: as `DepthEngine`.
    """
    if intrinsics is None:
        camera = camera or frames.camera()
        if camera is None:
            log.warning("%s: no intrinsics, so depth is right up to one factor: --intrinsics or --camera", frames.path)
    for size, group in groupby(frames, key=lambda frame: frame[1].shape[:2]):
        engine = DepthEngine.load(checkpoint, None, size, backend, precision, full_resolution=True)
        matrix = intrinsics if camera is None else read_camera(camera, size, frames.path)[0]
        names: deque[str] = deque()
        for result in engine.stream(_noting_names(group, names, matrix), points=False):
            yield names.popleft(), result.depth


def _noting_names(
    group: Iterable[tuple[str, np.ndarray]], names: deque[str], matrix: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Frames for an engine, which reads ahead; `names` gets the name of each that it has read."""
    for name, image in group:
        names.append(name)
        yield image, matrix


def write_predictions(
    predictions: Iterable[tuple[str, np.ndarray]], out: str | os.PathLike, format: str = "png", fps: float | None = None
) -> None:
    """Write the files named above.

    Args:
        predictions: name and depth [H, W], metres.
        out: folder; files of the same names are replaced.
        format: one of `FORMATS`.
        fps: frames per second of the coloured video; None writes coloured pictures.

    Raises:
        ValueError: unknown format.
        OSError: a file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format '{format}'; known: {', '.join(FORMATS)}")
    depths, colors, video_path = Path(out) / "depth", Path(out) / "color", Path(out) / "color.mp4"
    depths.mkdir(parents=True, exist_ok=True)
    if fps is None:
        colors.mkdir(exist_ok=True)
    video = None
    try:
        for name, depth in predictions:
            if format == "npy":
                np.save(depths / f"{name}.npy", depth)
            else:
                _write_png(depths / f"{name}.png", depth_to_millimetres(depth))
            color = cv2.cvtColor(depth_to_color(depth, *COLOR_RANGE), cv2.COLOR_RGB2BGR)
            if fps is None:
                _write_png(colors / f"{name}.png", color)
                continue
            if video is None:
                video = cv2.VideoWriter(str(video_path), cv2.VideoWriter_fourcc(*"mp4v"), fps, color.shape[1::-1])
                if not video.isOpened():
                    raise OSError(f"{video_path}: OpenCV cannot write a video here")
            video.write(color)
    finally:
        if video is not None:
            video.release()


def _write_png(path: Path, picture: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
