"""Frames saved for other programs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fadepth_core.runtime.snapshot import write_snapshot


def read_ply(path):
    """The vertices of a binary PLY file, by its header alone."""
    head, _, data = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    (count,) = [int(line.split()[2]) for line in lines if line.startswith("element vertex")]
    kinds = {"float": "<f4", "uchar": "u1"}
    dtype = [(line.split()[2], kinds[line.split()[1]]) for line in lines if line.startswith("property")]
    vertices = np.frombuffer(data, dtype)
    assert len(vertices) == count
    return vertices


def test_picture_depth_and_cloud_are_read_back(tmp_path):
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    depth = np.array([[1.5, np.inf], [-np.inf, 2.5]], np.float32)
    points = random.normal(size=(2, 2, 3)).astype(np.float32)
    points[~np.isfinite(depth)] = np.nan
    colors = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    png, npy, ply = write_snapshot(tmp_path / "new" / "folder", "frame", picture, depth, points, colors, depth)
    np.testing.assert_array_equal(cv2.imread(str(png))[..., ::-1], picture)
    np.testing.assert_array_equal(np.load(npy), depth)
    vertices, finite = read_ply(ply), np.isfinite(depth)
    np.testing.assert_array_equal(np.stack([vertices[axis] for axis in "xyz"], -1), points[finite])
    np.testing.assert_array_equal(np.stack([vertices[c] for c in ("red", "green", "blue")], -1), colors[finite])
    np.testing.assert_array_equal(vertices["intensity"], depth[finite])


def test_without_points_there_is_no_cloud(tmp_path):
    files = write_snapshot(tmp_path, "frame", np.zeros((4, 4, 3), np.uint8), np.ones((2, 2), np.float32))
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert [path.suffix for path in files] == [".png", ".npy"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="taken"):
        write_snapshot(tmp_path / "taken", "frame", np.zeros((4, 4, 3), np.uint8), np.ones((2, 2), np.float32))
