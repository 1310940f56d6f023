"""Writes serialized depth images, clouds and CameraInfo.

A message is joined from a prepared header, the array's bytes, and a tail, because building a typed Image or PointCloud2 in
Python copies its data several times. At hundreds of frames per second that takes most of a node's time.

Conventions: REP-118 (depth images), REP-117 (out of range), REP-103 (optical frame), REP-104 (CameraInfo).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import cv2
import numpy as np

from fadepth_core.messages.camera_info import Camera
from fadepth_core.messages.cdr import CdrWriter, Stamp

#: Set for each frame.
_NO_STAMP = Stamp(0, 0)
#: sensor_msgs/PointField.FLOAT32.
_FLOAT32 = 7


class _Template:
    """The serialized parts of a message before and after its data, with a stamp that can be set.

    Args:
        head: begins with a Header. If the message has data, ends with the length of its sequence.
        tail: the bytes after the data.
    """

    def __init__(self, head: CdrWriter, tail: bytes = b""):
        self._head, self._tail = head.raw, tail

    def render(self, stamp: Stamp, data: np.ndarray | None = None) -> bytes:
        """The serialized message with `data` (C-contiguous) as its sequence."""
        struct.pack_into("<iI", self._head, 4, *stamp)
        if data is None:
            return bytes(self._head)
        struct.pack_into("<I", self._head, len(self._head) - 4, data.nbytes)
        return b"".join((self._head, data.data, self._tail))


class ImageWriter:
    """Writes sensor_msgs/Image of one size and encoding."""

    _PIXEL_BYTES = {"32FC1": 4, "16UC1": 2, "rgb8": 3}

    def __init__(self, frame_id: str, size: tuple[int, int], encoding: str):
        head = CdrWriter()
        head.header(_NO_STAMP, frame_id)
        head.uint32(*size)
        head.string(encoding)
        head.uint8(False)  # is_bigendian
        head.uint32(size[1] * self._PIXEL_BYTES[encoding], 0)  # step, length of data
        self._template = _Template(head)

    def write(self, stamp: Stamp, pixels: np.ndarray) -> bytes:
        """Serialize an image of this writer's size and encoding; `pixels` is C-contiguous."""
        return self._template.render(stamp, pixels)


#: Fields of a cloud, each a float32; rgb holds three bytes, intensity is brightness from 0 to 255.
CLOUD_FIELDS = {"xyz": ("x", "y", "z"), "xyzrgb": ("x", "y", "z", "rgb"), "xyzi": ("x", "y", "z", "intensity")}


class CloudWriter:
    """Writes sensor_msgs/PointCloud2 with float32 x, y, z and, at offset 12, packed rgb or intensity.

    Args:
        size: rows and columns; (1, N) for a cloud that is not organised.
        fields: a key of `CLOUD_FIELDS`.
        dense: whether all points are finite.
    """

    _WITHOUT_ALPHA = np.array([255, 255, 255, 0], np.uint8).view(np.uint32)[0]

    def __init__(self, frame_id: str, size: tuple[int, int], fields: str, dense: bool = False):
        names = CLOUD_FIELDS[fields]
        head = CdrWriter()
        head.header(_NO_STAMP, frame_id)
        head.uint32(*size, len(names))
        for index, name in enumerate(names):
            head.string(name)
            head.uint32(4 * index)  # offset
            head.uint8(_FLOAT32)
            head.uint32(1)  # count
        head.uint8(False)  # is_bigendian
        step = 4 * len(names)
        head.uint32(step, step * size[1], 0)  # point_step, row_step, length of data
        self._template = _Template(head, tail=bytes([dense]))
        self._fields = fields
        self._points = np.empty((*size, len(names)), np.float32)
        if fields == "xyzrgb":
            self._packed = np.empty((*size, 4), np.uint8)
            self._colors = self._points.view(np.uint32)[..., 3]

    def write(
        self, stamp: Stamp, points: np.ndarray, rgb: np.ndarray | None = None, dropped: np.ndarray | None = None
    ) -> bytes:
        """Serialize a cloud.

        Args:
            points: [h, w, 3] float32 of this writer's size.
            rgb: [h, w, 3] uint8 of the same size, from which rgb or intensity is written; not used for "xyz".
            dropped: [h, w] bool, points that become NaN; None for none.
        """
        if self._fields == "xyz" or not points.size:  # OpenCV does not accept empty arrays
            self._points[:, :, :3] = points
        else:
            assert rgb is not None
            rgb = np.ascontiguousarray(rgb)
            # OpenCV's conversion from three to four channels is several times faster than numpy's strided copy.
            cv2.cvtColor(np.ascontiguousarray(points), cv2.COLOR_RGB2RGBA, dst=self._points)
            if self._fields == "xyzi":
                self._points[..., 3] = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
            else:
                cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA, dst=self._packed)
                np.bitwise_and(self._packed.view(np.uint32)[..., 0], self._WITHOUT_ALPHA, out=self._colors)
        if dropped is not None:
            self._points[dropped, :3] = np.nan
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
        k = to_output(camera.roi_matrix @ source.k.reshape(3, 3))
        p = source.p.reshape(3, 4)
        # Some drivers leave P empty, but consumers of the depth image need it for unprojection.
        p = to_output(camera.roi_matrix @ p) if p[0, 0] != 0.0 else np.hstack([k, np.zeros((3, 1))])
        head = CdrWriter()
        head.header(_NO_STAMP, frame_id)
        head.uint32(*size)
        head.string(source.distortion_model)
        head.uint32(len(source.d))
        head.doubles(source.d)
        head.doubles(np.concatenate([k.ravel(), source.r, p.ravel()]))
        head.uint32(0, 0)  # binning: `to_output` and `roi_matrix` are in K and P
        head.uint32(0, 0, 0, 0)  # roi
        head.uint8(False)  # do_rectify
        self._template = _Template(head)

    def write(self, stamp: Stamp) -> bytes:
        """Serialize the CameraInfo with this stamp."""
        return self._template.render(stamp)
