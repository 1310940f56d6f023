"""Options of the point cloud: which points are kept."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fadepth_core.runtime.cloud import CloudOptions, depth_edges, downsample

SIZE = (128, 416)
K = np.array([[241.0, 0, 207.5], [0, 245.0, 63.5], [0, 0, 1]])


def road_with_car():
    """Depth of a road 1.5 m below the camera up to 60 m, and of a car's rear at 8 m; and which pixels are the car's."""
    v, u = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    y, x = (v - K[1, 2]) / K[1, 1], (u - K[0, 2]) / K[0, 0]
    depth = np.minimum(np.divide(1.5, y, out=np.full(SIZE, 60.0), where=y > 0), 60)
    car = (np.abs(8 * x) < 1) & (8 * y < 1.5) & (8 * y > -0.2)
    return np.where(car, 8, depth).astype(np.float32), car


@pytest.mark.parametrize("pixel", [1, 3])
def test_edges_between_near_and_far_are_found_but_not_the_far_road(pixel):
    """Edges are as smooth as the network's. With full resolution, one pixel of the network is several pixels of depth."""
    depth, car = road_with_car()
    smooth = 1 / cv2.GaussianBlur(1 / depth, (0, 0), 1.5)
    if pixel > 1:
        size = (pixel * SIZE[1], pixel * SIZE[0])
        smooth = 1 / cv2.resize(1 / smooth, size)
        depth, car = (cv2.resize(a.astype(np.float32), size, interpolation=cv2.INTER_NEAREST) for a in (depth, car))
    edges = depth_edges(smooth, 0.03, pixel)
    upper = np.arange(len(depth)) < pixel * 66  # above the horizon: the car before what is 60 m away
    floating = (smooth > 10) & (smooth < 40) & upper[:, None]
    assert floating.any()
    assert edges[floating].mean() > 0.9
    road = (car == 0) & (depth < 50) & (np.abs(smooth / depth - 1) < 0.02)
    assert edges[road].mean() < 0.02
    assert not depth_edges(smooth, 1e3, pixel).any()


def test_unknown_depth_is_no_edge():
    depth = np.full((20, 20), 5.0, np.float32)
    depth[5:10] = np.nan
    assert not depth_edges(depth, 0.02).any()


def test_ranges_and_stride():
    depth = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, np.nan, 4.0]], np.float32)
    points = np.dstack([depth, 0 * depth, depth])  # sqrt(2)·z away from the camera
    assert CloudOptions().dropped(points) is None
    np.testing.assert_array_equal(CloudOptions(z_range=(1.5, 3.5)).dropped(points)[0], [True, False, False, True])
    np.testing.assert_array_equal(CloudOptions(max_range=3.0).dropped(points), [[0, 0, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(CloudOptions(max_range=3.0, stride=2).dropped(points), [[False, True]])


def test_each_voxel_keeps_the_mean_of_its_points():
    random = np.random.default_rng(0)
    corners = np.array([[0, 0, 1], [-0.5, 0, 1], [3, -2, 60]], np.float32)
    chosen = random.integers(0, 3, 300)
    points = corners[chosen] + random.uniform(0.01, 0.49, (300, 3)).astype(np.float32)
    values = (100 * chosen[:, None]).astype(np.uint8)
    means, numbers = downsample(points, values, 0.5)
    assert len(means) == 3
    for mean, number in zip(means, numbers[:, 0], strict=True):
        np.testing.assert_allclose(mean, points[100 * chosen == number].mean(0), atol=1e-4)
    empty, none = downsample(points[:0], values[:0], 0.5)
    assert (empty.shape, none.shape) == ((0, 3), (0, 1))
