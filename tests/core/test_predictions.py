"""Predicted depth as files: what goes wrong with the colours does not lose depth."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fadepth_core.evaluation import write_predictions
from fadepth_core.evaluation.report import write_sheet

DEPTH = np.full((96, 160), 5.0, np.float32)
FRAMES = [(f"{number:06d}", DEPTH) for number in range(4)]


def decoded(path):
    reader, count = cv2.VideoCapture(str(path)), 0
    while reader.grab():
        count += 1
    return count


@pytest.mark.parametrize("fps", [1e-3, 0.5, 23.976, 29.97, 59.94, 66.667, 119.88, 240.0, 999.999])
def test_a_coloured_video_has_any_frame_rate(tmp_path, fps):
    write_predictions(FRAMES, tmp_path, fps=fps)
    assert len(list((tmp_path / "depth").iterdir())) == 4
    assert decoded(tmp_path / "color.mp4") == 4


def test_a_video_whose_frames_change_their_size_is_written(tmp_path):
    write_predictions([*FRAMES, ("000004", DEPTH[:64])], tmp_path, fps=25.0)
    assert decoded(tmp_path / "color.mp4") == 5
    assert cv2.imread(str(tmp_path / "depth" / "000004.png"), cv2.IMREAD_UNCHANGED).shape == (64, 160)


@pytest.mark.parametrize("fps", [None, 25.0])
def test_depth_is_complete_where_colours_cannot_be_written(tmp_path, caplog, fps):
    (tmp_path / "color.mp4").mkdir()
    (tmp_path / "color").write_text("a file")
    write_predictions(FRAMES, tmp_path, fps=fps)
    assert len(list((tmp_path / "depth").iterdir())) == 4
    assert len([record for record in caplog.records if "depth is written without colours" in record.message]) == 1


def test_figures_outlive_a_sheet_that_cannot_be_written(tmp_path, caplog):
    def fail():
        raise OSError("disk full")

    write_sheet(tmp_path / "sheet.png", fail)
    assert "sheet.png: cannot be written: disk full" in caplog.text
