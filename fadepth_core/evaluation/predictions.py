"""Offline prediction: depth of images and videos as files.

    OUT/depth/NAME.png    16 bits, millimetres, 0 unknown or beyond 65.535 m (REP-118); or NAME.npy, float32 metres
    OUT/color/NAME.png    coloured depth; for a video OUT/color.mp4 instead

All have the size of the frames. NAME is that of the image file, or the number of the video frame, from 0.
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
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.pictures import depth_to_color, depth_to_millimetres, write_png

log = logging.getLogger(__name__)

FORMATS = ("png", "npy")
#: Depth of the first and last colour (red, blue), metres: the node's default.
COLOR_RANGE = (2.0, 80.0)
#: Frames per second of the coloured video if the source file states none.
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
        frames: images may differ in size; every change loads a new engine.
        intrinsics: K [3, 3] of the camera, pixels.
        camera: JSON file with the intrinsics. If neither is given, the file beside the frames is used. If that is
            missing too, the scale of depth is unknown, and a warning is logged.
        backend, precision: as for `DepthEngine.load`.

    Raises:
        DataError: invalid frames or camera file.
        EngineError, CheckpointError, FramingError: as `DepthEngine`.
    """
    if intrinsics is None:
        camera = camera or frames.camera()
        if camera is None:
            log.warning("%s: no intrinsics, so the scale of depth is unknown: --intrinsics or --camera", frames.path)
    for size, group in groupby(frames, key=lambda frame: frame[1].shape[:2]):
        engine = DepthEngine.load(checkpoint, None, size, backend, precision, full_resolution=True)
        matrix = intrinsics if camera is None else read_camera(camera, size, frames.path)[0]
        names: deque[str] = deque()
        for result in engine.stream(_requests(group, names, matrix)):
            yield names.popleft(), result.depth


def _requests(
    group: Iterable[tuple[str, np.ndarray]], names: deque[str], matrix: np.ndarray | None
) -> Iterator[FrameRequest]:
    """Requests for an engine, which reads ahead; appends the name of each frame read to `names`."""
    for name, image in group:
        names.append(name)
        yield FrameRequest(image, matrix, points=False)


def write_predictions(
    predictions: Iterable[tuple[str, np.ndarray]], out: str | os.PathLike, format: str = "png", fps: float | None = None
) -> None:
    """Write the files described above.

    Args:
        predictions: name and depth [H, W], metres.
        out: folder; existing files are replaced.
        format: one of `FORMATS`.
        fps: frames per second of the coloured video; None writes coloured images instead.

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
                write_png(depths / f"{name}.png", depth_to_millimetres(depth))
            color = cv2.cvtColor(depth_to_color(depth, *COLOR_RANGE), cv2.COLOR_RGB2BGR)
            if fps is None:
                write_png(colors / f"{name}.png", color)
                continue
            if video is None:
                video = cv2.VideoWriter(str(video_path), cv2.VideoWriter.fourcc(*"mp4v"), fps, color.shape[1::-1])
                if not video.isOpened():
                    raise OSError(f"{video_path}: OpenCV cannot write a video here")
            video.write(color)
    finally:
        if video is not None:
            video.release()
