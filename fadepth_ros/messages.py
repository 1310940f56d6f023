"""Converts serialized sensor_msgs to arrays and back.

Building a typed Image or PointCloud2 in Python copies its data several times; at hundreds of frames per second that takes
most of a node's time. So incoming messages are read in place from their CDR bytes. Outgoing messages are joined from a
prepared header, the array's bytes, and a tail. rclpy has serialized the prepared parts, so they have the middleware's
layout.

Conventions: REP-118 (depth images), REP-117 (out of range), REP-103 (optical frame), REP-104 (CameraInfo).
"""

from __future__ import annotations

import functools
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from fadepth_core.common.camera import MESSAGE_BOUNDS
from fadepth_core.common.framing import MAX_SIDE, MIN_SIDE
from fadepth_core.common.picture_header import PictureError, read_picture_header
from fadepth_ros.quiet_decoder import decode_picture


class MessageError(ValueError):
    """A message cannot be used.

    Attributes:
        cause: a short fixed key under which it is counted.
    """

    def __init__(self, cause: str, text: str):
        super().__init__(text)
        self.cause = cause


class Stamp(NamedTuple):
    """builtin_interfaces/Time."""

    sec: int
    nanosec: int

    @property
    def nanoseconds(self) -> int:
        """Time since the clock's zero, nanoseconds."""
        return self.sec * 1_000_000_000 + self.nanosec


# ----------------------------------------------------------------------------------------------------------- encodings


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


# ------------------------------------------------------------------------------------------------------------ incoming


@dataclass(frozen=True)
class Frame:
    """One camera frame.

    Attributes:
        size: (height, width) of the image in pixels.
        pixels: view of the message's data as `encoding` describes it.
        damage: what the decoder of a compressed image says is wrong with its data.
    """

    stamp: Stamp
    frame_id: str
    size: tuple[int, int]
    encoding: Encoding
    pixels: np.ndarray
    damage: str = ""


#: Longest frame_id or encoding that is accepted, bytes.
_LONGEST_TEXT = 256


class _CdrReader:
    """Reads CDR primitives from a serialized message; every read is checked against its end."""

    def __init__(self, raw: bytes):
        if len(raw) < 4 or raw[0] != 0 or raw[1] not in (0, 1):
            raise MessageError("malformed", "not a CDR-encoded message")
        self._raw = raw
        self._order = "<" if raw[1] else ">"
        self._at = 4

    def _unpack(self, code: str, size: int) -> Any:
        # Alignment is relative to the end of the encapsulation header, which has 4 bytes.
        at = self._at + (-(self._at - 4) % size)
        if at + size > len(self._raw):
            raise MessageError("malformed", f"the message ends after {len(self._raw)} bytes, inside its header")
        self._at = at + size
        return struct.unpack_from(self._order + code, self._raw, at)[0]

    def uint8(self) -> int:
        return self._unpack("B", 1)

    def uint32(self) -> int:
        return self._unpack("I", 4)

    def stamp(self) -> Stamp:
        return Stamp(self._unpack("i", 4), self.uint32())

    def doubles(self, count: int) -> None:
        """Pass over numbers of 64 bits."""
        self._unpack("d", 8)
        if self._at + 8 * (count - 1) > len(self._raw):
            raise MessageError("malformed", f"the message ends after {len(self._raw)} bytes")
        self._at += 8 * (count - 1)

    def sequence(self) -> memoryview:
        length = self.uint32()
        if self._at + length > len(self._raw):
            raise MessageError(
                "malformed", f"a field claims {length} bytes where {len(self._raw) - self._at} are left in the message"
            )
        self._at += length
        return memoryview(self._raw)[self._at - length : self._at]

    def string(self) -> str:
        text = self.sequence()
        if len(text) > _LONGEST_TEXT:  # because warnings and diagnostics repeat the text
            raise MessageError("malformed", f"a text field has {len(text)} bytes, more than {_LONGEST_TEXT}")
        try:
            return bytes(text).rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise MessageError("malformed", "a text field is not UTF-8") from error


