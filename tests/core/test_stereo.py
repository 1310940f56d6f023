"""Multi-view stereo on a street canyon whose depth is known in closed form."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from fadepth_core.data import DataError
from fadepth_core.data.images import read_depth
from fadepth_core.data.video import VideoDataset, open_clips
from fadepth_core.labels.nearest import nearest_depth
from fadepth_core.labels.stereo import write_stereo
from street_canyon import GAP, SIZE, STEP, render_view, write_frames


def write_clip(folder, **options):
    write_frames(folder, **options)
    (clip,) = open_clips(folder, SIZE)
    return clip


def test_depth_of_a_street_is_measured(tmp_path):
    clip = write_clip(tmp_path / "clip")
    assert write_stereo(clip, tmp_path / "depth", nearest=GAP, every=2) == clip.count // 2
    for number in (4, 6, 10):
        measured, truth = read_depth(tmp_path / "depth" / f"{number:06d}.png"), render_view(STEP * number)[1]
        known = measured > 0
        assert known.mean() > 0.5
        error = np.abs(measured - truth)[known] / truth[known]
        assert np.median(error) < 0.03
        assert (error < 0.25).mean() > 0.95


def test_moving_objects_are_left_out(tmp_path):
    """A ball on the street 5 m ahead: its depth is measured if it is at rest, and mostly left out if it moves."""
    shares = []
    for speed in (0.0, 0.35):
        clip = write_clip(tmp_path / f"clip{speed}", count=8, ball=lambda i, speed=speed: speed * (i - 4), step=0.3)
        write_stereo(clip, tmp_path / f"depth{speed}", nearest=GAP, every=2)
        depth = read_depth(tmp_path / f"depth{speed}" / "000004.png")
        ball = render_view(0.3 * 4, 0.0)[1] != render_view(0.3 * 4)[1]
        shares.append((np.abs(depth[ball] / (5 - 0.3 * 4) - 1) < 0.15).mean())
    assert shares[0] > 0.6
    assert shares[1] < 0.5 * shares[0]


def test_labels_are_the_depth_of_the_samples(tmp_path):
    """The folder of labels is inside the clip's folder, and is not taken for another clip."""
    clip = write_clip(tmp_path / "clip")
    write_stereo(clip, tmp_path / "clip" / "depth", nearest=GAP, first=2, every=3)
    camera = json.loads(clip.camera.read_text()) | {"depth": "depth"}
    clip.camera.write_text(json.dumps(camera))
    dataset = VideoDataset(tmp_path / "clip", SIZE)
    known = {sample.name.rpartition(":")[2]: bool((sample.depth > 0).any()) for sample in dataset}
    assert [number for number, labelled in known.items() if labelled] == ["2", "5", "8", "11"]
    np.testing.assert_array_equal(dataset[4].depth.numpy(), read_depth(tmp_path / "clip" / "depth" / "000005.png"))


def test_frames_before_the_first_are_not_used(tmp_path):
    clip = write_clip(tmp_path / "clip")
    write_stereo(clip, tmp_path / "depth", nearest=GAP, first=4, every=3)
    for i in range(4):
        cv2.imwrite(str(tmp_path / "clip" / f"{i:03d}.png"), np.zeros(SIZE, np.uint8))
    write_stereo(clip, tmp_path / "again", nearest=GAP, first=4, every=3)
    files = sorted((tmp_path / "depth").glob("*.png"))
    assert [f.name for f in files] == [f"{n:06d}.png" for n in range(4, 14, 3)]
    assert all(f.read_bytes() == (tmp_path / "again" / f.name).read_bytes() for f in files)


def test_frames_without_known_pose_are_not_measured(tmp_path):
    clip = write_clip(tmp_path / "clip")
    clip.poses[4:6] = np.nan
    write_stereo(clip, tmp_path / "depth", nearest=GAP, first=2, every=2)
    assert [int(path.stem) for path in sorted((tmp_path / "depth").glob("*.png"))] == [2, *range(6, clip.count, 2)]


def test_errors_name_clips_without_poses_or_motion(tmp_path):
    with pytest.raises(DataError, match=r"clip/camera\.json: has no poses"):
        write_stereo(write_clip(tmp_path / "clip", poses=False), tmp_path / "depth")
    with pytest.raises(DataError, match=r"still: the camera never moves by 1\.2 m"):
        write_stereo(write_clip(tmp_path / "still", step=0.01), tmp_path / "depth")


def test_a_single_frame_is_measured_like_all(tmp_path):
    """The check of consistency takes frames near it, whether they are wanted or not."""
    clip = write_clip(tmp_path / "clip")
    assert write_stereo(clip, tmp_path / "one", nearest=GAP, numbers=[6]) == 1
    assert write_stereo(clip, tmp_path / "all", nearest=GAP, numbers=range(14)) == 14
    one, among_all = (read_depth(tmp_path / name / "000006.png") for name in ("one", "all"))
    np.testing.assert_array_equal(one, among_all)
    assert (one > 0).mean() > 0.5


def test_an_interrupted_run_is_continued(tmp_path):
    """Labels that are there are kept, those of other settings are replaced."""
    clip, folder = write_clip(tmp_path / "clip"), tmp_path / "depth"
    numbers = [4, 5, 6, 7]
    assert write_stereo(clip, folder, nearest=GAP, numbers=numbers) == 4
    depths = {n: (folder / f"{n:06d}.png").read_bytes() for n in numbers}
    (folder / "000005.png").unlink()
    (folder / "000006.png").write_bytes(b"kept")
    assert write_stereo(clip, folder, nearest=GAP, numbers=numbers, threads=2) == 4
    assert (folder / "000005.png").read_bytes() == depths[5]
    assert (folder / "000006.png").read_bytes() == b"kept"
    clip.poses[:, :3, 3] *= 1.1
    write_stereo(clip, folder, nearest=GAP, numbers=numbers)
    assert (folder / "000006.png").read_bytes() not in (b"kept", depths[6])


@pytest.mark.parametrize("scale", [1, 0.1])
def test_the_nearest_depth_follows_from_the_motion(tmp_path, scale):
    """The nearest surfaces in the images are about 3 m away; in a model of the street at 1:10, 0.3 m."""
    clip = write_clip(tmp_path / "clip")
    clip.poses[:, :3, 3] *= scale
    clip.poses[3] = np.nan
    assert 0.4 * GAP * scale < nearest_depth(clip) < 1.2 * GAP * scale


def test_the_nearest_depth_needs_motion(tmp_path):
    with pytest.raises(DataError, match=r"still: only \d+ points could be triangulated"):
        nearest_depth(write_clip(tmp_path / "still", step=0.001))
    with pytest.raises(DataError, match="has no poses"):
        nearest_depth(write_clip(tmp_path / "clip", poses=False))
