"""Rectification: from the picture of a lens with distortion to that of a pinhole camera, by a sensor_msgs/CameraInfo.

Distortion models are those of ROS (sensor_msgs/distortion_models.hpp), their formulas OpenCV's (modules calib3d and
fisheye). `Rectification` gives pictures of the camera's size, `RectifiedFraming` the network's input in one step. Does not
import torch or ROS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.framing import Framing

#: Brown's polynomial with 4, 5, 8, 12 or 14 coefficients; with 8 and more it has a denominator.
_POLYNOMIAL = {"plumb_bob", "rational_polynomial", "thin_prism", "brown_conrady", "radtan"}
_POLYNOMIAL_COUNTS = (4, 5, 8, 12, 14)
#: The angle of a viewing ray as an odd polynomial (Kannala and Brandt 2006), 4 coefficients.
_FISHEYE = {"equidistant", "fisheye", "kannala_brandt4"}
#: Largest angle between the optical axis and the sides of a picture whose K is chosen here, degrees. A pinhole picture of a
#: wider angle would mostly consist of its stretched border.
_WIDEST = 60.0
#: In the name of a topic: its pictures are rectified already (image_proc: image_rect, image_rect_color).
_RECTIFIED_NAME = re.compile(r"(?:^|[/_])rect(?:ified)?(?:[/_]|$)")
#: Where the ray of a pixel was found, it leads back to the pixel with less than this error, pixels.
_SOLVED = 0.1
#: How `RectifiedFraming` samples: a halved picture stays this much finer than the network's input; up to this much finer, one
#: sample a pixel is enough.
_FINER, _SAME_SCALE = 1.6, 1.2
#: Differences below this are rounding: of K and P, pixels; of a rotation, radians.
_SAME_PIXELS, _SAME_ANGLE = 1e-3, 1e-6


@dataclass(frozen=True, eq=False)
class Calibration:
    """A camera as sensor_msgs/CameraInfo describes it.

    Attributes:
        size: (height, width) of the pictures, pixels.
        model: the distortion model's name.
        distortion: D, the model's coefficients.
        matrix: K [3, 3] of the picture with distortion, pixels.
        rotation: R [3, 3] from the camera to the rectified camera.
        projection: P [3, 4] of the rectified picture; zero where the message has none.
        where: the topic or file that states it, for error messages.

    Raises:
        DataError: the model is not known, or numbers are missing, not finite or not those of a camera.
    """

    size: tuple[int, int]
    model: str
    distortion: np.ndarray
    matrix: np.ndarray
    rotation: np.ndarray
    projection: np.ndarray
    where: object = "camera_info"

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise DataError(f"{self.where}: {problem}")

    def _problem(self) -> str | None:
        values = (self.distortion, self.matrix, self.rotation, self.projection)
        if not all(np.isfinite(value).all() for value in values):
            return "a number is not finite"
        if self.matrix[0, 0] == 0:
            return "K is zero: the camera is not calibrated"
        if not (self.matrix[0, 0] > 0 and self.matrix[1, 1] > 0):
            return f"K states focal lengths of {self.matrix[0, 0]:g} and {self.matrix[1, 1]:g} pixels"
        if not self.distorted:
            return None
        if self.model in _FISHEYE:
            return (
                None
                if len(self.distortion) == 4
                else f"'{self.model}' needs 4 coefficients, D has {len(self.distortion)}"
            )
        if self.model not in _POLYNOMIAL:
            known = ", ".join(sorted(_POLYNOMIAL | _FISHEYE))
            return (
                f"distortion model '{self.model[:40]}' is not supported (known: {known}); rectify the pictures before"
            )
        if len(self.distortion) not in _POLYNOMIAL_COUNTS:
            return f"'{self.model}' with {len(self.distortion)} coefficients; known are {_POLYNOMIAL_COUNTS}"
        return None

    @property
    def distorted(self) -> bool:
        """Whether the lens has distortion: a coefficient is not zero."""
        return bool(np.any(self.distortion))

    @property
    def rectified_matrix(self) -> np.ndarray | None:
        """The left part of P [3, 3], or None if the message has no P: zero, or the identity."""
        matrix = self.projection[:, :3]
        return None if matrix[0, 0] == 0 or np.array_equal(matrix, np.eye(3)) else matrix

    @property
    def baseline(self) -> float:
        """Metres from the left camera of a stereo pair to this one, from P; 0 for a single camera and for the left one."""
        return 0.0 if self.rectified_matrix is None else float(-self.projection[0, 3] / self.projection[0, 0])

    def for_pictures(self, size: tuple[int, int], pictures: object) -> Calibration:
        """The calibration of pictures that are reduced or enlarged as a whole.

        Args:
            size: (height, width) of the pictures.
            pictures: what has this size, for error messages.

        Raises:
            DataError: one size is not a whole multiple of the other.
        """
        (height, width), (h, w) = self.size, size
        if (height, width) == (h, w):
            return self
        small, large = sorted([(h, w), (height, width)])
        if not all(small) or large[0] % small[0] or large[0] * small[1] != large[1] * small[0]:
            raise DataError(
                f"{self.where}: for {width}x{height} pixels, but {pictures} has {w}x{h}, which is neither this size nor a "
                "whole multiple or part of it"
            )
        s = h / height
        scale = np.array([[s, 0, (s - 1) / 2], [0, s, (s - 1) / 2], [0, 0, 1]])  # pixel centres at whole numbers
        return replace(self, size=size, matrix=scale @ self.matrix, projection=scale @ self.projection)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Viewing rays (x/z, y/z) of pixels with distortion, [N, 2] -> [N, 2], in the camera's frame.

        NaN where the lens model leads no ray to the pixel.
        """
        points = np.asarray(pixels, np.float64).reshape(-1, 1, 2)
        if not self.distorted:
            return ((points - self.matrix[:2, 2]) / np.diag(self.matrix)[:2]).reshape(-1, 2)
        # OpenCV's default, 5 iterations, is wrong by 0.1 pixels in the corners of a lens of 90 degrees.
        precise = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)
        if self.model in _FISHEYE:
            rays = cv2.fisheye.undistortPoints(points, self.matrix, self.distortion, criteria=precise)
            back = cv2.fisheye.distortPoints(rays, self.matrix, self.distortion)
        else:
            rays = cv2.undistortPoints(points, self.matrix, self.distortion, None, None, criteria=precise)
            in_space = np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)
            back = cv2.projectPoints(in_space, np.zeros(3), np.zeros(3), self.matrix, self.distortion)[0]
        rays[np.abs(back - points).max(axis=-1) > _SOLVED] = np.nan
        return rays.reshape(-1, 2)


