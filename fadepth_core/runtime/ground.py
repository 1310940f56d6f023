"""The scale of depth from something every robot knows: how high its camera is above the ground.

No torch here: this runs beside every engine, on a few hundred points of its answer.
"""

from __future__ import annotations

import math

import numpy as np

#: The ground is looked for in this many points at most, of the lower half of the picture.
_POINTS = 400
_PLANES = 64
#: Steeper planes are walls, ramps of cars, or noise.
_STEEPEST = math.radians(25)
#: A point belongs to a plane when it is off by at most this share of the camera's height above it.
_TOLERANCE = 0.08
#: Less than this share of the points, measured or not, on one plane is no ground.
_LEAST = 0.3
#: Share of the way that one look takes the factor towards what it saw.
_SMOOTHING = 0.15


def camera_height(depth: np.ndarray, intrinsics: np.ndarray) -> float | None:
    """How high the camera is above the plane that much of the picture's lower half lies on, in the units of depth.

    The camera looks ahead: pitch and roll together below 25°.

    Args:
        depth: [h, w], along the optical axis; not finite where nothing was measured.
        intrinsics: K [3, 3] of `depth`, pixels.

    Returns:
        None where no plane below the camera holds enough of the points.
    """
    points, looked_at = _lower_points(depth, intrinsics)
    needed = max(3, _LEAST * looked_at)
    if len(points) < needed:
        return None
    random = np.random.default_rng(0)  # the same picture gives the same answer
    corners = points[random.integers(0, len(points), (_PLANES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    usable = lengths > 0
    normals = normals[usable] / lengths[usable, None]
    normals *= np.sign(normals[:, 1:2])  # y points down, and so does the normal of the ground
    heights = (normals * corners[usable, 0]).sum(axis=1)
    level = (normals[:, 1] > math.cos(_STEEPEST)) & (heights > 0)
    if not level.any():
        return None
    normals, heights = normals[level], heights[level]
    inside = np.abs(points @ normals.T - heights) < _TOLERANCE * heights
    best = inside.sum(axis=0).argmax()
    chosen = points[inside[:, best]]
    if len(chosen) < needed:
        return None
    # Least squares through the chosen ones: n·p = 1 with n = normal / height.
    solution, *_ = np.linalg.lstsq(chosen, np.ones(len(chosen)), rcond=None)
    return float(1 / np.linalg.norm(solution))


class GroundScale:
    """Follows the factor that puts the ground where it is.

    Args:
        height: of the camera above the ground, metres.

    Attributes:
        factor: what depth has to be multiplied with; 1 until the ground has been seen.
        seen: whether the ground was found in the last picture.
    """

    def __init__(self, height: float):
        self._height = height
        self.factor = 1.0
        self.seen = False
        self._ever_seen = False

    def update(self, depth: np.ndarray, intrinsics: np.ndarray) -> None:
        """Look at a depth image [h, w] with its K [3, 3], before this factor was applied."""
        measured = camera_height(depth, intrinsics)
        self.seen = measured is not None
        if not self.seen:
            return
        share = _SMOOTHING if self._ever_seen else 1.0
        self.factor *= (self._height / measured / self.factor) ** share
        self._ever_seen = True


def _lower_points(depth: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, int]:
    """Points [N, 3] of up to `_POINTS` pixels evenly spread over the lower half, and the number of those pixels."""
    height, width = depth.shape
    step = max(1, math.isqrt(height // 2 * width // _POINTS) + 1)
    v, u = np.mgrid[height // 2 + step // 2 : height : step, step // 2 : width : step]
    z = depth[v, u].ravel()
    x = (u.ravel() - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (v.ravel() - intrinsics[1, 2]) / intrinsics[1, 1]
    known = np.isfinite(z)
    return np.stack([x, y, np.ones_like(x)], axis=1)[known] * z[known, None], z.size
