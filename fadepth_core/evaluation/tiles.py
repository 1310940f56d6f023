"""Pictures of one frame for the sheets of an evaluation and for the report of an adaptation.

All are BGR uint8 [h, w, 3], as OpenCV writes them.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from fadepth_core.common.pinhole import unproject
from fadepth_core.evaluation.protocols import Comparison

#: (height, width) of a map, pixels.
MAP_SIZE = (240, 320)
#: Relative error of the last colour.
WORST_ERROR = 0.5
#: OpenCV's colours of depth (the first is far) and of errors.
DEPTH_COLORS, ERROR_COLORS = cv2.COLORMAP_MAGMA, cv2.COLORMAP_TURBO

#: The smallest range is used whose map shows this share of the points.
_MAP_SHARE = 0.9
#: If a smaller share of the pixels has ground truth, each of these pixels is drawn enlarged.
_SPARSE = 0.5
#: Grey of the grid lines of a map.
_GRID = 70


class MapRange(NamedTuple):
    """Length of a map and spacing of its grid lines, metres."""

    reach: int
    spacing: int


_MAP_RANGES = (MapRange(6, 1), MapRange(20, 5), MapRange(60, 10))


def photo(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """RGB uint8 [H, W, 3] at the given (height, width)."""
    return cv2.cvtColor(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)


def depth_range(depth: np.ndarray) -> tuple[float, float]:
    """Nearest and farthest depth of the colours, metres: all but the nearest and the farthest 2 % of the pixels."""
    near, far = np.percentile(depth, (2, 98))
    return float(near), float(far)


def depth_picture(depth: np.ndarray, limits: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Depth [H, W] in metres at the given (height, width); near is bright, on a log scale between the limits."""
    picture = cv2.applyColorMap(_bytes(_nearness(depth, limits)), DEPTH_COLORS)
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)


def truth_picture(
    comparison: Comparison, limits: tuple[float, float], size: tuple[int, int], background: np.ndarray
) -> np.ndarray:
    """The true depth of the evaluated pixels in the colours of `depth_picture`.

    Args:
        background: BGR uint8 [h, w, 3] of the given size, shown where there is no truth.
    """
    level = _nearness(comparison.image.depth[comparison.valid], limits)
    return _pixels_of_truth(level, comparison.valid, size, DEPTH_COLORS, background)


def error_picture(comparison: Comparison, size: tuple[int, int], background: np.ndarray | None = None) -> np.ndarray:
    """Relative error |d - d*| / d* of the evaluated pixels, from blue (0) to red (`WORST_ERROR` and more).

    Args:
        background: BGR uint8 [h, w, 3] of the given (height, width), shown where there is no truth; None: black.
    """
    truth = comparison.image.depth[comparison.valid]
    error = np.abs(comparison.depth[comparison.valid] - truth) / truth
    black = np.zeros((*size, 3), np.uint8)
    level = (error / WORST_ERROR).clip(0, 1)
    return _pixels_of_truth(level, comparison.valid, size, ERROR_COLORS, black if background is None else background)


def expected_error_picture(error: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An expected relative error [h, w] at the given (height, width), in the colours of `error_picture`."""
    level = (cv2.resize(error, size[::-1], interpolation=cv2.INTER_LINEAR) / WORST_ERROR).clip(0, 1)
    return cv2.applyColorMap(_bytes(level), ERROR_COLORS)


def _nearness(depth: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """0 at the far limit and beyond to 1 at the near one."""
    near, far = np.log(limits)
    return ((far - np.log(depth)) / max(far - near, 1e-6)).clip(0, 1)


def _bytes(level: np.ndarray) -> np.ndarray:
    return (255 * level).astype(np.uint8)


def _pixels_of_truth(
    level: np.ndarray, valid: np.ndarray, size: tuple[int, int], colors: int, background: np.ndarray
) -> np.ndarray:
    """Colours of the levels [N] of the valid pixels, over a background."""
    rows, columns = np.nonzero(valid)
    # Several pixels may fall into one of the tile; the highest level is drawn.
    height, width = valid.shape
    rows_shown, columns_shown = min(size[0], height), min(size[1], width)
    tile = np.full((rows_shown, columns_shown), -1, np.float32)
    np.maximum.at(tile, (rows * rows_shown // height, columns * columns_shown // width), level)
    if valid.mean() < _SPARSE:
        tile = cv2.dilate(tile, np.ones((3, 3), np.uint8))  # LiDAR points are single pixels and hard to see
    tile = cv2.resize(tile, size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.where((tile < 0)[..., None], background, cv2.applyColorMap(_bytes(tile.clip(0, 1)), colors))


def map_range(depth: np.ndarray) -> MapRange:
    """The range of a map of depths of any shape, metres: the first of 6, 20 and 60 m within which at least 90 % of the
    depths below 60 m are."""
    known = depth[depth < _MAP_RANGES[-1].reach]
    fitting = (choice for choice in _MAP_RANGES if known.size and (known < choice.reach).mean() >= _MAP_SHARE)
    return next(fitting, _MAP_RANGES[-1])


def map_from_above(
    image: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, shown: MapRange | None = None
) -> np.ndarray:
    """The points of a depth image seen from above, in the colours of their pixels: BGR uint8 [*MAP_SIZE, 3].

    The camera is at the middle of the lower edge; x points right, z up, at the same scale. Farther points than the end of
    the map are left out. Of several points in one place the highest is drawn.

    Shapes: RGB uint8 [H, W, 3], depth [H, W] in metres, K [3, 3].

    Args:
        shown: None: `map_range` of the depth.
    """
    height, width = MAP_SIZE
    reach, spacing = shown or map_range(depth)
    scale = height / reach
    x, y, _ = np.moveaxis(unproject(depth, intrinsics), -1, 0)
    picture = np.zeros((height, width, 3), np.uint8)
    middle = width // 2
    for metres in range(0, reach, spacing):
        at = round(scale * metres)
        picture[height - 1 - at] = _GRID
        picture[:, [middle - at, middle + at] if at < middle else []] = _GRID
    row, column = height - 1 - scale * depth, middle + scale * x
    inside = (row > -0.5) & (np.abs(column - (width - 1) / 2) < width / 2)
    highest_last = np.argsort(-y[inside], kind="stable")
    rows, columns = (np.rint(places[inside][highest_last]).astype(int) for places in (row, column))
    picture[rows, columns] = image[inside][highest_last][:, ::-1]
    for metres in range(spacing, reach, spacing):
        at = round(scale * metres)
        _write_label(picture, f"{metres} m", (2, height - 3 - at))
        if at < middle - 20:
            for sign in (-1, 1):
                _write_label(picture, str(sign * metres), (middle + sign * at + 2, height - 4))
    return picture


def _write_label(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.3, (200, 200, 200), 1, cv2.LINE_AA)
