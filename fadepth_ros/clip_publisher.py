"""Plays a video file as a camera: publishes `image` (rgb8) and `camera_info` at the clip's rate. Part of the demo.

The intrinsics come from a JSON file beside the clip, with the same name: width, height, fps, and fx, fy, cx, cy in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

import fadepth_core
from fadepth_ros.messages import Camera, CameraInfoWriter, ImageWriter, Stamp
from fadepth_ros.process import exit_on, ros_context, until_shutdown, wake_regularly

DEMO_CLIP = Path(fadepth_core.__file__).parent / "assets" / "demo.mp4"


class ClipError(ValueError):
    """A clip cannot be played; the message names the file and the reason."""


def read_frames(clip: Path) -> Iterator[np.ndarray]:
    """The frames of a video file, [H, W, 3] uint8 RGB.

    Raises:
        ClipError: OpenCV cannot decode the file.
    """
    capture = cv2.VideoCapture(str(clip))
    try:
        ok, frame = capture.read()
        if not ok:
            raise ClipError(f"{clip}: not a video that OpenCV can decode")
        while ok:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            ok, frame = capture.read()
    finally:
        capture.release()


def read_camera_info(clip: Path) -> tuple[CameraInfo, float]:
    """The intrinsics and the frame rate (Hz) from the JSON beside a clip.

    Raises:
        ClipError: the JSON is missing or lacks a value.
    """
    path = clip.with_suffix(".json")
    try:
        values = json.loads(path.read_text())
        fx, fy, cx, cy = (float(values[key]) for key in ("fx", "fy", "cx", "cy"))
        info = CameraInfo(
            height=int(values["height"]),
            width=int(values["width"]),
            distortion_model="plumb_bob",
            d=[0.0] * 5,
            k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
            r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            p=[fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
        )
        return info, float(values["fps"])
    except FileNotFoundError:
        raise ClipError(f"{path}: no such file; it holds the clip's width, height, fps, fx, fy, cx, cy") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ClipError(
            f"{path}: {type(error).__name__} {error}; needed are width, height, fps, fx, fy, cx, cy"
        ) from error


class ClipPublisher(Node):
    """Plays a clip. Parameters: clip, rate (Hz, 0 for the clip's own), loop, frame_id."""

    def __init__(self) -> None:
        super().__init__("camera")
        clip = Path(self.declare_parameter("clip", str(DEMO_CLIP)).value)
        rate = self.declare_parameter("rate", 0.0).value
        self._loop = self.declare_parameter("loop", True).value
        frame_id = self.declare_parameter("frame_id", "camera_optical_frame").value
        info, clip_rate = read_camera_info(clip)
        size = (info.height, info.width)
        info.header.frame_id = frame_id
        camera = Camera(frame_id, size, np.eye(3), info, np.eye(3))
        self._clip, self._size = clip, size
        self._frames = read_frames(clip)
        self._image_writer = ImageWriter(frame_id, size, "rgb8")
        self._info_writer = CameraInfoWriter(frame_id, size, camera, lambda matrix: matrix)
        self._image = self.create_publisher(Image, "image", qos_profile_sensor_data)
        self._info = self.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._timer = self.create_timer(1.0 / (rate or clip_rate), self._tick)
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
    with ros_context(), exit_on("clip_publisher", ClipError), until_shutdown():
        node = ClipPublisher()
        wake_regularly(node)
        while not node.finished:
            rclpy.spin_once(node)


if __name__ == "__main__":
    main()
