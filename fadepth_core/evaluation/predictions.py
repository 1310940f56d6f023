"""Offline prediction: depth of images and videos as files.

    OUT/depth/NAME.png    16 bits, millimetres, 0 unknown or beyond 65.535 m (REP-118); or NAME.npy, float32 metres
    OUT/color/NAME.png    coloured depth; for a video OUT/color.mp4 instead

Depth is what others work with. If the coloured pictures cannot be written, a warning is logged and depth goes on.

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

from fadepth_core.common.camera import PinholeCamera
from fadepth_core.common.errors import DataError
from fadepth_core.common.folders import check_output, mark_output
from fadepth_core.data.folder import INDEX, read_index
from fadepth_core.data.frames import Frames
from fadepth_core.data.video import read_camera
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.pictures import COLOR_RANGE, depth_to_color, depth_to_millimetres, write_png

log = logging.getLogger(__name__)

FORMATS = ("png", "npy")
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
        matrix = None
        if camera is not None:
            matrix = read_camera(camera, size, frames.path)[0]
        elif intrinsics is not None:
            matrix = PinholeCamera.from_matrix(intrinsics, "intrinsics", size).matrix
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
        out: folder; files of an earlier prediction are replaced.
        format: one of `FORMATS`.
        fps: frames per second of the coloured video; None writes coloured images instead.

    Raises:
        ValueError: unknown format.
        DataError: the folder has depth that this program did not write, e.g. true depth.
        OSError: a file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format '{format}'; known: {', '.join(FORMATS)}")
    out = Path(out)
    depths = out / "depth"
    check_output(out, [depths.name])
    _check_no_truth(out, depths)
    depths.mkdir(parents=True, exist_ok=True)
    mark_output(out, [depths.name])
    colors = _ColorPictures(out / "color") if fps is None else _ColorVideo(out / "color.mp4", fps)
    try:
        for name, depth in predictions:
            if format == "npy":
                np.save(depths / f"{name}.npy", depth)
            else:
                write_png(depths / f"{name}.png", depth_to_millimetres(depth))
            colors.write(name, cv2.cvtColor(depth_to_color(depth, *COLOR_RANGE), cv2.COLOR_RGB2BGR))
    finally:
        colors.close()


def _check_no_truth(out: Path, depths: Path) -> None:
    """Raise DataError if `out` is a data set of this program, which has its true depth in the same folder."""
    try:
        entries = read_index(out, needs_depth=False)
    except DataError:  # no index, or that of another program
        return
    if any(entry.depth is not None and entry.depth.is_relative_to(depths) for entry in entries):
        raise DataError(f"{depths}: has the depth that {out / INDEX} lists; write to another folder")


class _Colors:
    """Writes coloured depth. The first failure is logged as a warning, and nothing more is written.

    Args:
        path: the folder or the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._failed = self._begun = False

    def write(self, name: str, picture: np.ndarray) -> None:
        """Write the picture [H, W, 3] BGR of a frame."""
        if self._failed:
            return
        try:
            if not self._begun:
                check_output(self.path.parent, [self.path.name])
                mark_output(self.path.parent, [self.path.name])
                self._begun = True
            self._write(name, picture)
        except (OSError, DataError, cv2.error) as error:
            self._failed = True
            where = "" if isinstance(error, DataError) else f"{self.path}: "
            log.warning("%s%s; depth is written without colours", where, error)

    def close(self) -> None:
        """End the output."""

    def _write(self, name: str, picture: np.ndarray) -> None:
        raise NotImplementedError


class _ColorPictures(_Colors):
    def _write(self, name: str, picture: np.ndarray) -> None:
        self.path.mkdir(exist_ok=True)
        write_png(self.path / f"{name}.png", picture)


class _ColorVideo(_Colors):
    def __init__(self, path: Path, fps: float):
        super().__init__(path)
        self._fps = fps
        self._video: cv2.VideoWriter | None = None
        self._size: tuple[int, int] | None = None

    def _write(self, name: str, picture: np.ndarray) -> None:
        if self._video is None:
            self._size = (picture.shape[1], picture.shape[0])
            self._video = self._open(self._size)
        if picture.shape[1::-1] != self._size:  # OpenCV would leave it out without an error
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        self._video.write(picture)

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        try:
            os.fspath(self.path).encode()
        except UnicodeEncodeError:
            raise OSError("OpenCV cannot write a video with this name") from None
        # The format stores the frame rate as a ratio of 16-bit numbers: 66.667 is none, its whole number is.
        for fps in (self._fps, float(max(1, round(self._fps)))):
            video = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
            if video.isOpened():
                return video
        raise OSError("OpenCV cannot write a video here")

    def close(self) -> None:
        if self._video is not None:
            self._video.release()
            if not self.path.is_file() or self.path.stat().st_size == 0:
                log.warning("%s: could not be written", self.path)
