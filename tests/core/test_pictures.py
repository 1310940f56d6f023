"""Depth as 16-bit millimetres, as colours, and as PNG files."""

import cv2
import numpy as np
import pytest

from fadepth_core.runtime import pictures


def test_millimetres_follow_rep_118():
    depth = np.array([[1.2344, 0.0005, 65.535, 65.6, np.inf, -np.inf, np.nan, 0.0]], np.float32)
    np.testing.assert_array_equal(pictures.depth_to_millimetres(depth), [[1234, 1, 65535, 0, 0, 0, 0, 0]])


def test_colours_run_from_near_to_far_and_are_black_without_depth():
    depth = np.array([[1.0, 2.0, 12.0, 80.0, 100.0, np.inf, -np.inf, np.nan]], np.float32)
    color = pictures.depth_to_color(depth, near=2.0, far=80.0)[0].astype(int)
    assert color[0].tolist() == color[1].tolist()
    assert color[3].tolist() == color[4].tolist()
    assert color[1][0] > color[1][2], "near is red"
    assert color[3][2] > color[3][1], "far is blue"
    assert (color[5:] == 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_written_png_reads_back(tmp_path, dtype):
    picture = np.arange(12, dtype=dtype).reshape(3, 4) * 20
    pictures.write_png(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED), picture)
    with pytest.raises(OSError, match="missing"):
        pictures.write_png(tmp_path / "missing" / "a.png", picture)
