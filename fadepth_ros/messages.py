"""Converts serialized sensor_msgs to arrays and back.

Building a typed Image or PointCloud2 in Python copies its data several times; at hundreds of frames per second that takes
most of a node's time. So incoming messages are read in place from their CDR bytes. Outgoing messages are joined from a
prepared header, the array's bytes, and a tail. rclpy has serialized the prepared parts, so they have the middleware's
layout.

Conventions: REP-118 (depth images), REP-117 (out of range), REP-103 (optical frame), REP-104 (CameraInfo).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from fadepth_core.common.framing import MAX_SIDE, MIN_SIDE


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
        to_rgb: [H, W, C] or [H, W] of `dtype` -> [H, W, 3] uint8 RGB.
        resizable: whether a frame may be resized before `to_rgb`, which is faster. False for mosaics and subsampled colour,
            where neighbouring values do not belong to neighbouring pixels.
        rows: rows of data per row of image.
        even: which sides must be even, (height, width).
    """

    dtype: str
    channels: int
    to_rgb: Callable[[np.ndarray], np.ndarray]
    resizable: bool = True
    rows: float = 1.0
    even: tuple[bool, bool] = (False, False)


def _cv(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: cv2.cvtColor(pixels, code)


def _mono16_to_rgb(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor((pixels >> 8).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def _packed_422(code: int) -> Encoding:
    return Encoding("u1", 2, _cv(code), resizable=False, even=(False, True))


def _mosaic(code: int) -> Encoding:
    return Encoding("u1", 1, _cv(code), resizable=False, even=(True, True))


_RGB = Encoding("u1", 3, lambda pixels: pixels)
_BGR = Encoding("u1", 3, _cv(cv2.COLOR_BGR2RGB))
_MONO = Encoding("u1", 1, _cv(cv2.COLOR_GRAY2RGB))
_UYVY = _packed_422(cv2.COLOR_YUV2RGB_UYVY)
_YUYV = _packed_422(cv2.COLOR_YUV2RGB_YUYV)

#: OpenCV and ROS name Bayer patterns differently: OpenCV by the second and third pixel of the second row, ROS by the first two
#: rows. So ROS's rggb is OpenCV's "BG".
ENCODINGS: dict[str, Encoding] = {
    "rgb8": _RGB,
    "bgr8": _BGR,
    "8UC3": _BGR,
    "rgba8": Encoding("u1", 4, _cv(cv2.COLOR_RGBA2RGB)),
    "bgra8": Encoding("u1", 4, _cv(cv2.COLOR_BGRA2RGB)),
    "mono8": _MONO,
    "8UC1": _MONO,
    "mono16": Encoding("u2", 1, _mono16_to_rgb),
    "16UC1": Encoding("u2", 1, _mono16_to_rgb),
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    "nv12": Encoding("u1", 0, _cv(cv2.COLOR_YUV2RGB_NV12), resizable=False, rows=1.5, even=(True, True)),
    "nv21": Encoding("u1", 0, _cv(cv2.COLOR_YUV2RGB_NV21), resizable=False, rows=1.5, even=(True, True)),
    "bayer_rggb8": _mosaic(cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": _mosaic(cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": _mosaic(cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": _mosaic(cv2.COLOR_BayerGB2RGB),
}


# ------------------------------------------------------------------------------------------------------------ incoming


@dataclass(frozen=True)
class Frame:
    """One camera frame.

    Attributes:
        size: (height, width) of the image in pixels.
        pixels: view of the message's data as `encoding` describes it.
    """

    stamp: Stamp
    frame_id: str
    size: tuple[int, int]
    encoding: Encoding
    pixels: np.ndarray


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


def read_image(raw: bytes) -> Frame:
    """Read a serialized sensor_msgs/Image without copying its pixels.

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
    if len(data) < rows * step:
        raise MessageError("short", f"{len(data)} bytes of data, {rows} rows of step {step} make {rows * step}")
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">" if big_endian else "<")
    shape = (rows, width, encoding.channels) if encoding.channels > 1 else (rows, width)
    strides = (step, max(encoding.channels, 1) * dtype.itemsize, dtype.itemsize)[: len(shape)]
    pixels = np.ndarray(shape, dtype, data, strides=strides)
    return Frame(stamp, frame_id, (height, width), encoding, _native(pixels))


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


def read_compressed(raw: bytes) -> Frame:
    """Read a serialized sensor_msgs/CompressedImage: JPEG, PNG, or another format that OpenCV decodes.

    Raises:
        MessageError: it is malformed, cannot be decoded, or its size is not supported.
    """
    reader = _CdrReader(raw)
    stamp, frame_id, kind, data = reader.stamp(), reader.string(), reader.string(), reader.sequence()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if len(data) else None
    except cv2.error:  # a header that claims more pixels than OpenCV allows
        pixels = None
    if pixels is None:
        raise MessageError("encoding", f"{len(data)} bytes of '{kind}' are not an image that OpenCV can decode")
    _check_size(*pixels.shape[:2])
    return Frame(stamp, frame_id, pixels.shape[:2], _BGR, pixels)


@dataclass(frozen=True, eq=False)
class Camera:
    """The contents of a CameraInfo. Compared by identity.

    Attributes:
        size: (height, width) of the image, region of interest and binning applied.
        matrix: [3, 3] intrinsics to unproject with: P's left part (REP-104: the processed image) where P is set, else K.
        info: the message; its K and P are of the full sensor, see `roi_matrix`.
        roi_matrix: [3, 3] affine map from full-sensor pixels to the pixels of the image.
    """

    frame_id: str
    size: tuple[int, int]
    matrix: np.ndarray
    info: CameraInfo
    roi_matrix: np.ndarray


def read_camera_info(raw: bytes) -> Camera:
    """Read a serialized sensor_msgs/CameraInfo.

    Raises:
        MessageError: it is malformed, uncalibrated (K[0] is 0) or holds numbers that no camera has.
    """
    _CdrReader(raw).stamp()
    try:
        info = deserialize_message(raw, CameraInfo)
    except Exception as error:  # RCLError or RuntimeError, depending on the ROS distribution
        raise MessageError("malformed", f"not a CameraInfo: {error}") from error
    k, p = np.array(info.k, np.float64).reshape(3, 3), np.array(info.p, np.float64).reshape(3, 4)
    if not (np.isfinite(k).all() and np.isfinite(p).all()):
        raise MessageError("calibration", "K or P holds numbers that are not finite")
    if k[0, 0] == 0.0:
        raise MessageError("uncalibrated", "K[0] is 0, which means uncalibrated")
    bx, by = max(info.binning_x, 1), max(info.binning_y, 1)
    roi = info.roi
    height, width = roi.height or info.height, roi.width or info.width
    if roi.x_offset + width > info.width or roi.y_offset + height > info.height:
        raise MessageError(
            "calibration",
            f"its region of interest, {width}x{height} at ({roi.x_offset}, {roi.y_offset}), is outside its {info.width}x"
            f"{info.height} pixels",
        )
    for name, matrix in (("K", k), ("P", p[:, :3])):
        if name == "K" or matrix[0, 0] != 0.0:
            _check_pinhole(name, matrix, max(info.height, info.width))
    to_image = np.array(
        [
            [1 / bx, 0, (0.5 - roi.x_offset) / bx - 0.5],
            [0, 1 / by, (0.5 - roi.y_offset) / by - 0.5],
            [0, 0, 1],
        ]
    )
    matrix = to_image @ (p[:, :3] if p[0, 0] != 0.0 else k)
    return Camera(info.header.frame_id, (height // by, width // bx), matrix, info, to_image)


def _check_pinhole(name: str, matrix: np.ndarray, side: int) -> None:
    """Raise MessageError for intrinsics that no camera of `side` pixels has. They would give points far outside any scene."""
    (fx, skew, cx), (zero, fy, cy) = matrix[:2]
    if not (0.01 * side <= min(fx, fy) and max(fx, fy) <= 1000 * side):
        raise MessageError("calibration", f"the focal lengths of {name}, {fx:g} and {fy:g}, are not those of a camera")
    if max(abs(cx), abs(cy)) > 10 * side:
        raise MessageError("calibration", f"the principal point of {name}, ({cx:g}, {cy:g}), is far outside the image")
    if skew or zero or tuple(matrix[2]) != (0.0, 0.0, 1.0):
        raise MessageError("calibration", f"{name} is not [fx 0 cx; 0 fy cy; 0 0 1]")


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
            packed = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGRA)
            packed[..., 3] = 0
            self._points.view(np.uint32)[..., 3] = packed.view(np.uint32)[..., 0]
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
