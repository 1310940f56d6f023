"""Proposes the depth of the nearest plane of multi-view stereo, from points tracked through a clip with known poses.

The planes of a sweep lie between the nearest depth and infinity. If the nearest depth is too large, near surfaces are
missed; if it is too small, the planes are wasted on empty space and the baselines, which follow from it, are too short.
"""

from __future__ import annotations

import cv2
import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.data.video import Clip

#: Number of frames, spread over the clip, from which points are tracked, of points in each, and of frames through which
#: they are tracked.
_FRAMES, _POINTS, _LONGEST = 32, 400, 30
#: A point is triangulated as soon as its parallax is this share of the image's width. Near points leave the image soon.
_PARALLAX = 0.008
#: A tracked point is used if tracking it back ends within this distance of its start, and if its epipolar line is
#: within this distance, pixels.
_MAX_RETURN, _MAX_EPIPOLAR = 0.5, 0.8
#: The proposal is this share of this percentile of the points' depth. Points are seldom on the very nearest surface.
_MARGIN, _PERCENTILE = 0.55, 2.0
#: Fewer points do not show what the scenes are like.
_ENOUGH_POINTS = 100


def nearest_depth(clip: Clip) -> float:
    """Depth of the nearest plane for the scenes of a clip, metres, for `write_stereo`.

    Args:
        clip: a clip with poses.

    Raises:
        DataError: the clip has no poses, or too few points could be triangulated.
    """
    if clip.poses is None:
        raise DataError(f"{clip.camera}: has no poses, which are needed to measure depth")
    known = np.flatnonzero(np.isfinite(clip.poses).all(axis=(1, 2)))
    starts = known[np.linspace(0, len(known) - 1, min(_FRAMES, len(known))).astype(int)]
    depths = np.concatenate([_point_depths(clip, int(start)) for start in starts])
    if len(depths) < _ENOUGH_POINTS:
        raise DataError(
            f"{clip.path}: only {len(depths)} points could be triangulated, {_ENOUGH_POINTS} are needed to propose the "
            "nearest depth; the camera moves too little, or its poses do not fit its frames"
        )
    return _MARGIN * float(np.percentile(depths, _PERCENTILE))


def _point_depths(clip: Clip, start: int) -> np.ndarray:
    """Depths of points of frame `start`, metres."""
    assert clip.poses is not None
    grey = _grey(clip, start)
    corners = cv2.goodFeaturesToTrack(grey, _POINTS, 0.01, max(3, clip.size[1] // 60))
    found: list[np.ndarray] = []
    if corners is None:
        return np.empty(0)  # type: ignore[unreachable]  # OpenCV's annotation does not know None
    first = points = corners.reshape(-1, 2)
    for number in range(start + 1, min(start + _LONGEST, clip.count)):
        following = _grey(clip, number)
        points, tracked = _track(grey, following, points)
        grey, first, points = following, first[tracked], points[tracked]
        motion = np.linalg.inv(clip.poses[number]) @ clip.poses[start]
        if np.isfinite(motion).all():
            depth, parallax = _triangulate(first, points, motion, clip.intrinsics)
            ready = parallax >= _PARALLAX * clip.size[1]
            found.append(depth[ready & (depth > 0)])
            first, points = first[~ready], points[~ready]
        if not len(points):
            break
    return np.concatenate(found) if found else np.empty(0)


def _grey(clip: Clip, number: int) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(clip.source.frame(number)), cv2.COLOR_RGB2GRAY)


def _track(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 2] of one grey image in the next, and whether tracking them back ends where it began, bool [N]."""
    found, status, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None)  # type: ignore[call-overload]
    back, _, _ = cv2.calcOpticalFlowPyrLK(after, before, found, None)  # type: ignore[call-overload]
    return found, (status[:, 0] > 0) & (np.linalg.norm(back - points, axis=1) < _MAX_RETURN)


def _triangulate(
    first: np.ndarray, last: np.ndarray, motion: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Depth of points, 0 where they are off their epipolar line or behind the camera, and their parallax in pixels.

    Args:
        first, last: their pixels [N, 2] in two views.
        motion: T_{first→last} [4, 4], metres.
        intrinsics: K [3, 3].
    """
    homogeneous = np.concatenate([first, np.ones((len(first), 1))], axis=1)
    rotated = homogeneous @ (intrinsics @ motion[:3, :3] @ np.linalg.inv(intrinsics)).T
    shift = intrinsics @ motion[:3, 3]
    # The point at inverse depth d is at (rotated + d·shift) in homogeneous pixels. Where it is at `last`, the cross
    # product of both is zero; its first two components are linear in d. Least squares.
    constant = rotated[:, :2] - last * rotated[:, 2:]
    slope = shift[:2] - last * shift[2]
    inverse = -(constant * slope).sum(axis=1) / np.maximum((slope * slope).sum(axis=1), 1e-12)
    distance = np.linalg.norm(constant + inverse[:, None] * slope, axis=1)
    parallax = np.linalg.norm(last - rotated[:, :2] / rotated[:, 2:], axis=1)
    fits = (distance < _MAX_EPIPOLAR) & (inverse > 0)
    return np.where(fits, 1 / np.where(fits, inverse, 1), 0), parallax
