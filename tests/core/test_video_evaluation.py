"""Video evaluation: true depth has the smallest error, with known and with fitted motion, and is consistent."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from test_geometry import POSES, Scene, camera

from fadepth_core.common.color import to_picture
from fadepth_core.data import DataError, Sample
from fadepth_core.data.video import VideoDataset
from fadepth_core.evaluation import (
    VideoEvaluation,
    choose_evenly,
    evaluate_steady_video,
    evaluate_video,
    print_video_table,
)
from fadepth_core.evaluation.alignment import DepthPairs, fit_length, fit_motion
from fadepth_core.evaluation.baselines import ConstantDepth
from fadepth_core.evaluation.video import measure
from fadepth_core.geometry import rotation_error, translation_direction_error
from fadepth_core.losses import Motions
from fadepth_core.synthetic.dataset import SyntheticDataset


@pytest.fixture(scope="module")
def street():
    """A rendered street in which only the camera moves: three frames with poses and depth."""
    return SyntheticDataset("driving", (64, 224), length=1, seed=3, moving=False)[0]


@pytest.fixture(scope="module")
def fitted(street):
    """The motions fitted to the street's true depth."""
    return fit_motion(DepthPairs.of(street.frames, street.depth, street.intrinsics))


@pytest.fixture(scope="module")
def wall():
    """Three frames of a slanted wall, with poses, and their depths [3, H, W]."""
    views = [Scene(box=None).render(camera(), pose) for pose in POSES]
    frames, depths = (torch.stack([view[i] for view in views]).float() for i in (0, 1))
    return Sample(frames, camera().float(), torch.tensor(0.1), "wall:1", poses=POSES.float()), depths[:, 0]


def true_motions(triplet):
    motions = Motions.from_poses(triplet.poses[None])
    return torch.cat([motions.to_previous, motions.to_next])


def constant_depth(triplet, metres):
    return torch.full_like(triplet.depth, metres)


def test_true_depth_has_a_smaller_error_than_constant_depth(street, fitted):
    """With known and with fitted motion, and with depth of unknown scale."""
    truth = DepthPairs.of(street.frames, street.depth, street.intrinsics)
    constants = [DepthPairs.of(street.frames, constant_depth(street, d), street.intrinsics) for d in (5.0, 10.0, 20.0)]
    known = true_motions(street)
    error = truth.unexplained(known).mean()
    assert error < 0.5
    assert error < 0.8 * min(pairs.unexplained(known).mean() for pairs in constants)
    fitted_error = truth.unexplained(fitted).mean()
    assert fitted_error == pytest.approx(float(error), abs=0.02)
    assert fitted_error < 0.8 * constants[0].unexplained(fit_motion(constants[0])).mean()
    far = replace(truth, depth=30 * truth.depth)
    assert far.unexplained(fit_length(far, known)).mean() == pytest.approx(float(error), abs=0.02)


def test_the_fit_recovers_the_motion(street, fitted):
    true = true_motions(street)
    assert rotation_error(fitted, true).max() < 0.1
    assert translation_direction_error(fitted, true).max() < 3
    torch.testing.assert_close(fitted[:, :3, 3].norm(dim=1), true[:, :3, 3].norm(dim=1), rtol=0.03, atol=0)


def test_no_motion_and_pixels_outside_the_image_have_error_one(street):
    pairs = DepthPairs.of(street.frames, constant_depth(street, 10.0), street.intrinsics)
    away = torch.eye(4).repeat(2, 1, 1)
    torch.testing.assert_close(pairs.unexplained(away), torch.ones(2))
    away[:, 0, 3] = 1e4
    torch.testing.assert_close(pairs.unexplained(away), torch.ones(2))


def test_true_depth_is_consistent(wall):
    triplet, depths = wall
    result = measure(triplet, depths, "none")
    assert result.temporal < 1e-4
    assert result.steps == pytest.approx((0, 0), abs=1e-3)
    assert result.photometric < 0.1


def test_a_change_of_scale_is_measured(wall):
    """The last frame's depth is a fifth too far: δ_D = 0.2 / 2.2 in one of the two pairs."""
    triplet, depths = wall
    wrong = torch.stack([depths[0], depths[1], 1.2 * depths[2]])
    result = measure(triplet, wrong, "none")
    assert result.steps == pytest.approx((0, math.log(1.2)), abs=1e-3)
    assert result.temporal == pytest.approx(0.2 / 2.2 / 2, abs=1e-3)


