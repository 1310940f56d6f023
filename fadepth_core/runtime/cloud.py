"""What a point cloud keeps of the points of a depth image, and with which fields (the node's parameters `points.*`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Half the width, in pixels of the network's size, over which a depth edge is compared with the slope of its surroundings. The
#: network's edges are 4 to 8 pixels wide.
_SURROUNDINGS = 6
#: A surface, e.g. a road, goes on with its slope; an edge is steeper than its surroundings. This is the limit of the ratio.
_EVEN = 0.7


@dataclass(frozen=True)
class CloudOptions:
    """Options of a cloud.

    Attributes:
        fields: a key of `messages.outgoing.CLOUD_FIELDS`.
        stride: keep every n-th point of every n-th row.
        z_range: nearest and farthest z to keep, metres.
        max_range: largest distance from the camera to keep, metres.
        edge_threshold: points on depth edges are dropped (`depth_edges`); 0 keeps them.
        voxel_size: keep one point per cube of this side, metres; 0 keeps all.
    """

    fields: str = "xyzrgb"
    stride: int = 1
    z_range: tuple[float, float] = (0.0, math.inf)
    max_range: float = math.inf
    edge_threshold: float = 0.0
    voxel_size: float = 0.0

    def dropped(self, points: np.ndarray, pixel: int = 1) -> np.ndarray | None:
        """Which points [h, w, 3] to drop, bool at every `stride`-th row and column; None for none.

        Args:
            pixel: number of rows and columns of points for one of the network.
        """
        every = slice(None, None, self.stride)
        kept = points[every, every]
        masks = []
        near, far = self.z_range
        if near > 0:
            masks.append(kept[..., 2] < near)
        if far < math.inf:
            masks.append(kept[..., 2] > far)
        if self.max_range < math.inf:
            masks.append(np.einsum("hwc,hwc->hw", kept, kept) > self.max_range**2)
        if self.edge_threshold > 0:
            masks.append(depth_edges(points[..., 2], self.edge_threshold, pixel)[every, every])
        return np.logical_or.reduce(masks) if masks else None


def depth_edges(depth: np.ndarray, threshold: float, pixel: int = 1) -> np.ndarray:
    """Pixels between a near and a far surface, bool [h, w]: their points float in the air ("flying pixels").

    A pixel is on an edge if depth changes there, along the row or the column, by more than the share `threshold` per pixel
    of the network, and less steeply in its surroundings. The second condition keeps surfaces seen at a flat angle, such as
    the far road: inverse depth of a plane has the same slope everywhere.

    Args:
        depth: [h, w] float32, metres; NaN where unknown.
        pixel: number of pixels of `depth` for one of the network.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.float32(1) / depth
        edges = np.zeros(depth.shape, bool)
        for axis in (0, 1):
            steep = _slope(inverse, axis, pixel)
            even = _slope(inverse, axis, _SURROUNDINGS * pixel)
            edges |= (pixel * steep > threshold * inverse) & (even < np.float32(_EVEN) * steep)
    return edges


def _slope(values: np.ndarray, axis: int, reach: int) -> np.ndarray:
    """Absolute change per pixel from `reach` pixels before to `reach` pixels after each pixel; less at the border."""
    count = values.shape[axis]
    place = np.arange(count)
    before, after = np.maximum(place - reach, 0), np.minimum(place + reach, count - 1)
    shape = (-1, 1) if axis == 0 else (1, -1)
    distance = np.maximum(after - before, 1).astype(np.float32).reshape(shape)
    return np.abs(values.take(after, axis) - values.take(before, axis)) / distance


def downsample(points: np.ndarray, values: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """One point for each cube of a grid that holds points: their mean.

    Args:
        points: [N, 3] float32, metres, finite.
        values: [N, C] of any type that belong to the points, e.g. colours.
        size: side of a cube, metres.

    Returns:
        [M, 3] and [M, C] float32, in the order of the cubes.
    """
    if not len(points):
        return points, values.astype(np.float32)
    # Column by column: numpy is several times slower along rows of three.
    keys = np.zeros(len(points), np.int64)
    for column in points.T:
        cells = np.floor(column / np.float32(size)).astype(np.int64)
        cells -= cells.min()
        keys = keys * (int(cells.max()) + 1) + cells
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    counts = np.diff(np.append(starts, len(keys))).astype(np.float32)
    means = np.empty((len(starts), 3 + values.shape[1]), np.float32)
    for index, column in enumerate([*points.T, *values.T]):
        means[:, index] = np.add.reduceat(column[order], starts, dtype=np.float32) / counts
    return means[:, :3], means[:, 3:]
