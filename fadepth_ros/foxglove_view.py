"""Shows scenes in Foxglove: a WebSocket server that Foxglove connects to, and on demand the same as an MCAP file.

The topics have the names of the depth node's, so that `config/foxglove.json` is a layout for both: this view, and the node's own
topics through foxglove_bridge.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from fadepth_core.runtime.pictures import COLOR_RANGE, depth_to_color
from fadepth_ros.scene import Scene

#: Layout to import into Foxglove.
LAYOUT = "config/foxglove.json"
#: Frame in which x is forward and z up: Foxglove's 3D panel looks at a scene whose z axis is up.
BODY_FRAME = "camera_link"
#: Rotation from the optical frame (x right, y down, z forward) to the body frame (REP-103), a quaternion x y z w.
OPTICAL_TO_BODY = (-0.5, 0.5, -0.5, 0.5)
#: Messages that wait for a slow connection; then the oldest are dropped. Foxglove's default is gigabytes of clouds.
_BACKLOG = 64


class FoxgloveView:
    """Publishes scenes to all connected Foxglove apps, and to a recording.

    Topics: /image and /depth/color (JPEG), /depth/image (32FC1, metres), /depth/points (x y z rgb), /tf, /status (JSON: rates
    and times), /log (warnings).

    Args:
        host: address that the server listens on.
        record: MCAP file to write; None for none.

    Raises:
        ImportError: foxglove-sdk is not installed.
        OSError: the address cannot be used, the file exists or cannot be written.
    """

    def __init__(self, host: str, port: int, record: Path | None = None):
        try:
            import foxglove
            from foxglove import channels, messages
        except ImportError as error:
            raise ImportError(f"Foxglove needs the package foxglove-sdk (pip install foxglove-sdk): {error}") from None
        self._messages = messages
        self._context = context = foxglove.Context()  # its channels are closed with it
        self._recording = None
        if record is not None:
            try:
                self._recording = foxglove.open_mcap(record, context=context)
            except OSError as error:  # the message lacks the file
                raise OSError(f"{record}: cannot be recorded: {error}") from None
        try:
            self._server = foxglove.start_server(
                name="fadepth", host=host, port=port, context=context, message_backlog_size=_BACKLOG
            )
        except RuntimeError as error:
            if self._recording is not None:
                self._recording.close()
            raise OSError(f"cannot serve Foxglove on {host}:{port}: {error}") from None
        self.url = f"ws://{host}:{self._server.port}"
        self._image = channels.CompressedImageChannel("/image", context=context)
        self._color = channels.CompressedImageChannel("/depth/color", context=context)
        self._depth = channels.RawImageChannel("/depth/image", context=context)
        self._points = channels.PointCloudChannel("/depth/points", context=context)
        self._transforms = channels.FrameTransformsChannel("/tf", context=context)
        self._log = channels.LogChannel("/log", context=context)
        schema = foxglove.Schema(name="fadepth.Status", encoding="jsonschema", data=json.dumps(_STATUS_SCHEMA).encode())
        self._status = foxglove.Channel("/status", schema=schema, message_encoding="json", context=context)
        self._last_warning = ""

    def show(self, scene: Scene) -> None:
        messages, time = self._messages, scene.stamp
        stamp = messages.Timestamp(sec=time // 10**9, nsec=time % 10**9)
        header = {"timestamp": stamp, "frame_id": scene.frame_id}
        x, y, z, w = OPTICAL_TO_BODY
        transform = messages.FrameTransform(
            timestamp=stamp,
            parent_frame_id=BODY_FRAME,
            child_frame_id=scene.frame_id,
            translation=messages.Vector3(x=0.0, y=0.0, z=0.0),
            rotation=messages.Quaternion(x=x, y=y, z=z, w=w),
        )
        self._transforms.log(messages.FrameTransforms(transforms=[transform]), log_time=time)
        self._image.log(messages.CompressedImage(format="jpeg", data=_jpeg(scene.image), **header), log_time=time)
        color = depth_to_color(scene.depth, *COLOR_RANGE)
        self._color.log(messages.CompressedImage(format="jpeg", data=_jpeg(color), **header), log_time=time)
        height, width = scene.depth.shape
        depth = messages.RawImage(
            width=width,
            height=height,
            encoding="32FC1",
            step=4 * width,
            data=np.ascontiguousarray(scene.depth).tobytes(),
            **header,
        )
        self._depth.log(depth, log_time=time)
        kind = messages.PackedElementFieldNumericType.Float32
        cloud = messages.PointCloud(
            pose=messages.Pose(
                position=messages.Vector3(x=0.0, y=0.0, z=0.0),
                orientation=messages.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0),
            ),
            point_stride=16,
            fields=[
                messages.PackedElementField(name=name, offset=4 * index, type=kind)
                for index, name in enumerate(("x", "y", "z", "rgb"))
            ],
            data=pack_points(scene),
            **header,
        )
        self._points.log(cloud, log_time=time)
        self._status.log(dict(scene.figures), log_time=time)
        if scene.warning != self._last_warning:
            self._last_warning = scene.warning
            level = messages.LogLevel.Warning if scene.warning else messages.LogLevel.Info
            text = scene.warning or "no warning any more"
            self._log.log(messages.Log(timestamp=stamp, level=level, message=text, name="depth"), log_time=time)

    def close(self) -> None:
        self._server.stop()
        if self._recording is not None:
            self._recording.close()


#: Of /status. Figures that are not known yet are missing.
_STATUS_SCHEMA = {
    "type": "object",
    "properties": {
        "frames_per_second": {"type": "number"},
        "latency_ms": {"type": "number"},
        "dropped": {"type": "integer"},
        "engine": {"type": "string"},
    },
}


def pack_points(scene: Scene) -> bytes:
    """The points with depth: x y z as float32, and the colours as bytes blue, green, red, 0 as in PointCloud2's rgb."""
    finite = scene.finite
    packed = np.zeros((int(finite.sum()), 16), np.uint8)
    packed[:, :12] = np.ascontiguousarray(scene.points[finite]).view(np.uint8)
    packed[:, 12:15] = scene.colors[finite][:, ::-1]
    return packed.tobytes()


def _jpeg(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGR))[1].tobytes()