def test_results_are_grouped_by_clip_and_printed(wall, capsys):
    triplet, depths = wall
    known = {
        to_picture(frame).tobytes(): (1 / depth).numpy() for frame, depth in zip(triplet.frames, depths, strict=True)
    }
    clips = ["a", "a", "b"]
    truth = evaluate_video(lambda image, k: known[image.tobytes()], [triplet] * 3, clips, "none")
    flat = evaluate_video(ConstantDepth(12.0), [triplet] * 3, clips, "none")
    assert truth.figures.photometric < 0.8 * flat.figures.photometric
    assert [len(frames) for frames in truth.clips.values()] == [2, 1]
    print_video_table({"constant": flat, "net": truth}, "none")
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "video: 2 clips, 3 frames, scaling: none"
    assert header.split() == ["photometric", "temporal", "jitter", "abs_rel"]
    assert [row.split("  0.")[0].strip() for row in rows] == ["constant", "a (2)", "b (1)", "net", "a (2)", "b (1)"]
    assert float(rows[3].split()[1]) == pytest.approx(truth.figures.photometric, abs=1e-3)


def test_relative_error_where_true_depth_is_known(wall):
    """Scaled by the medians it is 0 for depth of another scale. Half of the true depth is unknown."""
    triplet, depths = wall
    assert math.isnan(measure(triplet, depths, "none").abs_rel)
    truth = depths[1].clone()
    truth[:, ::2] = 0
    known = replace(triplet, depth=truth)
    assert measure(known, 1.2 * depths, "none").abs_rel == pytest.approx(0.2, abs=1e-4)
    assert measure(known, 1.2 * depths).abs_rel == pytest.approx(0, abs=1e-4)
    values = VideoEvaluation({"a": (measure(known, depths, "none"), measure(triplet, depths, "none"))}).to_dict()
    assert values["figures"]["abs_rel"] == pytest.approx(0, abs=1e-4)
    assert [frame["abs_rel"] is None for frame in values["clips"]["a"]["frames"]] == [False, True]


def test_metric_evaluation_needs_poses(wall):
    triplet, depths = wall
    with pytest.raises(DataError, match="wall:1: no camera poses, which are needed to measure metric depth"):
        measure(replace(triplet, poses=None), depths, "none")
    with pytest.raises(DataError, match="no frames to evaluate 'video' on"):
        evaluate_video(ConstantDepth(), [], [])


def test_chosen_frames_are_spread_over_every_clip():
    assert choose_evenly(["a"] * 9 + ["b"] * 2, 3) == [0, 4, 8, 9, 10]
    assert np.diff(choose_evenly(["a"] * 100, 10)).min() >= 10


def test_the_temporal_filter_gets_every_frame_of_a_clip(tmp_path):
    """Depth jitters by 10 % from frame to frame; two samples of a clip with stride 2 are measured."""
    drive = SyntheticDataset("driving", (64, 192), length=1, seed=3, moving=False)[0]
    still = to_picture(drive.middle)
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(12):
        cv2.imwrite(str(folder / f"{number:02d}.png"), still[..., ::-1])
    fx, _, cx, _, fy, cy = drive.intrinsics[:2].flatten().tolist()
    (folder / "camera.json").write_text(
        json.dumps({"fx": fx, "fy": fy, "cx": cx, "cy": cy, "fps": 10, "stride": 2, "poses": "poses.txt"})
    )
    poses = np.tile(np.eye(4)[:3].ravel(), (12, 1))
    poses[:, 11] = 0.05 * np.arange(12)
    np.savetxt(folder / "poses.txt", poses)
    dataset = VideoDataset(tmp_path, (64, 192))
    seen = []

    def jittering(image, intrinsics):
        seen.append(image)
        return (1 / drive.depth / (1.1 if len(seen) % 3 else 1)).numpy()

    chosen = [len(dataset) - 2, len(dataset) - 1]
    steady = evaluate_steady_video(jittering, "scale", dataset, chosen, "none")
    assert len(seen) == 12
    seen.clear()
    raw = evaluate_video(jittering, [dataset[index] for index in chosen], ["clip"] * 2, "none")
    assert steady.figures.jitter < 0.7 * raw.figures.jitter
    assert list(steady.clips) == ["clip"]
