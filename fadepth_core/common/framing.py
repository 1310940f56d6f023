"""Geometry of a frame on its way from the camera to the published depth: sizes, crop, resize and intrinsics.

A frame has three sizes: that of the camera's image, that of the network's input, and that of the published depth. Data
sets and the engine use the same code. Torch is not imported, because engines on a CPU run without it.

Coordinates (u, v) are at the centre of the pixel in column u and row v, as in OpenCV and ROS. A resize by s therefore
moves a point to s·(u + ½) - ½.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

#: The network's input sides are multiples of this (five halvings).
STRIDE = 32
#: The paper's pixel count, 128 × 416, kept when the camera's aspect ratio differs.
PIXELS = 128 * 416
#: Frames with a side outside these bounds, in pixels, are refused: smaller ones show no scene, larger ones have a
#: corrupt header.
MIN_SIDE, MAX_SIDE = 16, 16384


class FramingError(ValueError):
    """A size is out of range or not a multiple of `STRIDE`, or the crop has too few pixels."""


def choose_network_size(camera_size: tuple[int, int], pixels: int = PIXELS) -> tuple[int, int]:
    """Network size (height, width) with about `pixels` pixels and nearly the camera's aspect ratio.

    Height and width are multiples of 32. Among the multiples near the ideal height and width, the pair with the lowest
    cost is chosen: the change of the pixel count plus twice the change of the aspect ratio, both as logarithms.

    Args:
        camera_size: (height, width) of the camera's frames, pixels.
        pixels: desired pixel count.
    """
    height, width = camera_size
    aspect = width / height

    def cost(size: tuple[int, int]) -> float:
        h, w = size
        return 2 * abs(math.log(w / h / aspect)) + abs(math.log(h * w / pixels))

    ideal_height = math.sqrt(pixels / aspect) / STRIDE
    ideal_width = math.sqrt(pixels * aspect) / STRIDE
    rows = {max(1, math.floor(ideal_height) + d) for d in (-1, 0, 1, 2)}
    columns = {max(1, math.floor(ideal_width) + d) for d in (-1, 0, 1, 2)}
    return min(((STRIDE * r, STRIDE * c) for r in rows for c in columns), key=cost)


@dataclass(frozen=True)
class Framing:
    """The crop and the resize from the camera's frames to the network's input, and the size of the published depth.

    Attributes:
        camera_size: (height, width) of the camera's frames, pixels.
        crop: (top, left, height, width) of the part that is used, camera pixels.
        network_size: (height, width) of the network's input.
        output_size: (height, width) of the published depth.
    """

    camera_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    network_size: tuple[int, int]
    output_size: tuple[int, int]

    @classmethod
    def plan(
        cls,
        camera_size: tuple[int, int],
        network_size: tuple[int, int] | None = None,
        crop_to_aspect: bool = False,
        full_resolution: bool = False,
        pixels: int = PIXELS,
    ) -> Framing:
        """Choose the sizes and the crop.

        Args:
            camera_size: (height, width), pixels.
            network_size: (height, width), multiples of 32; None chooses by `choose_network_size`.
            crop_to_aspect: crop to the largest centred part with the network's aspect ratio instead of stretching.
            full_resolution: publish depth at the size of the crop instead of the network's size.
            pixels: approximate pixel count of a network size that is chosen.

        Raises:
            FramingError: the camera's size is out of range, the network's size is not in multiples of 32, or the crop
                has a side of less than 16 pixels.
        """
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in camera_size):
            height, width = camera_size
            raise FramingError(f"image of {width}x{height} pixels; sides must be between {MIN_SIDE} and {MAX_SIDE}")
        if network_size is None:
            network_size = choose_network_size(camera_size, pixels)
        if any(side < STRIDE or side % STRIDE for side in network_size):
            raise FramingError(
                f"network size {list(network_size)} (height, width) must be positive multiples of {STRIDE}"
            )
        crop = _centred_crop(camera_size, network_size) if crop_to_aspect else (0, 0, *camera_size)
        return cls(camera_size, crop, network_size, crop[2:] if full_resolution else network_size)

    def at_network(self) -> Framing:
        """The framing of frames that are already cropped and resized to the network's size."""
        return replace(self, camera_size=self.network_size, crop=(0, 0, *self.network_size))

    def to_network(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Crop and resize an image from the camera's size to the network's size.

        An image is reduced in two steps: by bilinear interpolation to an integer multiple of the target size, then by
        averaging. One bilinear step reads only 2×2 pixels per output pixel and skips the others, which causes aliasing.
        The exported graph resizes in the same way (`resize_to_network`).

        Args:
            image: [H, W] or [H, W, C], 8-bit, at the camera's size.
            out: array for the result, [h, w] or [h, w, C]. It is not used if the crop already has the network's size.

        Returns:
            [h, w] or [h, w, C]: `out` or a new array; a view of `image` if the crop already has the network's size.
        """
        top, left, height, width = self.crop
        image = image[top : top + height, left : left + width]
        h, w = self.network_size
        if (height, width) == (h, w):
            return image
        fy, fx = box_factors((height, width), (h, w))
        if fy == fx == 1:
            return cv2.resize(image, (w, h), dst=out, interpolation=cv2.INTER_LINEAR)
        multiple = cv2.resize(image, (w * fx, h * fy), interpolation=cv2.INTER_LINEAR)
        return cv2.resize(multiple, (w, h), dst=out, interpolation=cv2.INTER_AREA)

    def depth_to_network(self, depth: np.ndarray) -> np.ndarray:
        """Sparse depth [H, W] at the camera's size -> [h, w] at the network's size; both in metres, 0 where unknown.

        If several values fall into one pixel, the smallest is kept, because the nearest surface hides the others.
        """
        top, left, height, width = self.crop
        h, w = self.network_size
        y, x = np.nonzero(depth[top : top + height, left : left + width])
        at = y * h // height, x * w // width
        out = np.full((h, w), np.inf, depth.dtype)
        np.minimum.at(out, at, depth[top + y, left + x])
        out[np.isinf(out)] = 0
        return out

    def cropped(self, image: np.ndarray) -> np.ndarray:
        """The part of an image [H, W, ...] that depth shows, as a view; an image of the network's size shows just that."""
        if image.shape[:2] != self.camera_size:
            return image
        top, left, height, width = self.crop
        return image[top : top + height, left : left + width]

    def output_intrinsics(self, matrix: np.ndarray) -> np.ndarray:
        """K [3, 3] or P [3, 4] of the camera -> that of the published depth image (float64), pixels."""
        return self._pixel_map(self.output_size) @ np.asarray(matrix, np.float64)

    def network_intrinsics(self, matrix: np.ndarray) -> np.ndarray:
        """K [3, 3] or P [3, 4] of the camera -> that of the network's input (float64), pixels."""
        return self._pixel_map(self.network_size) @ np.asarray(matrix, np.float64)

    def _pixel_map(self, size: tuple[int, int]) -> np.ndarray:
        """Affine map A [3, 3] from camera pixels to those of the crop resized to `size` (height, width): p' = A p."""
        top, left, height, width = self.crop
        sy, sx = size[0] / height, size[1] / width
        return np.array(
            [[sx, 0.0, sx * (0.5 - left) - 0.5], [0.0, sy, sy * (0.5 - top) - 0.5], [0.0, 0.0, 1.0]], np.float64
        )

    def output_pixels(self, image: np.ndarray) -> np.ndarray:
        """Crop and resize an image to the size of the published depth, e.g. for the colours of the point cloud.

        Shapes: [H, W, C] at the camera's size -> [h, w, C].
        """
        if self.output_size == self.network_size:
            return self.to_network(image)
        top, left, height, width = self.crop
        return image[top : top + height, left : left + width]


def focal_length(intrinsics: np.ndarray | Tensor) -> float:
    """sqrt(f_x·f_y) of K [3, 3] or P [3, 4], pixels."""
    return math.sqrt(float(intrinsics[0, 0] * intrinsics[1, 1]))


def box_factors(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Factors (rows, columns) of the averaging step of `Framing.to_network`, for sizes (height, width).

    They are the smallest for which the bilinear step before it reduces each side by a factor of at most two.
    """
    return max(1, math.ceil(size[0] / (2 * target[0]))), max(1, math.ceil(size[1] / (2 * target[1])))


def _centred_crop(size: tuple[int, int], network_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest centred crop (top, left, height, width) of an image of `size` with the network's aspect ratio."""
    height, width = size
    aspect = network_size[1] / network_size[0]
    crop_height, crop_width = (
        (height, round(height * aspect)) if width / height > aspect else (round(width / aspect), width)
    )
    crop_height, crop_width = min(crop_height, height), min(crop_width, width)
    if min(crop_height, crop_width) < MIN_SIDE:
        raise FramingError(
            f"an image of {width}x{height} pixels leaves {crop_width}x{crop_height} after the crop to the network's aspect "
            f"ratio; sides must be at least {MIN_SIDE}"
        )
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
