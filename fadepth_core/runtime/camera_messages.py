"""From the messages of one camera to the engine, and from its depth to the output messages: for the node and for recordings.

A writer holds the prepared parts of one message (see `messages/outgoing.py`). It is used for all frames until frame_id, size or
encoding change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fadepth_core.common.framing import Framing
from fadepth_core.common.rectification import RectifiedFraming
from fadepth_core.messages.camera_info import Camera
from fadepth_core.messages.images import Frame
from fadepth_core.messages.outgoing import CameraInfoWriter, CloudWriter, ImageWriter
from fadepth_core.runtime.cloud import CloudOptions, downsample
from fadepth_core.runtime.engine import DepthEngine
from fadepth_core.runtime.pictures import depth_to_color, depth_to_millimetres

_Writer = TypeVar("_Writer")
_DEFAULT_CLOUD = CloudOptions()


def rgb_for(engine: DepthEngine, frame: Frame, rectified: RectifiedFraming | None = None) -> np.ndarray:
    """The frame as [h, w, 3] uint8 RGB, at the network's size if that is what the engine takes.

    Args:
        rectified: makes the rectified images; None if they are the camera's own.
    """
    to_rgb = frame.encoding.to_rgb
    if not engine.takes_network_size:
        rgb = to_rgb(frame.pixels)
        return rgb if rectified is None else rectified.to_camera(rgb)
    to_network = engine.framing.to_network if rectified is None else rectified.to_network
    if frame.encoding.resizable:  # fewer pixels to convert
        return to_rgb(to_network(frame.pixels))
    return to_network(to_rgb(frame.pixels))


class OutputWriters:
    """Writes the outputs of one camera. Every message has the stamp and frame_id of `frame`."""

    def __init__(self) -> None:
        self._writers: dict[str, tuple[tuple, Any]] = {}  # key and writer, by output

    def depth(self, frame: Frame, depth: np.ndarray, encoding: str) -> bytes:
        """Image of `depth` [h, w], metres: "32FC1", or "16UC1" in millimetres."""
        pixels = depth if encoding == "32FC1" else depth_to_millimetres(depth)
        key = (frame.frame_id, depth.shape, encoding)
        return self._writer("depth", key, lambda: ImageWriter(*key)).write(frame.stamp, pixels)

    def confidence(self, frame: Frame, confidence: np.ndarray) -> bytes:
        """Image of `confidence` [h, w] float32, 0 to 1."""
        key = (frame.frame_id, confidence.shape, "32FC1")
        return self._writer("confidence", key, lambda: ImageWriter(*key)).write(frame.stamp, confidence)

    def color(self, frame: Frame, depth: np.ndarray, color_range: tuple[float, float]) -> bytes:
        """Colour-mapped image of `depth` [h, w]; `color_range`: nearest and farthest depth, metres."""
        key = (frame.frame_id, depth.shape, "rgb8")
        writer = self._writer("color", key, lambda: ImageWriter(*key))
        return writer.write(frame.stamp, depth_to_color(depth, *color_range))

    def points(
        self,
        frame: Frame,
        points: np.ndarray,
        rgb: np.ndarray,
        framing: Framing,
        options: CloudOptions = _DEFAULT_CLOUD,
        rectified: RectifiedFraming | None = None,
    ) -> bytes:
        """Cloud of `points` [h, w, 3], metres: organised, or with a voxel size the points that are left.

        Args:
            rgb: [H, W, 3] uint8, the image that the engine got: at the network's size or the camera's.
            rectified: as for `rgb_for`.
        """
        every = slice(None, None, options.stride)
        dropped = options.dropped(points, max(1, round(framing.output_size[0] / framing.network_size[0])))
        points = points[every, every]
        color = None
        if options.fields != "xyz":
            if rgb.shape[:2] != framing.output_size:
                if rgb.shape[:2] != framing.camera_size:
                    whole = frame.encoding.to_rgb(frame.pixels)
                    rgb = whole if rectified is None else rectified.to_camera(whole)
                rgb = framing.output_pixels(rgb)
            color = rgb[every, every]
        if options.voxel_size > 0:
            return _downsampled(frame, points, color, dropped, options)
        key = (frame.frame_id, points.shape[:2], options.fields)
        writer = self._writer("points", key, lambda: CloudWriter(*key))
        return writer.write(frame.stamp, points, color, dropped)

    def camera_info(self, frame: Frame, camera: Camera, framing: Framing) -> bytes:
        """CameraInfo of the depth image."""
        key = (frame.frame_id, camera, framing)
        writer = self._writer(
            "camera_info",
            key,
            lambda: CameraInfoWriter(frame.frame_id, framing.output_size, camera, framing.output_intrinsics),
        )
        return writer.write(frame.stamp)

    def _writer(self, output: str, key: tuple, make: Callable[[], _Writer]) -> _Writer:
        """The writer of an output; a new one if `key` differs from that of the last."""
        known = self._writers.get(output)
        if known is None or known[0] != key:
            known = (key, make())
            self._writers[output] = known
        return known[1]


def _downsampled(
    frame: Frame, points: np.ndarray, color: np.ndarray | None, dropped: np.ndarray | None, options: CloudOptions
) -> bytes:
    """The cloud with one point in each voxel."""
    kept = np.isfinite(points[..., 2])
    if dropped is not None:
        kept &= ~dropped
    values = np.empty((np.count_nonzero(kept), 0), np.uint8) if color is None else color[kept]
    means, colors = downsample(points[kept], values, options.voxel_size)
    writer = CloudWriter(frame.frame_id, (1, len(means)), options.fields, dense=True)
    return writer.write(frame.stamp, means[None], None if color is None else np.rint(colors[None]).astype(np.uint8))