def read_stamp(raw: bytes) -> Stamp:
    """The stamp of any serialized message that begins with a std_msgs/Header."""
    return _CdrReader(raw).stamp()


def read_image(raw: bytes, depth: BitDepth | None = None) -> Frame:
    """Read a serialized sensor_msgs/Image without copying its pixels.

    Args:
        depth: that of the camera, for images of 16 bits; None if this image alone decides.

    Raises:
        MessageError: it is malformed, its fields contradict each other, or its size or encoding is not supported.
    """
    reader = _CdrReader(raw)
    stamp, frame_id = reader.stamp(), reader.string()
    height, width = reader.uint32(), reader.uint32()
    name, big_endian, step, data = reader.string(), reader.uint8(), reader.uint32(), reader.sequence()
    _check_size(height, width)
    encoding = ENCODINGS.get(name)
    if encoding is None:
        return _read_by_cv_bridge(raw, name, stamp, frame_id)
    if (encoding.even[0] and height % 2) or (encoding.even[1] and width % 2):
        raise MessageError("size", f"the image is {width}x{height}, '{name}' needs even sides")
    dtype = np.dtype(encoding.dtype)
    row_bytes = width * max(encoding.channels, 1) * dtype.itemsize
    if step < row_bytes:
        raise MessageError("step", f"step is {step}, a row of {width} pixels in '{name}' takes {row_bytes} bytes")
    rows = int(height * encoding.rows)
    if encoding.channels == 0 and step > width and rows * width == len(data):
        # The driver counts the bytes of all planes for each row of the image, and leaves no gaps between rows.
        step = width
    if len(data) < rows * step:
        raise MessageError("short", f"{len(data)} bytes of data, {rows} rows of step {step} make {rows * step}")
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">" if big_endian else "<")
    shape = (rows, width, encoding.channels) if encoding.channels > 1 else (rows, width)
    strides = (step, max(encoding.channels, 1) * dtype.itemsize, dtype.itemsize)[: len(shape)]
    pixels = _native(np.ndarray(shape, dtype, data, strides=strides))
    if encoding.chroma_step != 1.0 and step > width:
        pixels = _without_gaps(data, (height, width), step, encoding)
    if encoding.bits > 8:
        encoding = encoding.with_bits((depth or BitDepth()).update(pixels))
    return Frame(stamp, frame_id, (height, width), encoding, pixels)


def _without_gaps(data: memoryview, size: tuple[int, int], step: int, encoding: Encoding) -> np.ndarray:
    """The planes of an image with gaps between its rows as one array [rows, W] without gaps, as they are converted."""
    height, width = size
    factor = encoding.chroma_step
    chroma_rows = int(height * (encoding.rows - 1) / factor)
    luma = np.ndarray(size, np.uint8, data, strides=(step, 1))
    chroma = np.ndarray(
        (chroma_rows, int(width * factor)), np.uint8, data, height * step, strides=(int(step * factor), 1)
    )
    return np.concatenate([luma.ravel(), chroma.ravel()]).reshape(-1, width)


def _check_size(height: int, width: int) -> None:
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise MessageError("size", f"the image is {width}x{height}; sides must be between {MIN_SIDE} and {MAX_SIDE}")


def _native(pixels: np.ndarray) -> np.ndarray:
    """Convert to native byte order and rows of whole values, as OpenCV requires. Most frames need no conversion."""
    if pixels.dtype.isnative and pixels.strides[0] % pixels.itemsize == 0:
        return pixels
    return pixels.astype(pixels.dtype.newbyteorder("="), order="C")


