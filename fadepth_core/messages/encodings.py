"""The encodings of `sensor_msgs/Image`: how their pixels lie in memory and become RGB, in one table."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class Encoding:
    """How the pixels of one `sensor_msgs/Image.encoding` lie in memory and become RGB.

    Attributes:
        dtype: numpy type of one value.
        channels: values per pixel; 0 for planar formats, whose rows hold one byte per pixel.
        convert: [H, W, C] or [H, W] uint8 -> [H, W, 3] uint8 RGB.
        resizable: whether a frame may be resized before `to_rgb`, which is faster. False for mosaics and subsampled colour,
            where neighbouring values do not belong to neighbouring pixels.
        rows: rows of data per row of image.
        even: which sides must be even, (height, width).
        chroma_step: of planar formats, the step of the chroma planes relative to that of the first plane.
        bits: significant bits of a value.
    """

    dtype: str
    channels: int
    convert: Callable[[np.ndarray], np.ndarray]
    resizable: bool = True
    rows: float = 1.0
    even: tuple[bool, bool] = (False, False)
    chroma_step: float = 1.0
    bits: int = 8

    def to_rgb(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of `dtype` as [H, W, 3] uint8 RGB."""
        if self.bits > 8:
            pixels = cv2.convertScaleAbs(pixels, alpha=255.0 / (2**self.bits - 1))
        return self.convert(pixels)

    @functools.lru_cache(maxsize=256)  # noqa: B019 - the encodings live as long as the process
    def with_bits(self, bits: int) -> Encoding:
        """The same encoding with another number of significant bits."""
        return replace(self, bits=bits)


