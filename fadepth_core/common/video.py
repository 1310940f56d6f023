"""Read video files with OpenCV."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from fadepth_core.common.errors import DataError

log = logging.getLogger(__name__)

#: Higher frame rates are not rates: some files state the unit of their clock, e.g. 90000.
_MAX_FPS = 1000.0
#: A file counts as damaged if fewer than this share of the stated frames can be decoded. The stated number is estimated
#: from the duration in some formats, so a few frames less are normal.
_MIN_SHARE = 0.95


class VideoFile:
    """The frames of a video file, in order. Rotation that the file states is applied.

    Args:
        path: the file.

    Attributes:
        path: the file.
        fps: frames per second that the file states; None if it states none or an impossible one.
        stated: number of frames that the file states, 0 if unknown.
        size: (height, width) of the frames.

    Raises:
        DataError: no such file, or OpenCV cannot decode its first frame.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: not a video that OpenCV can read: the file is empty")
        reader = self._open()
        try:
            fps, stated = reader.get(cv2.CAP_PROP_FPS), reader.get(cv2.CAP_PROP_FRAME_COUNT)
            readable, image = reader.read()
        finally:
            reader.release()
        if not readable or image is None:
            raise DataError(f"{path}: not a video that OpenCV can read")
        self.fps = fps if math.isfinite(fps) and 0 < fps <= _MAX_FPS else None
        self.stated = int(stated) if math.isfinite(stated) and 0 < stated < 2**31 else 0
        self.size: tuple[int, int] = image.shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        """RGB uint8 [H, W, 3]."""
        reader = self._open()
        try:
            while reader.grab():
                readable, image = reader.retrieve()
                if not readable or image is None:
                    return
                # `cvtColor` copies, which is needed because the reader may reuse its buffer.
                yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        finally:
            reader.release()

    def count(self) -> int:
        """Number of frames that can be decoded. Reads the file to its end."""
        reader, number = self._open(), 0
        try:
            while reader.grab():
                number += 1
        finally:
            reader.release()
        return number

    def damage(self, decoded: int) -> str | None:
        """What is wrong if only `decoded` frames could be read; None if nothing is."""
        if decoded >= _MIN_SHARE * self.stated - 1:
            return None
        return (
            f"{self.path}: only {decoded} of the {self.stated} frames that the file states can be decoded; the file is "
            "damaged or incomplete"
        )

    def _open(self) -> cv2.VideoCapture:
        try:
            os.fspath(self.path).encode()
        except UnicodeEncodeError:
            raise DataError(f"{self.path}: OpenCV cannot open a video with this name; rename the file") from None
        return cv2.VideoCapture(str(self.path))