def _read_by_cv_bridge(raw: bytes, name: str, stamp: Stamp, frame_id: str) -> Frame:
    """Read an image whose encoding is not in the table, if cv_bridge is installed. Raises MessageError."""
    try:
        from cv_bridge import CvBridge
    except ImportError:
        known = ", ".join(ENCODINGS)
        raise MessageError(
            "encoding", f"unknown encoding '{name}' (known: {known}; others where cv_bridge is installed)"
        ) from None
    try:
        pixels = CvBridge().imgmsg_to_cv2(deserialize_message(raw, Image), "rgb8")
    except Exception as error:  # CvBridgeError, or numpy's errors for data that does not fit
        raise MessageError("encoding", f"encoding '{name}': {error}") from error
    return Frame(stamp, frame_id, pixels.shape[:2], _RGB, pixels)


#: Largest compressed image that is decoded, pixels: more than cameras have, and 200 MB.
MAX_COMPRESSED_PIXELS = 64_000_000
_PATTERNS = ("rggb", "bggr", "gbrg", "grbg")
_VIDEO = ("h264", "h265", "hevc", "vp8", "vp9", "av1", "mpeg4", "ffmpeg", "theora")


def read_compressed(raw: bytes, depth: BitDepth | None = None, max_pixels: int = MAX_COMPRESSED_PIXELS) -> Frame:
    """Read a serialized sensor_msgs/CompressedImage: JPEG, PNG, WebP, TIFF or BMP.

    `format` is read as compressed_image_transport does: "ENCODING; jpeg compressed TARGET", where TARGET may be missing, or
    only "jpeg". As there, EXIF orientation is ignored: camera_info describes the image as it is stored.

    Args:
        depth: that of the camera, for images of 16 bits; None if this image alone decides.
        max_pixels: images with more are refused, before they are decoded.

    Raises:
        MessageError: it is malformed, cannot be decoded, or its size is not supported.
    """
    reader = _CdrReader(raw)
    stamp, frame_id, kind, view = reader.stamp(), reader.string(), reader.string(), reader.sequence()
    data = bytes(view)
    if "compresseddepth" in kind.lower() or data[12:20] == b"\x89PNG\r\n\x1a\n":  # a PNG after the parameters of depth
        raise MessageError("encoding", f"'{kind}' is a depth image; the node needs the camera's picture")
    try:
        height, width = read_picture_header(data).size
    except PictureError as error:
        text = f"{len(data)} bytes of '{kind}' are not an image that can be decoded: {error}"
        if any(name in kind.lower() for name in _VIDEO):
            text += "; video must be decoded before: ros2 run image_transport republish"
        raise MessageError("encoding", text) from None
    _check_size(height, width)
    if height * width > max_pixels:
        raise MessageError(
            "size", f"the image is {width}x{height}; at most {max_pixels / 1e6:.0f} megapixels are decoded"
        )
    pixels, complaint = decode_picture(data)
    if pixels is None or pixels.shape[:2] != (height, width):
        raise MessageError("encoding", f"{len(data)} bytes of '{kind}' are not an image that OpenCV can decode")
    encoding = ENCODINGS.get(_stored_encoding(kind, pixels))
    if encoding is None:
        shape = f"{pixels.shape[2] if pixels.ndim == 3 else 1} values of {pixels.dtype} a pixel"
        raise MessageError("encoding", f"the image of '{kind}' has {shape}; known are 1, 3 and 4 of 8 or 16 bits")
    if encoding.even[0] and (height % 2 or width % 2):
        raise MessageError("size", f"the image is {width}x{height}, '{kind}' needs even sides")
    if encoding.bits > 8:
        encoding = encoding.with_bits((depth or BitDepth()).update(pixels))
    # Webcams write a few bytes too many; nothing of the picture is missing.
    damage = "" if "extraneous bytes" in complaint else complaint.partition("\n")[0][:_LONGEST_TEXT]
    return Frame(stamp, frame_id, (height, width), encoding, pixels, damage)


