"""Poses between stamps, and chains of coordinate frames."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fadepth_core.data.transforms import Track, TransformTree, matrix, quaternions, rotations

MS = 1_000_000


def pose(vector, position=(0, 0, 0)):
    result = np.eye(4)
    result[:3, :3] = cv2.Rodrigues(np.array(vector, np.float64))[0]
    result[:3, 3] = position
    return result


def test_quaternions_of_all_rotations():
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(200, 3))
    angles = [*rng.uniform(0, np.pi, 196), np.pi, 0, np.pi - 1e-9, 1e-9]
    expected = np.stack([pose(a / np.linalg.norm(a) * t)[:3, :3] for a, t in zip(axes, angles, strict=True)])
    np.testing.assert_allclose(rotations(quaternions(expected)), expected, atol=1e-9)
    np.testing.assert_allclose(matrix([1, 2, 3], quaternions(expected)[7])[:3, :3], expected[7], atol=1e-9)
    assert matrix([1, 2, 3], [0, 0, 0, 0]) is None
    assert matrix([np.nan, 2, 3], [0, 0, 0, 1]) is None


def test_a_pose_between_two_stamps_turns_and_moves_evenly():
    stamps = np.arange(0, 1000, 100) * MS
    track = Track(stamps[::-1], [pose([0, 0.004 * t / MS, 0], [0, 0, t / MS]) for t in stamps[::-1]])
    wanted = np.array([0, 150, 333, 900, 930, -40]) * MS
    for t, found in zip(wanted / MS, track.at(wanted), strict=True):
        np.testing.assert_allclose(found, pose([0, 0.004 * t, 0], [0, 0, t]), atol=1e-9)


def test_nothing_is_known_in_gaps_and_far_outside():
    track = Track(np.array([0, 100, 200, 900, 1000]) * MS, np.tile(np.eye(4), (5, 1, 1)))
    found = track.at(np.array([-60, -40, 100, 210, 500, 899, 900, 1040, 1060]) * MS)
    assert np.isfinite(found).all((1, 2)).tolist() == [False, True, True, False, False, False, True, True, False]


def test_chains_of_static_and_moving_frames():
    tree = TransformTree()
    mount, mast = pose([0.1, 0.2, 0.3], [1, 0, 0.5]), pose([0, -0.4, 0], [0, 0, 2])
    tree.add("/base", "camera", mount, None)
    tree.add("base", "lidar", mast, None)
    for i in range(5):
        tree.add("odom", "base", pose([0, 0, 0.1 * i], [i, 0, 0]), i * 100 * MS)
        tree.add("map", "odom", pose([0, 0, 1.0], [5, 0, 0]), i * 100 * MS)  # repeated, but constant
    times = np.array([0, 250]) * MS
    expected = [pose([0, 0, 1.0], [5, 0, 0]) @ pose([0, 0, 0.1 * i], [i, 0, 0]) @ mount for i in (0, 2.5)]
    np.testing.assert_allclose(tree.at("map", "camera", times), expected, atol=1e-9)
    np.testing.assert_allclose(tree.at("camera", "lidar", times)[1], np.linalg.inv(mount) @ mast, atol=1e-12)
    assert np.isnan(tree.at("odom", "camera", np.array([2000]) * MS)).all()
    assert tree.at("camera", "gps", times) is None
    np.testing.assert_array_equal(tree.at("gps", "gps", times)[0], np.eye(4))
    assert tree.ancestors("camera") == ["camera", "base", "odom", "map"]
    assert tree.moves("map", "camera")
    assert not tree.moves("camera", "lidar")
    assert not tree.moves("map", "odom")


@pytest.mark.parametrize("edges", [[("a", "b"), ("b", "a")], [("a", "a")]])
def test_a_circle_of_frames_ends(edges):
    tree = TransformTree()
    for parent, child in edges:
        tree.add(parent, child, np.eye(4), None)
    assert tree.ancestors("a")[0] == "a"
