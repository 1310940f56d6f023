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
#: The ground: largest roll of the camera, points that define it, and largest distance of a point from it as a share of
#: the camera's height. Points are used to a distance of ten heights; those beyond are not exact enough.
#: Measured on KITTI odometry 00 at 416x128: median of the factor 1.001, quartiles 0.95 and 1.03.
_MAX_ROLL, _MIN_GROUND, _ON_GROUND, _MIN_SLOPE = np.radians(20.0), 25, 0.08, 0.1
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


def ground_height(points: np.ndarray, direction: np.ndarray, seed: int = 0) -> float | None:
    """Height of a camera above the ground on which it moves, in the unit of the points.

    The ground is parallel to the camera's motion, as for a camera on wheels, so that only its height and its roll are
    unknown: a line among the points seen along the motion. The line with the most points is taken (RANSAC).

    Args:
        points: [P, 3] in the camera's frame (x right, y down, z forward).
        direction: [3] of the camera's motion, in the same frame.

    Returns:
        None if no line has enough points, or the motion is vertical.
    """
    forward = direction / np.linalg.norm(direction)
    down = np.array([0.0, 1.0, 0.0]) - forward[1] * forward
    if np.linalg.norm(down) < 0.5:
        return None
    down /= np.linalg.norm(down)
    below = points[(points @ down > _MIN_SLOPE * np.linalg.norm(points, axis=1)) & (points[:, 2] > 0)]
    if len(below) < _MIN_GROUND:
        return None
    x, y = below @ np.cross(down, forward), below @ down
    random = np.random.default_rng(seed)
    best, most = np.zeros(len(below), bool), 0
    for _ in range(_TRIALS):
        i, j = random.choice(len(below), 2, replace=False)
        slope = (y[j] - y[i]) / (x[j] - x[i]) if x[j] != x[i] else np.inf
        height = y[i] - slope * x[i]
        if abs(slope) > np.tan(_MAX_ROLL) or not height > 0:
            continue
        above = slope * x + height - y
        near = np.abs(above) < _ON_GROUND * height
        # Nothing is below the ground but wrong points. A surface with many points below it is a bonnet or a bush.
        count = int(near.sum() - (above < -4 * _ON_GROUND * height).sum())
        if count > most:
            best, most = near, count
    if best.sum() < _MIN_GROUND:
        return None
    slope, height = np.polyfit(x[best], y[best], 1)
    return float(height * np.cos(np.arctan(slope)))


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
