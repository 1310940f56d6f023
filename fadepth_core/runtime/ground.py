"""The scale of depth from the known height of the camera above the ground (the node's parameter `camera_height`).

Uses a few hundred points of each depth image. Does not import torch.
"""

from __future__ import annotations

import math

import numpy as np

from fadepth_core.common.pinhole import unproject

#: Largest number of points, from the lower half of the image, in which the ground is searched.
_POINTS = 400
#: Number of random planes that are tried (RANSAC).
_PLANES = 64
#: Largest slope of the ground relative to the camera; steeper planes are walls, ramps of cars, or noise.
_MAX_SLOPE = math.radians(25)
#: A point belongs to a plane when its distance is at most this share of the camera's height above the plane.
_TOLERANCE = 0.08
#: The ground must hold at least this share of the points, valid or not.
_MIN_SHARE = 0.3
#: Weight of one image in the exponential smoothing of the factor, in log scale.
_SMOOTHING = 0.15


def camera_height(depth: np.ndarray, intrinsics: np.ndarray) -> float | None:
    """Height of the camera above the ground, the plane through most points of the lower half of the image (RANSAC).

    The camera must look ahead: pitch and roll together below 25°.

    Args:
        depth: [h, w], along the optical axis; not finite where unknown.
        intrinsics: K [3, 3] of `depth`, pixels.

    Returns:
        The height, in the unit of depth; None if no plane below the camera holds enough points.
    """
    points, sampled = _lower_points(depth, intrinsics)
    needed = max(3, _MIN_SHARE * sampled)
    if len(points) < needed:
        return None
    random = np.random.default_rng(0)  # the same image gives the same height
    corners = points[random.integers(0, len(points), (_PLANES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    usable = lengths > 0
    normals = normals[usable] / lengths[usable, None]
    normals *= np.sign(normals[:, 1:2])  # y points down; so must the normal of the ground
    heights = (normals * corners[usable, 0]).sum(axis=1)
    level = (normals[:, 1] > math.cos(_MAX_SLOPE)) & (heights > 0)
    if not level.any():
        return None
    normals, heights = normals[level], heights[level]
    inside = np.abs(points @ normals.T - heights) < _TOLERANCE * heights
    best = inside.sum(axis=0).argmax()
    chosen = points[inside[:, best]]
    if len(chosen) < needed:
        return None
    # Least squares through the points of that plane: n·p = 1 with n = normal / height.
    solution, *_ = np.linalg.lstsq(chosen, np.ones(len(chosen)), rcond=None)
    return float(1 / np.linalg.norm(solution))


class GroundScale:
    """Tracks the factor that scales depth to metres.

    Args:
        height: height of the camera above the ground, metres.

    Attributes:
        factor: multiplies depth; 1 until the ground has been found.
        seen: whether the ground was found in the last image.
    """

    def __init__(self, height: float):
        self._height = height
        self.factor = 1.0
        self.seen = False
        self._ever_seen = False

    def update(self, depth: np.ndarray, intrinsics: np.ndarray) -> None:
        """Update the factor from a depth image [h, w], to which it has not been applied, with its K [3, 3]."""
        measured = camera_height(depth, intrinsics)
        self.seen = measured is not None
        if measured is None:
            return
        share = _SMOOTHING if self._ever_seen else 1.0
        self.factor *= (self._height / measured / self.factor) ** share
        self._ever_seen = True


def _lower_points(depth: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, int]:
    """Valid points [N, 3] among up to `_POINTS` pixels spread evenly over the lower half, and the number of pixels."""
    height, width = depth.shape
    step = max(1, math.isqrt(height // 2 * width // _POINTS) + 1)
    v, u = np.mgrid[height // 2 + step // 2 : height : step, step // 2 : width : step]
    z = depth[v, u]
    known = np.isfinite(z)
    return unproject(z[known], intrinsics, (u[known], v[known])), z.size
