"""Metric scale of a trajectory from structure from motion: path lengths, speed, camera height, or depth of frames.

The scale of a long trajectory drifts. Labels need it to be right locally, so the factor is a smooth function along the
trajectory: the running median of measured factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

#: A factor is the median over this many measurements on either side: for path lengths, and for measurements of one
#: frame, which are less exact.
PATH_WINDOW, FRAME_WINDOW = 8, 30
#: The ground: largest angle between its normal and the camera's downward axis in degrees, points that define it, and
#: largest distance of a point from it as a share of the camera's height.
_MAX_TILT, _MIN_GROUND, _ON_GROUND = 20.0, 25, 0.05
_TRIALS = 200


def smooth_factors(frames: Sequence[int], factors: np.ndarray, at: Sequence[int], window: int) -> np.ndarray:
    """Running median of measured factors, smoothed and interpolated.

    Args:
        frames: F frame numbers of the measurements, ascending.
        factors: [F] measured factors, > 0.
        at: frame numbers at which the factor is wanted.
        window: measurements on either side of the median, and of the mean of the medians.

    Returns:
        Factors at `at`.
    """
    logs = np.log(factors)
    medians = np.array([np.median(logs[max(0, i - window) : i + window + 1]) for i in range(len(logs))])
    means = np.array([medians[max(0, i - window) : i + window + 1].mean() for i in range(len(logs))])
    return np.exp(np.interp(at, frames, means))


def rescaled(poses: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Poses [K, 4, 4] with each step multiplied by the mean factor of its two ends; the first pose stays."""
    result = poses.copy()
    steps = np.diff(poses[:, :3, 3], axis=0) * ((factors[1:] + factors[:-1]) / 2)[:, None]
    result[1:, :3, 3] = poses[0, :3, 3] + np.cumsum(steps, axis=0)
    return result


def path_factors(positions: np.ndarray, lengths: np.ndarray, frames: Sequence[int]) -> tuple[list[int], np.ndarray]:
    """Factors of the steps between keyframes from known lengths.

    Steps are left out in which the camera hardly moves by either measure (a tenth of the median).

    Args:
        positions: [K, 3] of the keyframes, in the trajectory's unit.
        lengths: [K - 1] metres between them, NaN where unknown.
        frames: K frame numbers.

    Returns:
        The measured frame numbers and their factors.
    """
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    known = np.isfinite(lengths)
    if not known.any():
        return [], np.zeros(0)
    moving = known & (steps > 0.1 * np.median(steps))
    moving &= lengths > 0.1 * np.median(lengths[known])
    chosen = np.flatnonzero(moving)
    return [int(frames[int(i)]) for i in chosen], lengths[chosen] / steps[chosen]


def ground_height(points: np.ndarray, seed: int = 0) -> float | None:
    """Height of a camera above the ground, in the unit of the points.

    The ground is the plane with the most points (RANSAC) among those below the camera whose normal is near the camera's
    downward axis.

    Args:
        points: [P, 3] in the camera's frame (x right, y down, z forward).

    Returns:
        None if no plane has enough points.
    """
    below = points[(points[:, 1] > 0.05 * points[:, 2]) & (points[:, 2] > 0)]
    if len(below) < _MIN_GROUND:
        return None
    random = np.random.default_rng(seed)
    best, most = np.zeros(len(below), bool), 0
    for _ in range(_TRIALS):
        plane = _plane(below[random.choice(len(below), 3, replace=False)])
        if plane is None:
            continue
        normal, height = plane
        near = np.abs(below @ normal - height) < _ON_GROUND * height
        # Nothing is below the ground, up to noise and wrong points: a plane through bonnets or bushes is not the ground.
        under = (below @ normal > height * (1 + 4 * _ON_GROUND)).sum()
        if near.sum() - under > most:
            best, most = near, int(near.sum() - under)
    if best.sum() < _MIN_GROUND:
        return None
    fitted = _plane(below[best])
    return None if fitted is None else fitted[1]


def _plane(points: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Plane n·X = h through points, n downwards; None if it is too steep or above the camera."""
    centre = points.mean(0)
    normal = np.linalg.svd(points - centre)[2][2]
    normal = normal * (1.0 if normal[1] > 0 else -1.0)
    height = float(normal @ centre)
    if height <= 0 or normal[1] < np.cos(np.radians(_MAX_TILT)):
        return None
    return normal, height


def depth_factor(pixels: np.ndarray, depth: np.ndarray, reference: np.ndarray) -> float | None:
    """Median ratio of a frame's reference depth to its points' depth; None with fewer than 10 points.

    Args:
        pixels: [T, 2] where the points are in the reference, pixels.
        depth: [T] in the trajectory's unit.
        reference: depth [h, w] in metres, 0 or NaN where unknown.
    """
    column, row = np.round(pixels).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < reference.shape[1]) & (row < reference.shape[0])
    values = reference[row[inside], column[inside]]
    known = np.isfinite(values) & (values > 0)
    if known.sum() < 10:
        return None
    return float(np.median(values[known] / depth[inside][known]))


def step_lengths(
    frames: Sequence[int], times: np.ndarray, speeds: np.ndarray | None, poses: np.ndarray | None
) -> np.ndarray:
    """Metres that the camera moves between frames: [K - 1] for K frame numbers, NaN where unknown.

    Along the path of the poses, if given, else by the speeds (trapezoidal rule).
    """
    if poses is not None:
        steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    elif speeds is not None:
        steps = (speeds[1:] + speeds[:-1]) / 2 * np.diff(times)
    else:
        raise ValueError("needs speeds or poses")
    return np.array([steps[a:b].sum() for a, b in pairwise(frames)])


def is_constant(values: np.ndarray) -> bool:
    """Whether all known values are equal, as those of a speed that is stated once for a whole clip."""
    known = values[np.isfinite(values)]
    return bool(len(known)) and bool((known == known[0]).all())