def _cv(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: cv2.cvtColor(pixels, code)


def _pixels(channels: int, convert: Callable[[np.ndarray], np.ndarray]) -> tuple[Encoding, Encoding]:
    """The encodings with 8 and 16 bits of pixels that are not subsampled."""
    return Encoding("u1", channels, convert), Encoding("u2", channels, convert, bits=16)


def _packed_422(code: int) -> Encoding:
    return Encoding("u1", 2, _cv(code), resizable=False, even=(False, True))


def _planar_420(code: int, chroma_step: float = 1.0) -> Encoding:
    return Encoding("u1", 0, _cv(code), resizable=False, rows=1.5, even=(True, True), chroma_step=chroma_step)


def _mosaic(code: int) -> tuple[Encoding, Encoding]:
    """The encodings with 8 and 16 bits of a Bayer pattern."""
    eight = Encoding("u1", 1, _cv(code), resizable=False, even=(True, True))
    return eight, replace(eight, dtype="u2", bits=16)


#: BT.601, video range, as in OpenCV's other conversions from YUV: [R, G, B] of [Y, U, V, 1].
_YUV_TO_RGB = np.array([[1.164, 0.0, 1.596], [1.164, -0.391, -0.813], [1.164, 2.018, 0.0]])
_YUV_TO_RGB = np.hstack([_YUV_TO_RGB, _YUV_TO_RGB @ [[-16.0], [-128.0], [-128.0]]])


def _nv24_to_rgb(planes: np.ndarray) -> np.ndarray:
    """[3H, W] -> [H, W, 3]: a plane of Y, then one of U and V in turns, both at full resolution."""
    height = planes.shape[0] // 3
    chroma = np.ascontiguousarray(planes[height:]).reshape(height, -1, 2)
    return cv2.transform(cv2.merge([planes[:height], *cv2.split(chroma)]), _YUV_TO_RGB)


_RGB, _RGB16 = _pixels(3, lambda pixels: pixels)
_BGR, _BGR16 = _pixels(3, _cv(cv2.COLOR_BGR2RGB))
_RGBA, _RGBA16 = _pixels(4, _cv(cv2.COLOR_RGBA2RGB))
_BGRA, _BGRA16 = _pixels(4, _cv(cv2.COLOR_BGRA2RGB))
_MONO, _MONO16 = _pixels(1, _cv(cv2.COLOR_GRAY2RGB))
_UYVY = _packed_422(cv2.COLOR_YUV2RGB_UYVY)
_YUYV = _packed_422(cv2.COLOR_YUV2RGB_YUYV)
_I420 = _planar_420(cv2.COLOR_YUV2RGB_I420, chroma_step=0.5)
#: OpenCV and ROS name Bayer patterns differently: OpenCV by the second and third pixel of the second row, ROS by the first two
#: rows. So ROS's rggb is OpenCV's "BG".
_RGGB, _RGGB16 = _mosaic(cv2.COLOR_BayerBG2RGB)
_BGGR, _BGGR16 = _mosaic(cv2.COLOR_BayerRG2RGB)
_GBRG, _GBRG16 = _mosaic(cv2.COLOR_BayerGR2RGB)
_GRBG, _GRBG16 = _mosaic(cv2.COLOR_BayerGB2RGB)

#: The names of sensor_msgs/image_encodings.hpp, and nv12, i420, yuv420, which drivers use. An OpenCV type (8UC3) says nothing
#: of colour: OpenCV's own order is blue, green, red.
ENCODINGS: dict[str, Encoding] = {
    "rgb8": _RGB,
    "bgr8": _BGR,
    "8UC3": _BGR,
    "rgba8": _RGBA,
    "bgra8": _BGRA,
    "8UC4": _BGRA,
    "mono8": _MONO,
    "8UC1": _MONO,
    "rgb16": _RGB16,
    "bgr16": _BGR16,
    "16UC3": _BGR16,
    "rgba16": _RGBA16,
    "bgra16": _BGRA16,
    "16UC4": _BGRA16,
    "mono16": _MONO16,
    "16UC1": _MONO16,
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    "nv12": _planar_420(cv2.COLOR_YUV2RGB_NV12),
    "nv21": _planar_420(cv2.COLOR_YUV2RGB_NV21),
    "nv24": Encoding("u1", 0, _nv24_to_rgb, resizable=False, rows=3.0, chroma_step=2.0),
    "i420": _I420,
    "yuv420": _I420,
    "bayer_rggb8": _RGGB,
    "bayer_bggr8": _BGGR,
    "bayer_gbrg8": _GBRG,
    "bayer_grbg8": _GRBG,
    "bayer_rggb16": _RGGB16,
    "bayer_bggr16": _BGGR16,
    "bayer_gbrg16": _GBRG16,
    "bayer_grbg16": _GRBG16,
}


class BitDepth:
    """How many bits of their 16-bit values the images of one camera use: 10, 12, 14 or 16.

    No message says it: cameras of 10, 12 and 14 bits mostly leave the upper bits 0, and would be nearly black as images of 16
    bits. The largest value seen so far decides, so that brightness stays the same from frame to frame.

    A damaged frame must not darken the later ones. So an increase by more than one level holds for its frame alone until it
    comes again within `MEMORY` frames, and the depth is reduced after as many frames that need less.
    """

    LEVELS = (10, 12, 14, 16)
    #: Frames.
    MEMORY = 300
    #: Part of the values that may be larger, and are drawn white: defective pixels, bits lost on the way.
    OUTLIERS = 1e-3

    def __init__(self) -> None:
        self._bits = 0
        self._needed: deque[int] = deque(maxlen=self.MEMORY)  # by the last frames

    def update(self, pixels: np.ndarray) -> int:
        """The bits to use for an image of native uint16 values."""
        needed = self._level(int(pixels.max()))
        while needed > max(self._bits, self.LEVELS[0]):
            lower = needed - 2
            if np.count_nonzero(pixels >> lower) > self.OUTLIERS * pixels.size:
                break
            needed = lower
        if needed > self._bits:
            if self._bits and needed > self._bits + 2 and max(self._needed) < needed:
                self._needed.append(needed)
                return needed
            self._bits = needed
        self._needed.append(needed)
        if needed < self._bits and len(self._needed) == self.MEMORY:
            self._bits = min(self._bits, max(self._needed))
        return self._bits

    def _level(self, value: int) -> int:
        return next(bits for bits in self.LEVELS if value < 2**bits)