def _stored_encoding(kind: str, pixels: np.ndarray) -> str:
    """The encoding of a decoded picture [H, W] or [H, W, C], as compressed_image_transport's subscriber finds it."""
    source, separator, target = kind.lower().partition(";")
    source = source.strip()
    bits = 8 * pixels.itemsize if pixels.dtype.kind == "u" else 0
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 1:
        pattern = source.removeprefix("bayer_")[:4] if source.startswith("bayer_") else ""
        return f"bayer_{pattern}{bits}" if pattern in _PATTERNS else f"mono{bits}"
    # A picture file's colours are in OpenCV's order, unless the encoder was given RGB as if it was BGR. The publisher says
    # which by the target; without one, the subscriber assumes RGB.
    given_rgb = separator and source.startswith(("rgb", "bgr")) and "compressed bgr" not in target
    return f"{'rgb' if given_rgb else 'bgr'}{'a' if channels == 4 else ''}{bits}" if channels in (3, 4) else ""


@dataclass(frozen=True, eq=False)
class Camera:
    """The contents of a CameraInfo. Compared by identity.

    Attributes:
        size: (height, width) of the image, region of interest and binning applied; (0, 0) if the message does not say it.
        matrix: [3, 3] intrinsics to unproject with: P's left part (REP-104: the processed image) where P is set, else K.
        info: the message; its K and P are of the full sensor, see `roi_matrix`.
        roi_matrix: [3, 3] affine map from full-sensor pixels to the pixels of the image.
        notes: what is unusual about the message, for the log.
    """

    frame_id: str
    size: tuple[int, int]
    matrix: np.ndarray
    info: CameraInfo
    roi_matrix: np.ndarray
    notes: tuple[str, ...] = ()


#: Larger numbers in a CameraInfo are damage.
_LARGEST_NUMBER = 1e9
#: Most distortion coefficients; OpenCV's models have up to 14.
_MOST_COEFFICIENTS = 64
#: Largest skew of a pinhole camera, relative to fx. It is ignored, as in image_geometry; calibrations of fisheye cameras have some.
_LARGEST_SKEW = 0.05


def read_camera_info(raw: bytes, image_size: tuple[int, int] | None = None) -> Camera:
    """Read a serialized sensor_msgs/CameraInfo.

    Args:
        image_size: (height, width) of the image that it comes with, for messages of size 0x0.

    Raises:
        MessageError: it is malformed, uncalibrated (K[0] is 0) or holds numbers that no camera has.
    """
    try:
        _check_camera_info_layout(raw)
        info = deserialize_message(raw, CameraInfo)
    except Exception as error:  # MessageError, or the middleware's: RCLError, RuntimeError, UnicodeDecodeError
        raise MessageError("malformed", f"not a CameraInfo: {error}") from error
    for name in "kdrp":
        for index, number in enumerate(getattr(info, name)):
            if not abs(number) <= _LARGEST_NUMBER:  # also NaN
                raise MessageError("calibration", f"{name.upper()}[{index}] is {number:g}")
    k, p = np.array(info.k, np.float64).reshape(3, 3), np.array(info.p, np.float64).reshape(3, 4)
    if k[0, 0] == 0.0:
        raise MessageError("uncalibrated", "K[0] is 0, which means uncalibrated")
    notes = [] if info.height or info.width else ["it has no size; that of the image is used"]
    size, to_image, side = _image_area(info, image_size)
    if np.array_equal(p[:, :3], np.eye(3)):
        notes.append("P is the identity, so K is used")
        info.p = [0.0] * 12
        p[:] = 0.0
    name, used = ("P", p[:, :3]) if p[0, 0] != 0.0 else ("K", k)
    if problem := _pinhole_problem(name, used, side):
        raise MessageError("calibration", problem)
    if name == "P" and (problem := _pinhole_problem("K", k, side)):
        notes.append(f"{problem}; P is used")
        info.k = used.ravel()  # because it is published with the depth image
    (fx, skew, cx), (_, fy, cy) = used[:2]
    if abs(skew) > 1e-6 * fx:
        notes.append(f"the skew of {name}, {skew:g}, is ignored")
    matrix = to_image @ [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]
    return Camera(info.header.frame_id, size, matrix, info, to_image, tuple(notes))


