"""Depth of LiDAR clouds and depth cameras in the frames of another camera, on scenes known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from fadepth_core.common.errors import DataError
from fadepth_core.common.pinhole import unproject
from fadepth_core.labels.projection import depth_in_metres, project_cloud, register_depth

SIZE = (96, 160)
K = np.array([[120.0, 0, 79.5], [0, 120, 47.5], [0, 0, 1]])


def box_before_wall(intrinsics, size, x=0.0, y=0.0):
    """Depth of a wall at 10 m behind a box at 4 m, 1.6 m wide and 1.2 m high, for a camera at (x, y, 0) metres."""
    v, u = np.mgrid[: size[0], : size[1]]
    x = (u - intrinsics[0, 2]) / intrinsics[0, 0] * 4 + x
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1] * 4 + y
    return np.where((np.abs(x) < 0.8) & (np.abs(y) < 0.6), 4.0, 10.0)


def shift(x):
    """T [4, 4] from a camera `x` metres to the right."""
    return np.array([[1.0, 0, 0, x], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_the_nearest_point_of_a_pixel_counts():
    points = [[0, 0, 8], [0, 0, 5], [0, 0, -5], [np.nan, 0, 5], [np.inf, 0, 5], [100, 0, 5], [1, 0, 10]]
    depth = project_cloud(np.array(points), K, SIZE)
    assert depth.dtype == np.float32
    assert {(v, u): depth[v, u] for v, u in zip(*np.nonzero(depth), strict=True)} == {(48, 80): 5.0, (48, 92): 10.0}


@pytest.mark.parametrize(("step", "missed"), [((2, 2), 0.3), ((6, 1), 0.6)])
def test_points_that_the_camera_does_not_see_are_left_out(step, missed):
    """A LiDAR beside the camera and above it sees the wall behind the box, between its points on the box.

    Hidden points near the box's outline are missed: there, nearer points are on one side only.
    """
    lidar = box_before_wall(K, SIZE, 0.4, -0.25)[:: step[0], :: step[1]]
    u, v = np.meshgrid(np.arange(SIZE[1])[:: step[1]], np.arange(SIZE[0])[:: step[0]])
    points = unproject(lidar, K, (u, v)) + np.array([0.4, -0.25, 0])
    depth, truth = project_cloud(points.reshape(-1, 3), K, SIZE), box_before_wall(K, SIZE)
    pixels = np.rint(points[..., :2] / points[..., 2:] * 120 + (79.5, 47.5)).astype(int)
    inside = ((pixels >= 0) & (pixels < SIZE[::-1])).all(axis=-1)
    pixels, measured = pixels[inside], lidar[inside]
    hidden = measured > truth[pixels[:, 1], pixels[:, 0]] + 1
    assert hidden.sum() > 60
    wrong = (depth > 0) & (np.abs(depth - truth) > 1)
    assert wrong.sum() < missed * hidden.sum()
    # Of the visible points, only some beside the box are lost.
    assert (depth > 0).sum() - wrong.sum() > 0.97 * (~hidden).sum()


def test_a_road_is_not_taken_for_hidden():
    rows = np.arange(SIZE[0])[:, None] + np.zeros(SIZE)
    road = np.where(rows >= 50, 1.5 * 120 / (rows - 47.5), 0)
    depth = project_cloud(unproject(road, K)[road > 0], K, SIZE)
    np.testing.assert_allclose(depth, road, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1, 2])
def test_depth_of_the_same_camera_is_only_resized(scale):
    """Also with a smaller field of view: outside of it, depth is unknown."""
    size = round(SIZE[0] * scale), round(SIZE[1] * scale)
    intrinsics = np.array([[120 * scale, 0, 80 * scale - 0.5], [0, 120 * scale, 48 * scale - 0.5], [0, 0, 1]])
    measured = box_before_wall(K, SIZE)
    measured[:, :8] = np.nan
    depth = register_depth(measured, K, np.eye(4), intrinsics, size)
    assert depth.shape == size
    margin = round(8 * scale)
    assert (depth[:, :margin] == 0).all()
    assert (depth[:, margin:] == box_before_wall(intrinsics, size)[:, margin:]).mean() > 0.98


@pytest.mark.parametrize("scale", [1, 2.5])
def test_depth_of_a_camera_beside_has_no_gaps_and_no_hidden_points(scale):
    size = round(SIZE[0] * scale), round(SIZE[1] * scale)
    intrinsics = np.array([[120 * scale, 0, 80 * scale - 0.5], [0, 120 * scale, 48 * scale - 0.5], [0, 0, 1]])
    depth = register_depth(box_before_wall(K, SIZE, x=0.05), K, shift(0.05), intrinsics, size)
    truth, known = box_before_wall(intrinsics, size), depth > 0
    middle = np.s_[4:-4, round(0.1 * size[1]) : -round(0.1 * size[1])]
    assert known[middle].mean() > 0.93
    assert (np.abs(depth - truth)[known] < 0.05).mean() > 0.985


def test_encodings_of_depth_messages():
    assert depth_in_metres(np.array([[0, 1500]], np.uint16), "16UC1").tolist() == [[0, 1.5]]
    metres = np.array([[np.nan, np.inf, -1, 2.5]], np.float32)
    assert depth_in_metres(metres, "32FC1").tolist() == [[0, 0, 0, 2.5]]
    with pytest.raises(DataError, match=r"encoding 'rgb8' are not supported, only 16UC1"):
        depth_in_metres(np.zeros((2, 2), np.uint8), "rgb8")
    with pytest.raises(DataError, match=r"shape \(2, 2, 3\)"):
        depth_in_metres(np.zeros((2, 2, 3), np.float32), "32FC1")
