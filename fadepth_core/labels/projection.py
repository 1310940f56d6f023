"""Projects what a recording's own depth sensors measured into the camera's frames: LiDAR clouds and depth cameras.

The results are depth images of the camera, for training and for judging. Torch is not imported.

A sensor beside the camera sees surfaces that are hidden from the camera. Their points fall between those of the nearer
surface that hides them. A point is taken for hidden if nearer points surround it: one in each of the four quadrants of
its neighbourhood. A plane that is seen at a small angle, such as a road, has nearer points on one side only.

Coordinates are those of the optical frame (REP-103): x right, y down, z forward, metres. Pixel centres are at whole
numbers.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from fadepth_core.common.errors import DataError
from fadepth_core.common.pinhole import unproject

#: Points nearer to the camera's centre than this are the robot's own parts, or invalid, metres.
_MIN_DEPTH = 0.05
#: A point hides another if its depth is less than this share of the other's depth.
_NEARER = 0.9
#: Largest radius of the neighbourhood, as a share of the image's width. The lines of a LiDAR with 16 beams are 2 degrees
#: apart, which is about this.
_MAX_RADIUS = 0.04
#: Depths around a gap belong to one surface if the smallest is at least this share of the largest.
_SAME_SURFACE = 0.93
#: Two cameras are the same if one is turned by less than this (radians) and shifted by less than this (metres).
_SAME_ROTATION, _SAME_PLACE = 1e-3, 1e-3

#: Encodings of depth images (REP-118), and their values per metre.
_PER_METRE = {"16UC1": 1000, "mono16": 1000, "32FC1": 1}


def project_cloud(points: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth image of a point cloud. Of several points in a pixel the nearest counts; hidden points are left out.

    The radius of the neighbourhood in which hidden points are searched follows from the distance between the measured
    pixels, because the nearer surface must have points within it.

    Args:
        points: [N, 3] in the camera's optical frame, metres. Points that are not finite are ignored.
        intrinsics: K [3, 3] of the camera, pixels, without skew.
        size: (height, width) of the image, pixels.

    Returns:
        Depth [height, width] float32 in metres, 0 where unknown.
    """
    depth = _nearest_points(points, intrinsics, size)
    return _without_hidden(depth, _neighbourhood(depth))


