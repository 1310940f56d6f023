"""Matches CameraInfo with images: which intrinsics belong to a frame, or why there are none.

A driver publishes a CameraInfo beside every image. The newest one describes an image when their sizes agree. Frame ids are not
compared, as in depth_image_proc: many drivers leave that of CameraInfo empty, or write it with tf1's leading slash.
"""

from __future__ import annotations

from fadepth_core.messages.camera_info import Camera, read_camera_info
from fadepth_core.messages.cdr import MessageError
from fadepth_core.messages.images import MAX_COMPRESSED_PIXELS, Frame

#: The stamp in a serialized message: 8 bytes after the 4 of encapsulation.
_STAMP = slice(4, 12)
#: Images with this many pixels are decoded whatever size CameraInfo has: a calibration is often for another resolution.
_USUAL_PIXELS = 16_000_000


class CameraTracker:
    """Keeps the newest CameraInfo of one camera and matches it with images. Returns problems, never logs them."""

    def __init__(self) -> None:
        self._raw = b""
        self._image_size: tuple[int, int] | None = None  # for which `_raw` was read, if it has no size of its own
        self._camera: Camera | None = None
        self._problem: MessageError | None = MessageError("no_camera_info", "no camera_info has arrived")
        self._last_match: Camera | None = None

    def update(self, raw: bytes) -> None:
        """Use a serialized CameraInfo from now on. It is parsed only if it differs from the last one in more than its stamp."""
        last = self._raw
        if raw[: _STAMP.start] == last[: _STAMP.start] and raw[_STAMP.stop :] == last[_STAMP.stop :]:
            return
        self._raw = raw
        self._read(None)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images according to the newest CameraInfo; None if it does not say."""
        camera = self._camera
        return None if camera is None or 0 in camera.size else camera.size

    @property
    def max_pixels(self) -> int:
        """The largest compressed image to decode: a damaged header may claim any size."""
        camera = self._camera or self._last_match
        if camera is None or 0 in camera.size:
            return MAX_COMPRESSED_PIXELS
        return min(max(4 * camera.size[0] * camera.size[1], _USUAL_PIXELS), MAX_COMPRESSED_PIXELS)

    def match(self, frame: Frame) -> tuple[Camera | None, MessageError | None]:
        """The camera that `frame` was taken with, or the problem: one of the two is None."""
        if self._image_size not in (None, frame.size) or (self._camera is not None and self._camera.size == (0, 0)):
            self._read(frame.size)
        camera, problem = self._camera, self._problem
        if camera is not None:
            problem = _mismatch(camera, frame)
        if problem is not None:
            return None, problem
        self._last_match = camera
        return camera, None

    def last_match(self, frame: Frame) -> Camera | None:
        """The last camera that `match` returned, if it has the size of `frame`; else None."""
        camera = self._last_match
        return None if camera is None or _mismatch(camera, frame) else camera

    def _read(self, image_size: tuple[int, int] | None) -> None:
        self._image_size = image_size
        try:
            self._camera, self._problem = read_camera_info(self._raw, image_size), None
        except MessageError as error:
            self._camera, self._problem = None, MessageError(f"camera_info_{error.cause}", str(error))


def unusual(camera: Camera, frame: Frame) -> tuple[str, ...]:
    """What to log once about a camera that matches `frame`."""
    if camera.frame_id == frame.frame_id:
        return camera.notes
    text = f"its frame_id is '{camera.frame_id}', the image's is '{frame.frame_id}'; the image's is used"
    return (*camera.notes, text)


def _mismatch(camera: Camera, frame: Frame) -> MessageError | None:
    """Why `camera` does not describe `frame`; None if it does."""
    if camera.size != frame.size:
        (h, w), (fh, fw) = camera.size, frame.size
        return MessageError("camera_info_size", f"its size is {w}x{h}, the image's is {fw}x{fh}")
    return None
