"""Frames of an image file, a folder of images or a video, for prediction and INT8 calibration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.folders import files_in
from fadepth_core.common.sample import evenly_spread
from fadepth_core.common.video import VideoFile
from fadepth_core.data.images import read_rgb
from fadepth_core.data.video import CAMERA, PICTURES, VIDEOS, own_cameras


class Frames:
    """Iterable of the names and images (RGB uint8 [H, W, 3], at their own size) of a source, in order.

    Every iteration reads the source again, one frame at a time.

    Args:
        source: an image, a folder of images (in the order of the numbers in their names), or a video.

    Attributes:
        path: the source.
        is_video: whether it is a video.
        fps: frames per second stated by a video file, or None.
        damage: after an iteration to the end of a video: why frames are missing, or None.

    Raises:
        DataError: no such source, no frame in it, or two images whose names differ only in the suffix. For an
            unreadable image, the error is raised when the iteration reaches it.
    """

    def __init__(self, source: str | os.PathLike):
        self.path = user_path(source)
        self.is_video = self.path.is_file() and self.path.suffix.lower() in VIDEOS
        self.fps: float | None = None
        self.damage: str | None = None
        if self.is_video:
            self._video = VideoFile(self.path)
            self.fps = self._video.fps
            return
        if not self.path.exists():
            raise DataError(f"{self.path}: no such file or folder")
        if self.path.is_file() and self.path.suffix.lower() not in PICTURES:
            raise DataError(f"{self.path}: neither a picture nor a video ({', '.join(sorted(PICTURES | VIDEOS))})")
        self._files = [self.path] if self.path.is_file() else files_in(self.path, PICTURES)
        if not self._files:
            raise DataError(f"{self.path}: no picture ({', '.join(sorted(PICTURES))}) in it")
        first: dict[str, Path] = {}
        for file in self._files:
            if (twin := first.setdefault(file.stem, file)) is not file:
                raise DataError(f"{self.path}: {twin.name} and {file.name} differ only in their suffix")

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        if not self.is_video:
            for file in self._files:
                yield file.stem, read_rgb(file)
            return
        number = 0
        for image in self._video:
            yield f"{number:06d}", image
            number += 1
        self.damage = self._video.damage(number)

    def count(self) -> int:
        """Number of frames. Reads a video to its end, because the frame count in its header is often wrong."""
        return self._video.count() if self.is_video else len(self._files)

    def evenly(self, count: int) -> list[np.ndarray]:
        """Up to `count` images, spread evenly from the first to the last."""
        available = self.count()
        picks = set(evenly_spread(available, count))
        if not self.is_video:
            return [read_rgb(self._files[number]) for number in sorted(picks)]
        return [image for number, (_, image) in enumerate(self) if number in picks]

    def camera(self) -> Path | None:
        """The JSON file with the intrinsics beside the source (format: `data.video`); None if there is none."""
        places = [*own_cameras(self.path), self.path.parent / CAMERA]
        return next((place for place in places if place.is_file()), None)