def register_depth(
    depth: np.ndarray,
    depth_intrinsics: np.ndarray,
    depth_to_camera: np.ndarray,
    intrinsics: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Depth image of a depth camera -> depth image of another camera.

    If both cameras are at the same place, each pixel takes the depth on its viewing ray. Otherwise the measured points
    are projected, hidden points are left out, and gaps between points of one surface are filled. Such gaps arise where
    the camera's image has more pixels than the measured one.

    Args:
        depth: [h, w] in metres; 0, negative and not finite values are unknown.
        depth_intrinsics: K [3, 3] of the depth camera, pixels, without skew.
        depth_to_camera: T [4, 4] from the depth camera's optical frame to the camera's.
        intrinsics: K [3, 3] of the camera, pixels, without skew.
        size: (height, width) of the camera's image, pixels.

    Returns:
        Depth [height, width] float32 in metres, 0 where unknown.
    """
    depth = _known(depth)
    turned = math.acos(min(1.0, max(-1.0, (np.trace(depth_to_camera[:3, :3]) - 1) / 2)))
    if turned < _SAME_ROTATION and np.linalg.norm(depth_to_camera[:3, 3]) < _SAME_PLACE:
        return _along_rays(depth, depth_intrinsics, intrinsics, size)
    known = depth > 0
    points = unproject(depth, depth_intrinsics)[known] @ depth_to_camera[:3, :3].T + depth_to_camera[:3, 3]
    # How many pixels of the camera lie between two neighbouring measured pixels, at equal distance.
    spacing = max(intrinsics[axis, axis] / depth_intrinsics[axis, axis] for axis in (0, 1))
    radius = min(max(1, math.ceil(spacing)), _largest_radius(size))
    projected = _without_hidden(_nearest_points(points, intrinsics, size), radius)
    return _fill_gaps(projected, radius)


def depth_in_metres(image: np.ndarray, encoding: str) -> np.ndarray:
    """A depth image of ROS in metres, [h, w] float32, 0 where unknown.

    Args:
        image: [h, w] millimetres (16UC1, mono16) or metres (32FC1), see REP-118.
        encoding: that of the message.

    Raises:
        DataError: another encoding, or not an image with one channel.
    """
    if encoding not in _PER_METRE:
        raise DataError(f"depth images of encoding '{encoding}' are not supported, only {', '.join(_PER_METRE)}")
    if image.ndim != 2:
        raise DataError(f"a depth image of {encoding} has the shape {image.shape}, expected rows and columns only")
    return _known(image.astype(np.float32) / np.float32(_PER_METRE[encoding]))


def _known(depth: np.ndarray) -> np.ndarray:
    """Depth float32 with 0 where it is not a positive, finite number."""
    depth = np.asarray(depth, np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _nearest_points(points: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth of the nearest point in each pixel [height, width], 0 where there is none."""
    height, width = size
    points = np.asarray(points, np.float64).reshape(-1, 3)
    x, y, z = points[np.isfinite(points).all(axis=1) & (points[:, 2] > _MIN_DEPTH)].T
    u = np.rint(intrinsics[0, 0] * x / z + intrinsics[0, 2])
    v = np.rint(intrinsics[1, 1] * y / z + intrinsics[1, 2])
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    nearest = np.full(size, np.inf, np.float32)
    np.minimum.at(nearest, (v[inside].astype(np.intp), u[inside].astype(np.intp)), z[inside].astype(np.float32))
    return _known(nearest)


def _neighbourhood(depth: np.ndarray) -> int:
    """Radius of a neighbourhood that contains measured pixels on all sides, pixels.

    Between parallel lines at distance d, the median distance of a pixel to the nearest line is d / 4.
    """
    rows, columns = np.nonzero(depth)
    if not len(rows):
        return 1
    measured = depth[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] > 0
    distance = cv2.distanceTransform((~measured).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return min(max(2, math.ceil(4 * float(np.median(distance)))), _largest_radius(depth.shape))


def _largest_radius(size: tuple[int, ...]) -> int:
    return max(2, round(_MAX_RADIUS * size[1]))


def _quadrants(depth: np.ndarray, radius: int) -> np.ndarray:
    """Smallest depth in each quadrant of the neighbourhood, [4, h, w], infinite where none is known.

    A quadrant includes its axes and the pixel itself.
    """
    distance = np.where(depth > 0, depth, np.float32(np.inf))
    kernel = np.ones((radius + 1, radius + 1), np.uint8)
    corners = [(x, y) for x in (0, radius) for y in (0, radius)]
    # The border must be given: OpenCV's own for `erode` is the largest float, which is not infinite.
    return np.stack(
        [
            cv2.erode(distance, kernel, anchor=corner, borderType=cv2.BORDER_CONSTANT, borderValue=(math.inf,) * 4)
            for corner in corners
        ]
    )


def _without_hidden(depth: np.ndarray, radius: int) -> np.ndarray:
    """Depth with 0 at pixels that have a nearer one in each quadrant of the neighbourhood."""
    hidden = (_quadrants(depth, radius) < _NEARER * depth).all(axis=0)
    return np.where(hidden, np.float32(0), depth)


def _fill_gaps(depth: np.ndarray, radius: int) -> np.ndarray:
    """Depth with the mean of the quadrants at unknown pixels that lie between points of one surface."""
    quadrants = _quadrants(depth, radius)
    smallest, largest = quadrants.min(axis=0), quadrants.max(axis=0)
    gap = (depth == 0) & np.isfinite(largest) & (smallest >= _SAME_SURFACE * largest)
    return np.where(gap, np.where(gap, quadrants, 0).mean(axis=0), depth)


def _along_rays(
    depth: np.ndarray, depth_intrinsics: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Depth of the nearest measured pixel on each viewing ray, for cameras at the same place."""
    height, width = size
    columns = (np.arange(width) - intrinsics[0, 2]) / intrinsics[0, 0] * depth_intrinsics[0, 0] + depth_intrinsics[0, 2]
    rows = (np.arange(height) - intrinsics[1, 2]) / intrinsics[1, 1] * depth_intrinsics[1, 1] + depth_intrinsics[1, 2]
    u, v = np.rint(columns).astype(np.intp), np.rint(rows).astype(np.intp)
    inside = ((v >= 0) & (v < depth.shape[0]))[:, None] & ((u >= 0) & (u < depth.shape[1]))
    found = depth[v.clip(0, depth.shape[0] - 1)[:, None], u.clip(0, depth.shape[1] - 1)]
    return np.where(inside, found, np.float32(0))