def _check_camera_info_layout(raw: bytes) -> None:
    """Check the lengths in a serialized CameraInfo: the middleware writes a line to stderr for each that is wrong."""
    reader = _CdrReader(raw)
    reader.stamp()
    reader.string()
    reader.uint32()
    reader.uint32()
    reader.string()
    coefficients = reader.uint32()
    if coefficients > _MOST_COEFFICIENTS:
        raise MessageError("malformed", f"D has {coefficients} numbers, more than {_MOST_COEFFICIENTS}")
    reader.doubles(coefficients + 9 + 9 + 12)
    for _ in range(6):
        reader.uint32()
    reader.uint8()


def _image_area(info: CameraInfo, image_size: tuple[int, int] | None) -> tuple[tuple[int, int], np.ndarray, int | None]:
    """What part of the sensor the image shows: its (height, width), `Camera.roi_matrix`, and the sensor's longer side.

    The side is None if it is not known, for a message of size 0x0 without `image_size`.
    """
    bx, by = max(info.binning_x, 1), max(info.binning_y, 1)
    full_height, full_width = info.height, info.width
    roi = info.roi
    if (full_height, full_width) == (0, 0):  # drivers that do not know it; then it is that of the image
        rest = (
            roi.height or (image_size[0] * by if image_size else 0),
            roi.width or (image_size[1] * bx if image_size else 0),
        )
        full_height, full_width = (
            offset + side for offset, side in zip((roi.y_offset, roi.x_offset), rest, strict=True)
        )
    elif 0 in (full_height, full_width):
        raise MessageError("calibration", f"its size is {full_width}x{full_height}")
    height, width = roi.height or full_height, roi.width or full_width
    if roi.x_offset + width > full_width or roi.y_offset + height > full_height:
        raise MessageError(
            "calibration",
            f"its region of interest, {width}x{height} at ({roi.x_offset}, {roi.y_offset}), is outside its "
            f"{full_width}x{full_height} pixels",
        )
    to_image = np.array(
        [
            [1 / bx, 0, (0.5 - roi.x_offset) / bx - 0.5],
            [0, 1 / by, (0.5 - roi.y_offset) / by - 0.5],
            [0, 0, 1],
        ]
    )
    return (height // by, width // bx), to_image, max(full_height, full_width) if height and width else None


def _pinhole_problem(name: str, matrix: np.ndarray, side: int | None) -> str | None:
    """Why no camera of `side` pixels has these intrinsics; they would give points far outside any scene. None if one may."""
    (fx, skew, cx), (zero, fy, cy) = matrix[:2]
    if side is not None and not all(MESSAGE_BOUNDS.has_focal(focal, side) for focal in (fx, fy)):
        return f"the focal lengths of {name}, {fx:g} and {fy:g}, are not those of a camera"
    if side is not None and not all(MESSAGE_BOUNDS.has_centre(centre, side) for centre in (cx, cy)):
        return f"the principal point of {name}, ({cx:g}, {cy:g}), is far outside the image"
    if (
        abs(skew) > _LARGEST_SKEW * abs(fx)
        or abs(zero) > 1e-6 * abs(fy)
        or not np.allclose(matrix[2], (0, 0, 1), 0, 1e-6)
    ):
        return f"{name} is not [fx 0 cx; 0 fy cy; 0 0 1]"
    return None


# ------------------------------------------------------------------------------------------------------------ outgoing


class _Template:
    """The serialized parts of a message before and after its data, with a stamp that can be set."""

    def __init__(self, message: Image | CameraInfo | PointCloud2, tail: int = 0):
        raw = serialize_message(message)
        self._order = "<" if raw[1] else ">"
        # `message` holds an empty sequence: its length is the last uint32 before the `tail` bytes that follow it.
        self._head = bytearray(raw[: len(raw) - tail])
        self._tail = raw[len(raw) - tail :]

    def render(self, stamp: Stamp, data: np.ndarray | None = None) -> bytes:
        """The serialized message with `data` (C-contiguous) as its sequence."""
        struct.pack_into(self._order + "iI", self._head, 4, *stamp)
        if data is None:
            return bytes(self._head)
        struct.pack_into(self._order + "I", self._head, len(self._head) - 4, data.nbytes)
        return b"".join((self._head, data.data.cast("B"), self._tail))


class ImageWriter:
    """Writes sensor_msgs/Image of one size and encoding."""

    _PIXEL_BYTES = {"32FC1": 4, "16UC1": 2, "rgb8": 3}

    def __init__(self, frame_id: str, size: tuple[int, int], encoding: str):
        message = Image(height=size[0], width=size[1], encoding=encoding, step=size[1] * self._PIXEL_BYTES[encoding])
        message.header.frame_id = frame_id
        self._template = _Template(message)

    def write(self, stamp: Stamp, pixels: np.ndarray) -> bytes:
        """Serialize an image of this writer's size and encoding; `pixels` is C-contiguous."""
        return self._template.render(stamp, pixels)


class CloudWriter:
    """Writes organised sensor_msgs/PointCloud2: float32 x y z, and packed rgb at offset 12 when coloured."""

    _WITHOUT_ALPHA = np.array([255, 255, 255, 0], np.uint8).view(np.uint32)[0]

    def __init__(self, frame_id: str, size: tuple[int, int], coloured: bool):
        names = ("x", "y", "z", "rgb") if coloured else ("x", "y", "z")
        fields = [PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate(names)]
        step = 4 * len(names)
        message = PointCloud2(
            height=size[0], width=size[1], fields=fields, point_step=step, row_step=step * size[1], is_dense=False
        )
        message.header.frame_id = frame_id
        self._template = _Template(message, tail=1)
        self._points = np.empty((*size, len(names)), np.float32)
        if coloured:
            self._packed = np.empty((*size, 4), np.uint8)
            self._colors = self._points.view(np.uint32)[..., 3]

    def write(
        self, stamp: Stamp, points: np.ndarray, rgb: np.ndarray | None, z_range: tuple[float, float] | None
    ) -> bytes:
        """Serialize a cloud.

        Args:
            points: [h, w, 3] float32 of this writer's size.
            rgb: [h, w, 3] uint8 of the same size if coloured, else None.
            z_range: nearest and farthest z to keep, metres; None keeps all.
        """
        if rgb is None:
            self._points[:] = points
        else:
            # OpenCV's conversion from three to four channels is several times faster than numpy's strided copy.
            cv2.cvtColor(np.ascontiguousarray(points), cv2.COLOR_RGB2RGBA, dst=self._points)
            cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGRA, dst=self._packed)
            np.bitwise_and(self._packed.view(np.uint32)[..., 0], self._WITHOUT_ALPHA, out=self._colors)
        if z_range is not None:
            z = points[..., 2]
            self._points[(z < z_range[0]) | (z > z_range[1]), :3] = np.nan
        return self._template.render(stamp, self._points)


class CameraInfoWriter:
    """Writes the CameraInfo of the depth image: that of the camera, with K and P for the published pixels."""

    def __init__(
        self, frame_id: str, size: tuple[int, int], camera: Camera, to_output: Callable[[np.ndarray], np.ndarray]
    ):
        """
        Args:
            to_output: converts K or P [3, N] of the camera's image to the published image (`Framing.output_intrinsics`).
        """
        source = camera.info
        k = to_output(camera.roi_matrix @ np.array(source.k).reshape(3, 3))
        p = np.array(source.p).reshape(3, 4)
        # Some drivers leave P empty, but consumers of the depth image need it for unprojection.
        p = to_output(camera.roi_matrix @ p) if p[0, 0] != 0.0 else np.hstack([k, np.zeros((3, 1))])
        message = CameraInfo(
            height=size[0],
            width=size[1],
            distortion_model=source.distortion_model,
            d=source.d,
            k=k.ravel(),
            r=source.r,
            p=p.ravel(),
        )
        message.header.frame_id = frame_id
        self._template = _Template(message)

    def write(self, stamp: Stamp) -> bytes:
        """Serialize the CameraInfo with this stamp."""
        return self._template.render(stamp)
