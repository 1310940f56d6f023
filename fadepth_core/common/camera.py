"""The intrinsics of a pinhole camera, checked once for every file and option that states them. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fadepth_core.common.documents import as_number, number, whole_number
from fadepth_core.common.errors import DataError

#: The names of the intrinsics in JSON files.
INTRINSICS = ("fx", "fy", "cx", "cy")
#: Smaller focal lengths, in pixels, are intrinsics that were divided by the picture's size.
_MIN_FOCAL = 2.0
#: Bounds where the size of the picture is not known, pixels.
_LARGEST = 1e7
#: How much the product of a rotation with its transpose may differ from the identity: files with three decimals pass.
_ROTATION_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Bounds:
    """Which intrinsics are taken for those of a camera, as shares of the picture's side.

    Attributes:
        smallest_focal, largest_focal: bounds of the focal length.
        outside: how far outside the picture the principal point may be.
    """

    smallest_focal: float
    largest_focal: float
    outside: float

    def has_focal(self, focal: float, side: int) -> bool:
        """Whether a focal length in pixels is within the bounds; false for NaN."""
        return self.smallest_focal * side <= focal <= self.largest_focal * side

    def has_centre(self, centre: float, side: int) -> bool:
        """Whether a coordinate of the principal point in pixels is within the bounds; false for NaN."""
        return -self.outside * side <= centre <= (1 + self.outside) * side


#: Of files and options, which people write. The focal lengths are those of angles of view of 169 and of 0.06 degrees; a smaller
#: one is in millimetres, or of a picture with less pixels. The principal point is outside only in cropped pictures.
FILE_BOUNDS = Bounds(0.05, 1000.0, 1.0)
#: Of messages, which calibration programs fill: the P of a rectified fisheye camera has a short focal length and may have its
#: principal point far away. Beyond these bounds points would be far outside any scene.
MESSAGE_BOUNDS = Bounds(0.01, 1000.0, 9.0)


@dataclass(frozen=True)
class PinholeCamera:
    """Intrinsics of the pictures of a camera. Pixel centres are at whole numbers.

    Attributes:
        fx, fy, cx, cy: focal lengths and principal point, pixels.
        width, height: size of the pictures, pixels; None if not known yet (`with_size`).
        where: the file or option that states them, for error messages.

    Raises:
        DataError: no camera has these intrinsics, or `width` and `height` are out of range. The message has a hint at
            the likely mistake.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int | None = None
    height: int | None = None
    where: object = "camera"

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise DataError(f"{self.where}: {problem}")

    @classmethod
    def from_values(
        cls,
        values: Mapping[str, Any],
        where: object,
        size: tuple[int, int] | None = None,
        pictures: object = "its picture",
    ) -> PinholeCamera:
        """Read fx, fy, cx, cy, and width and height if they are stated, from the values of a JSON object.

        Args:
            values: other keys are ignored.
            where: the file, for error messages.
            size: (height, width) of the pictures, if it is known.
            pictures: where they are, for error messages.

        Raises:
            KeyError: one of the four intrinsics is missing.
            DataError: a value is not a finite number, no camera has these intrinsics, or the stated size is not `size`.
        """
        fx, fy, cx, cy = (number(values, key, where) for key in INTRINSICS)
        height, width = size or (None, None)
        stated = {key: whole_number(values[key], key, where) for key in ("width", "height") if key in values}
        expected = stated.get("width", width), stated.get("height", height)
        if size is not None and expected != (width, height):
            hint = ""
            if expected == (height, width):
                hint = "; intrinsics belong to the picture as it is shown, after the rotation that its file states"
            raise DataError(
                f"{where}: for {expected[0]}x{expected[1]} pixels, but {pictures} has {width}x{height}{hint}"
            )
        return cls(fx, fy, cx, cy, *expected, where)

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, where: object, size: tuple[int, int] | None = None) -> PinholeCamera:
        """From K [3, 3]; `size` is (height, width).

        Raises:
            DataError: no camera has these intrinsics.
        """
        height, width = size or (None, None)
        fx, fy, cx, cy = (float(matrix[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
        return cls(fx, fy, cx, cy, width, height, where)

    def with_size(self, size: tuple[int, int]) -> PinholeCamera:
        """The same intrinsics, checked for pictures of `size` (height, width).

        Raises:
            DataError: no camera with pictures of that size has these intrinsics.
        """
        return PinholeCamera(self.fx, self.fy, self.cx, self.cy, size[1], size[0], self.where)

    @property
    def matrix(self) -> np.ndarray:
        """K [3, 3] float64."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def _problem(self) -> str | None:
        """Why no camera has these intrinsics; None if they are plausible."""
        for key in INTRINSICS:
            if not math.isfinite(getattr(self, key)):
                return f"{key} must be a finite number, got {getattr(self, key)}"
        for key in ("fx", "fy"):
            value = getattr(self, key)
            if not value > 0:
                return f"{key} must be positive, got {value:g}"
            if value < _MIN_FOCAL:
                return (
                    f"{key} {value:g} is no focal length in pixels; multiply intrinsics that were divided by the picture's "
                    "width and height (normalised) by them"
                )
        if 0 < self.cx <= 1 and 0 < self.cy <= 1:
            return (
                f"cx {self.cx:g} and cy {self.cy:g} are not in pixels; multiply intrinsics that were divided by the "
                "picture's width and height (normalised) by them"
            )
        axes = (("fx", "cx", self.width), ("fy", "cy", self.height))
        for focal_key, centre_key, side in axes:
            focal, centre = getattr(self, focal_key), getattr(self, centre_key)
            if side is None:
                if max(focal, abs(centre)) > _LARGEST:
                    return f"{focal_key} {focal:g} and {centre_key} {centre:g} are not those of a camera"
                continue
            if not FILE_BOUNDS.has_focal(focal, side):
                if focal > side:
                    return f"{focal_key} {focal:g} is too large for pictures of {self.width}x{self.height} pixels"
                return (
                    f"{focal_key} {focal:g} is too small for pictures of {self.width}x{self.height} pixels; it must be in "
                    "pixels, not in millimetres, and for pictures of this size"
                )
            if not FILE_BOUNDS.has_centre(centre, side):
                return (
                    f"the principal point ({self.cx:g}, {self.cy:g}) is far outside pictures of "
                    f"{self.width}x{self.height} pixels; the intrinsics must be for pictures of this size"
                )
        return None


def read_fps(value: Any, where: object, key: str = "fps") -> float:
    """`value` as frames per second.

    Raises:
        DataError: it is not a positive, finite number, or no camera has this rate.
    """
    fps = as_number(value, key, where)
    if not 1e-6 <= fps <= 1e6:
        raise DataError(f"{where}: needs {key}, frames per second, as a positive number, got {fps:g}")
    return fps


def check_rotations(rotations: np.ndarray, where: object) -> None:
    """Check matrices [N, 3, 3] that a file states as rotations.

    Raises:
        DataError: a value is not finite, or a matrix is not a rotation; the message names its number, from 1.
    """
    rotations = np.asarray(rotations, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the comparison is false for infinity and NaN
        errors = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
        wrong = ~((errors < _ROTATION_TOLERANCE) & (np.linalg.det(rotations) > 0))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{where}: the left 3x3 part of pose {row + 1} is not a rotation: {rotations[row].tolist()}")
