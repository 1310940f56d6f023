"""Reads serialized `sensor_msgs/CameraInfo`: the intrinsics with which the pixels of an image are unprojected.

Conventions: REP-104 (CameraInfo).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fadepth_core.common.camera import MESSAGE_BOUNDS
from fadepth_core.common.rectification import Calibration
from fadepth_core.messages.cdr import CdrReader, MessageError


@dataclass(frozen=True, eq=False)
class CameraInfo:
    """The fields of a sensor_msgs/CameraInfo, of the full sensor. Compared by identity.

    Attributes:
        d: distortion coefficients.
        k, r, p: [9], [9], [12] float64, matrices row by row.
        roi: (x offset, y offset, height, width) of the region of interest in pixels; 0 if it is the whole sensor.
    """

    frame_id: str
    height: int
    width: int
    distortion_model: str
    d: np.ndarray
    k: np.ndarray
    r: np.ndarray
    p: np.ndarray
    binning_x: int = 0
    binning_y: int = 0
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Camera:
    """The contents of a CameraInfo. Compared by identity.

    Attributes:
        size: (height, width) of the image, region of interest and binning applied; (0, 0) if the message does not say it.
        matrix: [3, 3] intrinsics to unproject with: P's left part (REP-104: the processed image) where P is set, else K.
        info: the message; its K and P are of the full sensor, see `roi_matrix`.
        roi_matrix: [3, 3] affine map from full-sensor pixels to the pixels of the image.
        notes: what is unusual about the message, for the log.
    """

    frame_id: str
    size: tuple[int, int]
    matrix: np.ndarray
    info: CameraInfo
    roi_matrix: np.ndarray
    notes: tuple[str, ...] = ()

    @classmethod
    def pinhole(cls, matrix: np.ndarray, size: tuple[int, int], frame_id: str = "") -> Camera:
        """A camera without distortion: K [3, 3] for images of `size` (height, width)."""
        k, p = matrix.ravel(), np.column_stack([matrix, np.zeros(3)]).ravel()
        info = CameraInfo(frame_id, *size, "plumb_bob", np.zeros(5), k, np.eye(3).ravel(), p)
        return cls(frame_id, size, matrix, info, np.eye(3))

    def calibration(self, where: object = "camera_info") -> Calibration:
        """The lens with which the image was taken, in pixels of the image.

        Args:
            where: the topic, for error messages.

        Raises:
            DataError: the distortion model is not known, or D has another number of coefficients.
        """
        info, projection = self.info, np.zeros((3, 4))
        if self.has_projection:
            projection[:, :3] = self.matrix
            projection[:, 3] = self.roi_matrix @ info.p.reshape(3, 4)[:, 3]
        matrix = self.roi_matrix @ info.k.reshape(3, 3)
        model = info.distortion_model.strip().lower()
        return Calibration(self.size, model, info.d, matrix, info.r.reshape(3, 3), projection, where)

    def rectified(self, matrix: np.ndarray) -> Camera:
        """The camera of the rectified images: K [3, 3] is `matrix`, without distortion, rotation, region and binning."""
        p = np.column_stack([matrix, self.roi_matrix @ self.info.p.reshape(3, 4)[:, 3]])
        info = CameraInfo(
            self.frame_id, *self.size, "plumb_bob", np.zeros(5), matrix.ravel(), np.eye(3).ravel(), p.ravel()
        )
        return Camera(self.frame_id, self.size, matrix, info, np.eye(3), self.notes)

    @property
    def has_projection(self) -> bool:
        """Whether the message has a P. It is zero, or the identity, in messages of many uncalibrated drivers."""
        return self.info.p[0] != 0.0


#: Larger numbers in a CameraInfo are damage.
_LARGEST_NUMBER = 1e9
#: Most distortion coefficients; OpenCV's models have up to 14.
_MOST_COEFFICIENTS = 64
#: Largest skew of a pinhole camera, relative to fx. It is ignored, as in image_geometry; calibrations of fisheye cameras have some.
_LARGEST_SKEW = 0.05


def read_camera_info(raw: bytes, image_size: tuple[int, int] | None = None) -> Camera:
    """Read a serialized sensor_msgs/CameraInfo.

    Args:
        image_size: (height, width) of the image that it comes with, for messages of size 0x0.

    Raises:
        MessageError: it is malformed, uncalibrated (K[0] is 0) or holds numbers that no camera has.
    """
    try:
        info = _read_fields(raw)
    except MessageError as error:
        raise MessageError("malformed", f"not a CameraInfo: {error}") from error
    for name in "kdrp":
        for index, number in enumerate(getattr(info, name)):
            if not abs(number) <= _LARGEST_NUMBER:  # also NaN
                raise MessageError("calibration", f"{name.upper()}[{index}] is {number:g}")
    k, p = info.k.reshape(3, 3), info.p.reshape(3, 4)
    if k[0, 0] == 0.0:
        raise MessageError("uncalibrated", "K[0] is 0, which means uncalibrated")
    notes = [] if info.height or info.width else ["it has no size; that of the image is used"]
    size, to_image, side = _image_area(info, image_size)
    if np.array_equal(p[:, :3], np.eye(3)):
        notes.append("P is the identity, so K is used")
        p = np.zeros((3, 4))
    name, used = ("P", p[:, :3]) if p[0, 0] != 0.0 else ("K", k)
    if problem := _pinhole_problem(name, used, side):
        raise MessageError("calibration", problem)
    if name == "P" and (problem := _pinhole_problem("K", k, side)):
        notes.append(f"{problem}; P is used")
        k = used  # because it is published with the depth image
    (fx, skew, cx), (_, fy, cy) = used[:2]
    if abs(skew) > 1e-6 * fx:
        notes.append(f"the skew of {name}, {skew:g}, is ignored")
    matrix = to_image @ [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]
    return Camera(info.frame_id, size, matrix, replace(info, k=k.ravel(), p=p.ravel()), to_image, tuple(notes))


def _read_fields(raw: bytes) -> CameraInfo:
    reader = CdrReader(raw)
    reader.stamp()
    frame_id = reader.string()
    height, width, model, coefficients = reader.uint32(), reader.uint32(), reader.string(), reader.uint32()
    if coefficients > _MOST_COEFFICIENTS:
        raise MessageError("malformed", f"D has {coefficients} numbers, more than {_MOST_COEFFICIENTS}")
    d = reader.doubles(coefficients)
    k, r, p = (reader.doubles(count) for count in (9, 9, 12))
    binning_x, binning_y = reader.uint32(), reader.uint32()
    roi = (reader.uint32(), reader.uint32(), reader.uint32(), reader.uint32())
    reader.uint8()  # do_rectify
    return CameraInfo(frame_id, height, width, model, d, k, r, p, binning_x, binning_y, roi)


def _image_area(info: CameraInfo, image_size: tuple[int, int] | None) -> tuple[tuple[int, int], np.ndarray, int | None]:
    """What part of the sensor the image shows: its (height, width), `Camera.roi_matrix`, and the sensor's longer side.

    The side is None if it is not known, for a message of size 0x0 without `image_size`.
    """
    bx, by = max(info.binning_x, 1), max(info.binning_y, 1)
    full_height, full_width = info.height, info.width
    x_offset, y_offset, roi_height, roi_width = info.roi
    if (full_height, full_width) == (0, 0):  # drivers that do not know it; then it is that of the image
        rest = (
            roi_height or (image_size[0] * by if image_size else 0),
            roi_width or (image_size[1] * bx if image_size else 0),
        )
        full_height, full_width = (offset + side for offset, side in zip((y_offset, x_offset), rest, strict=True))
    elif 0 in (full_height, full_width):
        raise MessageError("calibration", f"its size is {full_width}x{full_height}")
    height, width = roi_height or full_height, roi_width or full_width
    if x_offset + width > full_width or y_offset + height > full_height:
        raise MessageError(
            "calibration",
            f"its region of interest, {width}x{height} at ({x_offset}, {y_offset}), is outside its "
            f"{full_width}x{full_height} pixels",
        )
    to_image = np.array(
        [
            [1 / bx, 0, (0.5 - x_offset) / bx - 0.5],
            [0, 1 / by, (0.5 - y_offset) / by - 0.5],
            [0, 0, 1],
        ]
    )
    return (height // by, width // bx), to_image, max(full_height, full_width) if height and width else None


def _pinhole_problem(name: str, matrix: np.ndarray, side: int | None) -> str | None:
    """Why no camera of `side` pixels has these intrinsics; they would give points far outside any scene. None if one may."""
    (fx, skew, cx), (zero, fy, cy) = matrix[:2]
    if side is not None and not all(MESSAGE_BOUNDS.has_focal(focal, side) for focal in (fx, fy)):
        return f"the focal lengths of {name}, {fx:g} and {fy:g}, are not those of a camera"
    if side is not None and not all(MESSAGE_BOUNDS.has_centre(centre, side) for centre in (cx, cy)):
        return f"the principal point of {name}, ({cx:g}, {cy:g}), is far outside the image"
    if (
        abs(skew) > _LARGEST_SKEW * abs(fx)
        or abs(zero) > 1e-6 * abs(fy)
        or not np.allclose(matrix[2], (0, 0, 1), 0, 1e-6)
    ):
        return f"{name} is not [fx 0 cx; 0 fy cy; 0 0 1]"
    return None