def named_rectified(topic: str) -> bool:
    """Whether a topic's name says that its pictures are rectified: `image_rect`, `image_rect_color`."""
    return _RECTIFIED_NAME.search(topic) is not None


class Rectification:
    """The rectified pictures of a camera.

    Args:
        calibration: of the pictures that will be given.
        rectified: these pictures are rectified already, so that P alone describes them.

    Attributes:
        size: (height, width) of the rectified pictures: that of the given ones.
        matrix: K [3, 3] of the rectified pictures, pixels.
        rotation: R [3, 3], from the camera's frame to that of the rectified pictures.
        needed: False if the rectified picture is the given one.
        chosen: whether `matrix` was chosen here, because the calibration has no P. Then all pixels are inside the given
            picture, unless the lens model says nothing of the picture's border, and pixels are square.
    """

    def __init__(self, calibration: Calibration, rectified: bool = False):
        self._calibration = calibration
        self.size = calibration.size
        self.rotation = calibration.rotation if abs(np.linalg.det(calibration.rotation) - 1) < 0.1 else np.eye(3)
        stated = calibration.rectified_matrix
        self.chosen = stated is None and calibration.distorted and not rectified
        if stated is not None:
            self.matrix = stated
        elif self.chosen:
            self.matrix, self.rotation = _largest_inside(calibration), np.eye(3)
        else:
            self.matrix = calibration.matrix
        same = np.abs(self.matrix - calibration.matrix).max() < _SAME_PIXELS
        turned = np.abs(self.rotation - np.eye(3)).max() > _SAME_ANGLE
        self.needed = not rectified and bool(calibration.distorted or turned or not same)

    @cached_property
    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """For each rectified pixel, where it is in the given picture: OpenCV's maps for `cv2.remap`."""
        return self._maps(self.matrix, self.size, cv2.CV_16SC2)

    def positions(self, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Where the pixels of a pinhole picture are in the given picture.

        Args:
            matrix: K [3, 3] of the pinhole picture, which has the rotation of the rectified one.
            size: (height, width) of the pinhole picture.

        Returns:
            (x, y) [height, width, 2] float32, pixels of the given picture; far outside it where the lens model says
            nothing.
        """
        height, width = self.size
        positions = np.stack(self._maps(matrix, size, cv2.CV_32FC1), axis=-1)
        # A whole pixel outside is enough to be told from the border; OpenCV's remap takes 16-bit coordinates.
        outside = np.array([2 * width, 2 * height], np.float32)
        return np.clip(np.nan_to_num(positions, nan=-width), -outside, outside, dtype=np.float32)

    def _maps(self, matrix: np.ndarray, size: tuple[int, int], kind: int) -> tuple[np.ndarray, np.ndarray]:
        calibration = self._calibration
        make = cv2.fisheye.initUndistortRectifyMap if calibration.model in _FISHEYE else cv2.initUndistortRectifyMap
        distortion = calibration.distortion if calibration.distorted else np.zeros(4)
        return make(calibration.matrix, distortion, self.rotation, matrix, size[::-1], kind)

    def __call__(self, picture: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        """Rectify a picture [H, W] or [H, W, C]; pixels outside the given picture become 0.

        Raises:
            DataError: it has another size than the calibration.
        """
        if picture.shape[:2] != self.size:
            (h, w), (height, width) = picture.shape[:2], self.size
            raise DataError(f"{self._calibration.where}: for {width}x{height} pixels, but a picture has {w}x{h}")
        if not self.needed:
            return picture
        return cv2.remap(picture, *self.maps, interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=0)

    @property
    def inside(self) -> float:
        """Share of the rectified picture that the given picture covers, from 0 to 1."""
        if not self.needed:
            return 1.0
        return float((self(np.full(self.size, 255, np.uint8)) > 0).mean())


class RectifiedFraming:
    """Rectifies, crops and resizes pictures of a camera in one step.

    Several pixels of the picture are averaged for each pixel of the network, as in `Framing.to_network`. The picture is first
    halved (2x2 averages), as often as it stays at least 1.6 times finer than the network's input. It is then sampled at twice
    the network's size, and 2x2 samples are averaged. From 1280x720 on this takes less time than the resize, and the network's
    depth has the same error: docs/rectification.md.

    Args:
        rectification: of the camera's pictures.
        framing: from the rectified pictures to the network's input; its `camera_size` is that of the pictures.

    Attributes:
        outside: [h, w] bool at the framing's output size, true where the picture shows nothing: its depth means nothing. None
            if the picture covers all.
    """

    def __init__(self, rectification: Rectification, framing: Framing):
        self._rectification, self._framing = rectification, framing
        shrinking = self._shrinking()
        self._halvings = 0
        while shrinking >= 2 * _FINER:
            shrinking /= 2
            self._halvings += 1
        self._samples = 1 if shrinking < _SAME_SCALE else 2
        h, w = framing.network_size
        positions = (self._positions((self._samples * h, self._samples * w)) + 0.5) / 2**self._halvings - 0.5
        self._maps = cv2.convertMaps(positions[..., 0], positions[..., 1], cv2.CV_16SC2)
        outside = self._not_covered()
        self.outside = outside if outside.any() else None

    def to_network(self, picture: np.ndarray) -> np.ndarray:
        """[H, W] or [H, W, C], 8 or 16 bit, at the camera's size -> [h, w] or [h, w, C] at the network's size.

        Pixels outside the picture get the colour of its border. A black area would have an edge that is not in the scene.
        """
        for _ in range(self._halvings):
            h, w = picture.shape[0] // 2, picture.shape[1] // 2
            picture = cv2.resize(picture[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA)
        positions, weights = self._maps
        picture = cv2.remap(picture, positions, weights, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if self._samples == 1:
            return picture
        return cv2.resize(picture, self._framing.network_size[::-1], interpolation=cv2.INTER_AREA)

    def to_camera(self, picture: np.ndarray) -> np.ndarray:
        """The rectified picture at the camera's size, for engines that crop and resize it themselves. Pixels outside the picture
        are as those of `to_network`."""
        return cv2.remap(picture, *self._rectification.maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _positions(self, size: tuple[int, int]) -> np.ndarray:
        """`Rectification.positions` of the rectified picture's crop, resized to `size` (height, width)."""
        matrix = replace(self._framing, network_size=size).network_intrinsics(self._rectification.matrix)
        return self._rectification.positions(matrix, size)

    def _shrinking(self) -> float:
        """Pixels of the picture to a side of a pixel of the network: the median over the network's input."""
        areas = np.abs(_jacobian(self._positions(self._framing.network_size)))
        return float(np.sqrt(np.median(areas)))

    def _not_covered(self) -> np.ndarray:
        """`outside`, also where it is true nowhere."""
        height, width = self._rectification.size
        positions = self._positions(self._framing.output_size)
        x, y = positions[..., 0], positions[..., 1]
        covered = (x > -0.5) & (y > -0.5) & (x < width - 0.5) & (y < height - 0.5)
        # Beyond a certain angle many polynomials lead back into the picture, first mirrored, then turned. So only the pixels
        # around the optical axis are counted, up to the first one where the map is mirrored.
        covered &= _jacobian(positions) > 0
        _, areas = cv2.connectedComponents(covered.astype(np.uint8), connectivity=4)
        axis = self._framing.output_intrinsics(self._rectification.matrix) @ self._rectification.rotation[:, 2]
        column, row = np.clip(np.rint(axis[:2] / axis[2]), 0, np.array(covered.shape[::-1]) - 1).astype(int)
        return ~covered if areas[row, column] == 0 else areas != areas[row, column]


def _jacobian(positions: np.ndarray) -> np.ndarray:
    """Determinant of the derivative of a map [h, w, 2], [h, w]: how much larger areas are in the picture it leads to."""
    rows, columns = np.gradient(positions, axis=(0, 1))
    return columns[..., 0] * rows[..., 1] - columns[..., 1] * rows[..., 0]


def _largest_inside(calibration: Calibration) -> np.ndarray:
    """K [3, 3] of the pinhole picture with square pixels that shows as much as possible without leaving the given picture."""
    height, width = calibration.size
    columns, rows = np.linspace(0, width - 1, 65), np.linspace(0, height - 1, 65)

    def rays(x: np.ndarray | float, y: np.ndarray | float, axis: int) -> np.ndarray:
        """Coordinate of the rays along a side; far outside where the model says nothing: a lens wider than 180 degrees."""
        found = calibration.normalise(np.stack(np.broadcast_arrays(x, y), axis=-1))[:, axis]
        far = np.sign([np.mean(x) - (width - 1) / 2, np.mean(y) - (height - 1) / 2][axis]) * 1e3
        return np.where(np.isfinite(found) & (found * far > 0), found, far)

    edge = np.tan(np.radians(_WIDEST))
    left, right = max(rays(0, rows, 0).max(), -edge), min(rays(width - 1, rows, 0).min(), edge)
    top, bottom = max(rays(columns, 0, 1).max(), -edge), min(rays(columns, height - 1, 1).min(), edge)
    if not (left < 0 < right and top < 0 < bottom):
        raise DataError(f"{calibration.where}: with this distortion no rectified picture lies inside the given one")
    focal = max((width - 1) / (right - left), (height - 1) / (bottom - top))
    # The part that is cropped, because pixels are square, is cropped on both sides alike.
    centre = (width - 1) / 2 - focal * (left + right) / 2, (height - 1) / 2 - focal * (top + bottom) / 2
    return np.array([[focal, 0.0, centre[0]], [0.0, focal, centre[1]], [0.0, 0.0, 1.0]])
