"""Decode what the depth sensors of a recording measured: depth images, compressed or not, and point clouds."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.picture_header import PictureError, read_picture_header

_PNG = b"\x89PNG\r\n\x1a\n"
#: compressed_depth_image_transport: an enumeration and two numbers of the quantisation before the PNG.
_QUANTISATION = struct.Struct("<iff")
#: Types of sensor_msgs/PointField that coordinates have.
_FLOATS = {7: "f4", 8: "f8"}


def depth_pixels(message: Any) -> tuple[np.ndarray, str]:
    """Pixels [h, w] of a sensor_msgs/Image or CompressedImage with depth, and their encoding (REP-118).

    Raises:
        DataError: it is malformed or compressed in a way that is not supported.
    """
    return _compressed_depth(message) if hasattr(message, "format") else _raw_depth(message)


def _raw_depth(message: Any) -> tuple[np.ndarray, str]:
    encoding = message.encoding
    dtype = np.dtype({"32FC1": "f4"}.get(encoding, "u2")).newbyteorder(">" if message.is_bigendian else "<")
    height, width, step = message.height, message.width, message.step
    if step < width * dtype.itemsize or len(message.data) < height * step:
        raise DataError(f"{len(message.data)} bytes are too few for {width}x{height} pixels of {encoding}")
    pixels = np.ndarray((height, width), dtype, message.data, strides=(step, dtype.itemsize))
    return pixels.astype(dtype.newbyteorder("=")), encoding


def _compressed_depth(message: Any) -> tuple[np.ndarray, str]:
    data, form = message.data.tobytes(), message.format
    encoding = "32FC1" if form.strip().startswith("32FC1") else "16UC1"
    start = data[:64].find(_PNG)
    if start < 0:
        raise DataError(f"compressed depth of '{form[:40]}' is not supported, only PNG")
    try:
        read_picture_header(data[start:])  # a damaged one could claim any size
    except PictureError as error:
        raise DataError(f"compressed depth: {error}") from None
    code = cv2.imdecode(np.frombuffer(data, np.uint8, offset=start), cv2.IMREAD_UNCHANGED)
    if code is None or code.dtype != np.uint16 or code.ndim != 2:
        raise DataError(f"compressed depth of '{form[:40]}' is not a PNG with one channel of 16 bits")
    if encoding == "16UC1":
        return code, encoding
    if start != _QUANTISATION.size:
        raise DataError("compressed depth of 32FC1 without the numbers of its quantisation")
    _, a, b = _QUANTISATION.unpack_from(data)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(code > 0, a / (code - np.float32(b)), 0).astype(np.float32), encoding


def cloud_points(message: Any) -> np.ndarray:
    """Points [N, 3] float32 of a sensor_msgs/PointCloud2, metres in its frame; unknown ones are not finite or zero.

    Raises:
        DataError: it has no coordinates, or fewer data than it states.
    """
    fields = {field.name: field for field in message.fields}
    if not all(name in fields and fields[name].datatype in _FLOATS for name in "xyz"):
        raise DataError(f"the point cloud has no x, y, z as floating point numbers, only {', '.join(fields)}")
    height, width, step, row = message.height, message.width, message.point_step, message.row_step
    row = row or width * step
    needed = (height - 1) * row + width * step if height else 0
    if row < width * step or len(message.data) < needed:
        raise DataError(f"the point cloud has {len(message.data)} bytes, {width}x{height} points need {needed}")
    columns = []
    for name in "xyz":
        field = fields[name]
        dtype = np.dtype(_FLOATS[field.datatype]).newbyteorder(">" if message.is_bigendian else "<")
        if field.offset + dtype.itemsize > step:
            raise DataError(f"the point cloud's field {name} is outside its points")
        values = np.ndarray((height, width), dtype, message.data, field.offset, (row, step)) if needed else np.empty(0)
        columns.append(values.ravel().astype(np.float32))
    points = np.stack(columns, axis=1)
    return points[np.isfinite(points).all(axis=1) & points.any(axis=1)]
