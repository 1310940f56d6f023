"""Plays a video file as a camera: publishes `image` (rgb8) and `camera_info` at the clip's rate. Part of the demo.

The intrinsics come from a JSON file beside the clip, with the same name: width, height, fps, and fx, fy, cx, cy in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image

import fadepth_core
from fadepth_core.common.camera import PinholeCamera, read_fps
from fadepth_core.common.documents import as_object, read_json, whole_number
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import user_path
from fadepth_core.common.video import VideoFile
from fadepth_core.messages import camera_info
from fadepth_core.messages.cdr import Stamp
from fadepth_core.messages.outgoing import CameraInfoWriter, ImageWriter
from fadepth_ros.parameters import Spec, declare, warn_of_unknown_parameters
from fadepth_ros.process import program

log = logging.getLogger(__name__)

DEMO_CLIP = Path(fadepth_core.__file__).parent / "assets" / "demo.mp4"


SPECS = (
    Spec("clip", str(DEMO_CLIP), "Video file; its intrinsics are in a JSON file of the same name beside it."),
    Spec("rate", 0.0, "Frames per second; 0: the clip's own rate.", limits=(0.0, 1000.0)),
    Spec("loop", True, "Play the clip again when it ends."),
    Spec("frame_id", "camera_optical_frame", "frame_id of the images."),
)


class ClipError(ValueError):
    """A clip cannot be played; the message names the file and the reason."""


def read_frames(clip: Path) -> Iterator[np.ndarray]:
    """The frames of a video file, [H, W, 3] uint8 RGB.

    Raises:
        ClipError: OpenCV cannot decode the file.
    """
    count = 0
    try:
        video = VideoFile(clip)
        for count, frame in enumerate(video, 1):  # noqa: B007 - used below
            yield frame
    except DataError as error:
        raise ClipError(str(error)) from None
    if damage := video.damage(count):
        _warn_once(damage)


@cache
def _warn_once(text: str) -> None:
    """A clip in a loop ends every few seconds."""
    log.warning("%s", text)


def read_camera_info(clip: Path) -> tuple[CameraInfo, float]:
    """The intrinsics and the frame rate (Hz) from the JSON beside a clip.

    Raises:
        ClipError: the JSON is missing or lacks a value.
    """
    path = clip.parent / f"{clip.stem}.json"
    if not path.is_file():
        raise ClipError(f"{path}: no such file; it holds the clip's width, height, fps, fx, fy, cx, cy")
    try:
        values = as_object(read_json(path), path)
        size = whole_number(values["height"], "height", path), whole_number(values["width"], "width", path)
        camera = PinholeCamera.from_values(values, path, size)
        rate = read_fps(values["fps"], path)
    except KeyError as error:
        raise ClipError(f"{path}: has no {error}; needed are width, height, fps, fx, fy, cx, cy") from None
    except DataError as error:
        raise ClipError(f"{error}; needed are width, height, fps, fx, fy, cx, cy") from None
    info = CameraInfo(
        height=size[0],
        width=size[1],
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=camera.matrix.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=np.column_stack([camera.matrix, np.zeros(3)]).ravel().tolist(),
    )
    return info, rate


class ClipPublisher(Node):
    """Plays a clip. Its parameters are `SPECS`.

    Args:
        options: for `rclpy.node.Node`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("camera", **options)
        values = declare(self, SPECS)
        warn_of_unknown_parameters(self)
        clip, rate, frame_id = user_path(values["clip"]), values["rate"], values["frame_id"]
        self._loop = values["loop"]
        info, clip_rate = read_camera_info(clip)
        size = (info.height, info.width)
        camera = camera_info.read_camera_info(serialize_message(info))
        self._clip, self._size = clip, size
        self._frames = read_frames(clip)
        self._image_writer = ImageWriter(frame_id, size, "rgb8")
        self._info_writer = CameraInfoWriter(frame_id, size, camera, lambda matrix: matrix)
        self._image = self.create_publisher(Image, "image", qos_profile_sensor_data)
        self._info = self.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        # A steady clock: the camera's rate does not depend on a simulated clock.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(1.0 / (rate or clip_rate), self._tick, clock=steady)
        self.finished = False

    def _tick(self) -> None:
        if self._image.get_subscription_count() == 0:
            return  # the clip starts when the first subscriber is there
        frame = next(self._frames, None)
        if frame is None:
            if not self._loop:
                self.finished = True
                return
            self._frames = read_frames(self._clip)
            frame = next(self._frames)
        if frame.shape[:2] != self._size:
            (h, w), (jh, jw) = frame.shape[:2], self._size
            raise ClipError(f"{self._clip}: its frames are {w}x{h}, its JSON says {jw}x{jh}")
        stamp = Stamp(*self.get_clock().now().seconds_nanoseconds())
        self._info.publish(self._info_writer.write(stamp))
        self._image.publish(self._image_writer.write(stamp, frame))


def main() -> None:
    with program("clip_publisher") as shutdown:
        node = ClipPublisher()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not (node.finished or shutdown.requested):
            executor.spin_once(timeout_sec=0.5)
        shutdown.acknowledge()
        node.destroy_node()


if __name__ == "__main__":
    main()
