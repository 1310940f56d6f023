"""Depth labels by the best source of a clip: its own depth sensors, a stereo pair, or multi-view stereo."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from fadepth_core.common.errors import DataError
from fadepth_core.data.images import read_depth, write_depth
from fadepth_core.data.video import open_clips
from fadepth_core.labels.choose import write_labels
from fadepth_core.labels.stereo_pair import pair_depth
from street_canyon import GAP, SIZE, write_frames

FOCAL, BASELINE = 140.0, 0.2
STORED = (128, 192)
WALL, BOX = 4, 14  # disparities, pixels


def stereo_pair():
    """Left and right picture of a box before a wall, and the disparity of the left one, 0 where the right sees the box."""
    rng = np.random.default_rng(0)
    wall, box = (cv2.GaussianBlur(rng.integers(0, 256, (128, 240, 3), np.uint8), (0, 0), 0.8) for _ in range(2))
    left, right = wall[:, :192].copy(), wall[:, WALL : 192 + WALL].copy()
    left[40:90, 80:130] = right[40:90, 80 - BOX : 130 - BOX] = box[40:90, :50]
    disparity = np.full(STORED, WALL)
    disparity[40:90, 80:130] = BOX
    disparity[40:90, 80 - (BOX - WALL) : 80] = 0
    return left, right, disparity


def make_clip(folder, measured=0, right=0, poses=True, frames=14):
    """A clip of which some frames have measured depth, or right pictures at twice the size for training."""
    write_frames(folder, frames, poses)
    camera = json.loads((folder / "camera.json").read_text())
    left, other, _ = stereo_pair()
    if right:
        camera |= {"fx": FOCAL, "fy": FOCAL, "cx": 95.5, "cy": 63.5, "right": "right", "baseline": BASELINE}
        for i in range(frames):
            cv2.imwrite(str(folder / f"{i:03d}.png"), left[..., ::-1])
        (folder / "right").mkdir()
    for i in range(right):
        cv2.imwrite(str(folder / "right" / f"{i:06d}.png"), other[..., ::-1])
    if measured:
        camera["depth"] = "depth"
        (folder / "depth").mkdir()
    for i in range(measured):
        write_depth(folder / "depth" / f"{i:06d}.png", np.full(SIZE, 7.5))
    (folder / "camera.json").write_text(json.dumps(camera))
    (clip,) = open_clips(folder, SIZE)
    return clip


def test_depth_of_a_stereo_pair():
    left, right, disparity = stereo_pair()
    depth = pair_depth(left, right, FOCAL, BASELINE)
    known = depth > 0
    assert known[disparity > 0].mean() > 0.85
    assert known[disparity == 0].mean() < 0.2  # the box hides this part of the wall from the right camera
    both = known & (disparity > 0)
    assert (np.abs(depth * disparity / (FOCAL * BASELINE) - 1)[both] < 0.05).mean() > 0.97


@pytest.mark.parametrize(
    ("measured", "right", "source", "count"),
    [(14, 14, "measured", 14), (5, 14, "pair", 14), (0, 0, "stereo", 14), (3, 0, "stereo", 14), (0, 9, "pair", 9)],
)
def test_the_best_source_with_depth_of_half_the_frames_is_taken(tmp_path, measured, right, source, count):
    clip = make_clip(tmp_path / "clip", measured, right)
    labels = write_labels(clip, tmp_path / "labels", range(clip.count), nearest=GAP)
    assert (labels.source, labels.count, labels.left_out) == (source, count, 14 - count)
    files = sorted((tmp_path / "labels").glob("*.png"))
    assert len(files) == count
    assert read_depth(files[0]).shape == SIZE
    assert any("frames have measured depth" in note for note in labels.notes) == (0 < measured < 14)
    assert any("have no label" in note for note in labels.notes) == (count < 14)


def test_labels_of_a_stereo_pair_have_the_size_for_training(tmp_path):
    clip = make_clip(tmp_path / "clip", right=14)
    write_labels(clip, tmp_path / "labels", [3], method="pair")
    depth = read_depth(tmp_path / "labels" / "000003.png")
    assert np.median(depth[22:43, 42:63]) == pytest.approx(FOCAL * BASELINE / BOX, rel=0.02)
    assert np.median(depth[2:16]) == pytest.approx(FOCAL * BASELINE / WALL, rel=0.02)


def test_frames_without_enough_depth_have_no_label(tmp_path):
    """One file of measured depth is damaged, one is empty."""
    clip = make_clip(tmp_path / "clip", measured=14)
    (tmp_path / "clip" / "depth" / "000002.png").write_bytes(b"damaged")
    write_depth(tmp_path / "clip" / "depth" / "000005.png", np.zeros(SIZE))
    labels = write_labels(clip, tmp_path / "labels", range(8))
    assert (labels.count, labels.left_out) == (6, 2)
    assert "1 depth files cannot be used; the first" in labels.notes[0]
    assert "000002.png" in labels.notes[0]
    assert not (tmp_path / "labels" / "000005.png").exists()


def test_without_a_source_the_error_names_all(tmp_path):
    clip = make_clip(tmp_path / "clip", poses=False)
    with pytest.raises(DataError, match="has no depth, no right pictures and no poses"):
        write_labels(clip, tmp_path / "labels", range(4))
    with pytest.raises(DataError, match="has no right and baseline"):
        write_labels(clip, tmp_path / "labels", range(4), method="pair")
