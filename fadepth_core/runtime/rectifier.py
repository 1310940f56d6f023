"""Rectifies the images of one camera before they reach the engine: for the node and for recordings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.framing import Framing
from fadepth_core.common.rectification import Calibration, Rectification, RectifiedFraming, named_rectified
from fadepth_core.messages.camera_info import Camera

#: Values of the node's parameter `rectify`.
MODES = ("auto", "on", "off")


@dataclass(frozen=True)
class RectifiedCamera:
    """How the engine sees a camera.

    Attributes:
        camera: the camera of the images that the engine gets.
        framing: makes these images; None if they are the camera's own.
        status: what is done and why, for people.
        problem: why the images are not rectified although they should be; None if there is no problem.
    """

    camera: Camera
    framing: RectifiedFraming | None
    status: str
    problem: str | None = None


class Rectifier:
    """Decides whether the images of a camera are rectified, and prepares it once for each calibration.

    Args:
        mode: "auto": rectify if CameraInfo has distortion (D is not 0), unless the topic's name says that the images are
            rectified (`image_rect`). "on": rectify whatever the name, also if only P or R differ. "off": never.
        image_topic, info_topic: resolved names.
    """

    def __init__(self, mode: str, image_topic: str, info_topic: str):
        if mode not in MODES:
            raise ValueError(f"unknown mode '{mode}'; known: {', '.join(MODES)}")
        self.mode, self._info_topic = mode, info_topic
        self._named_rectified = named_rectified(image_topic)
        self._key: tuple[Camera, Framing] | None = None
        self._prepared: RectifiedCamera | None = None

    @property
    def status(self) -> str:
        """`RectifiedCamera.status` of the last camera."""
        if self.mode == "off":
            return "off"
        return "no usable camera_info yet" if self._prepared is None else self._prepared.status

    def prepare(self, camera: Camera, framing: Framing) -> RectifiedCamera:
        """The rectified camera of `camera`; `framing` is that of the engine. Fast if both are those of the last call."""
        if self._prepared is None or self._key != (camera, framing):
            self._prepared, self._key = self._rectify(camera, framing), (camera, framing)
        return self._prepared

    def _rectify(self, camera: Camera, framing: Framing) -> RectifiedCamera:
        if self.mode == "off":
            return RectifiedCamera(camera, None, "off")
        if self.mode == "auto" and not camera.info.d.any():
            return RectifiedCamera(camera, None, "not needed: D is 0")
        if self.mode == "auto" and self._named_rectified:
            # The camera_info of rectified images is by convention that of the lens. A consumer of depth that knows only the
            # depth image would apply D a second time.
            status = "not needed: the topic's name says that the images are rectified"
            return RectifiedCamera(camera.rectified(camera.matrix), None, status)
        try:
            calibration = camera.calibration(self._info_topic)
            lens = Rectification(calibration)
            if not lens.needed:
                return RectifiedCamera(camera, None, "not needed: D is 0, and P equals K")
            rectified = RectifiedFraming(lens, framing)
        except DataError as error:
            return RectifiedCamera(camera, None, f"not possible: {error}", f"images are not rectified: {error}")
        return RectifiedCamera(
            camera.rectified(lens.matrix), rectified, _description(calibration, lens, rectified.outside)
        )


def _description(calibration: Calibration, lens: Rectification, outside: np.ndarray | None) -> str:
    """What is done, in a few words."""
    model = calibration.model if calibration.distorted else "no distortion"
    if not lens.chosen:
        source = "P of camera_info"
    else:
        height, width = lens.size
        angle = np.degrees(np.arctan2([width / 2, height / 2], [lens.matrix[0, 0], lens.matrix[1, 1]]))
        source = f"camera_info has no P; view of {2 * angle[0]:.0f}x{2 * angle[1]:.0f} degrees"
    covered = "" if outside is None else f"; the camera covers {100 * (1 - outside.mean()):.0f} % of it"
    return f"{model}; {source}{covered}"
