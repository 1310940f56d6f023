"""Matches CameraInfo with images: which intrinsics belong to a frame, or why there are none.

A driver publishes a CameraInfo beside every image. The newest one describes an image when frame_id and size agree.
"""

from __future__ import annotations

from fadepth_ros import messages
from fadepth_ros.messages import Camera, Frame, MessageError

#: A serialized message begins with 4 bytes of encapsulation and the 8 bytes of its stamp.
_AFTER_STAMP = 12


class CameraTracker:
    """Keeps the newest CameraInfo of one camera and matches it with images. Returns problems, never logs them."""

    def __init__(self) -> None:
        self._raw = b""
        self._camera: Camera | None = None
        self._problem: MessageError | None = MessageError("no_camera_info", "no camera_info has arrived")
        self._last_match: Camera | None = None

    def update(self, raw: bytes) -> None:
        """Use a serialized CameraInfo from now on. It is parsed only if it differs from the last one in more than its stamp."""
        if self._raw and self._raw[_AFTER_STAMP:] == raw[_AFTER_STAMP:]:
            return
        self._raw = raw
        try:
            self._camera, self._problem = messages.read_camera_info(raw), None
        except MessageError as error:
            self._camera, self._problem = None, MessageError(f"camera_info_{error.cause}", str(error))

    def match(self, frame: Frame) -> tuple[Camera | None, MessageError | None]:
        """The camera that `frame` was taken with, or the problem: one of the two is None."""
        camera, problem = self._camera, self._problem
        if camera is not None:
            problem = _mismatch(camera, frame)
        if problem is not None:
            return None, problem
        self._last_match = camera
        return camera, None

    def last_match(self, frame: Frame) -> Camera | None:
        """The last camera that `match` returned, if it has the frame_id and size of `frame`; else None."""
        camera = self._last_match
        return None if camera is None or _mismatch(camera, frame) else camera


def _mismatch(camera: Camera, frame: Frame) -> MessageError | None:
    """Why `camera` does not describe `frame`; None if it does."""
    if camera.frame_id != frame.frame_id:
        return MessageError(
            "camera_info_frame", f"its frame_id is '{camera.frame_id}', the image's is '{frame.frame_id}'"
        )
    if camera.size != frame.size:
        (h, w), (fh, fw) = camera.size, frame.size
        return MessageError("camera_info_size", f"its size is {w}x{h}, the image's is {fw}x{fh}")
    return None
