"""Trajectories from a pose network: chaining of motions, errors, and KITTI and TUM files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from fadepth_core.data import DataError
from fadepth_core.data.video import open_clips
from fadepth_core.evaluation.odometry import Trajectory, estimate_trajectory, trajectory_errors, write_trajectory

COUNT, SIZE, FOCAL = 11, (32, 64), 50.0


def curve(count=COUNT):
    """Camera-to-world poses [N, 4, 4] of a camera that moves up a spiral; the first is not the identity."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for i, pose in enumerate(poses):
        pose[:3, :3] = cv2.Rodrigues(np.array([0.02 * i, 0.3 + 0.1 * i, 0.01 * i]))[0]
        pose[:3, 3] = [5 * np.cos(0.1 * i), -0.05 * i, 5 * np.sin(0.1 * i)]
    return poses


class TrueMotion(torch.nn.Module):
    """Predicts the true motion T_{first→second}, translation times `length`; the grey level identifies a frame."""

    def __init__(self, poses, length=1.0):
        super().__init__()
        self.poses, self.length = poses, length

    def forward(self, pairs):
        red = pairs[:, [0, 3]].mean((2, 3)) * 0.229 + 0.485
        numbers = (red * 255 / 10).round().long().tolist()
        return torch.tensor(np.stack([self._vector(a, b) for a, b in numbers]), dtype=torch.float32)

    def _vector(self, a, b):
        motion = np.linalg.inv(self.poses[b]) @ self.poses[a]
        return np.concatenate([cv2.Rodrigues(motion[:3, :3])[0].ravel(), self.length * motion[:3, 3]])


@pytest.fixture
def clip(tmp_path):
    """A clip whose frame i has grey level 10 i."""
    folder = tmp_path / "drive"
    folder.mkdir()
    for i in range(COUNT):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((*SIZE, 3), 10 * i, np.uint8))
    np.savetxt(folder / "poses.txt", curve()[:, :3].reshape(COUNT, 12))
    camera = {"fx": FOCAL, "fy": FOCAL, "cx": 31.5, "cy": 15.5, "fps": 10, "poses": "poses.txt"}
    (folder / "camera.json").write_text(json.dumps(camera))
    return folder


def opened(clip, **options):
    (only,) = open_clips(clip, SIZE, **options)
    return only


@pytest.mark.parametrize("stride", [1, 3])
def test_the_true_motions_give_the_true_trajectory(clip, stride):
    trajectory = estimate_trajectory(TrueMotion(curve()), opened(clip, stride=stride), batch=4)
    taken = list(range(0, COUNT, stride))
    np.testing.assert_allclose(trajectory.poses, np.linalg.inv(curve()[0]) @ curve()[taken], atol=1e-5)
    np.testing.assert_allclose(trajectory.times, np.array(taken) / 10)
    errors = trajectory_errors(trajectory)
    assert errors.ate_sim3 == pytest.approx(0, abs=1e-5)
    assert errors.ate_se3 == pytest.approx(0, abs=1e-5)
    assert errors.translation == pytest.approx(0, abs=1e-2)
    assert errors.rotation == pytest.approx(0, abs=1e-3)
    assert errors.scale == pytest.approx(1, abs=1e-5)


def test_a_wrong_scale_affects_only_the_rigidly_aligned_error(clip):
    errors = trajectory_errors(estimate_trajectory(TrueMotion(curve(), length=0.5), opened(clip)))
    assert errors.scale == pytest.approx(2, abs=1e-4)
    assert errors.ate_sim3 == pytest.approx(0, abs=1e-4)
    assert errors.translation == pytest.approx(0, abs=1e-2)
    assert errors.ate_se3 > 0.3


def test_translations_are_scaled_from_the_training_focal_length(clip):
    """The training scenes were scaled by 200 / 50 (`data.focal`), so the network's translations are too."""
    trajectory = estimate_trajectory(TrueMotion(curve(), length=4.0), opened(clip), focal_length=4 * FOCAL)
    assert trajectory_errors(trajectory).scale == pytest.approx(1, abs=1e-5)


def test_a_rotation_error_is_measured(clip):
    """One of ten steps rotates 9° too far: a mean of 0.9° per step."""
    trajectory = estimate_trajectory(TrueMotion(curve()), opened(clip))
    wrong = np.eye(4)
    wrong[:3, :3] = cv2.Rodrigues(np.deg2rad([0, 9.0, 0]))[0]
    trajectory.poses[6:] = trajectory.poses[5] @ wrong @ np.linalg.inv(trajectory.poses[5]) @ trajectory.poses[6:]
    errors = trajectory_errors(trajectory)
    assert errors.rotation == pytest.approx(0.9, abs=1e-3)
    assert errors.ate_sim3 > 0.01


def test_trajectories_without_motion_are_refused(clip):
    standing, straight = np.tile(np.eye(4), (2, 5, 1, 1))
    straight[:, 2, 3] = np.arange(5)
    with pytest.raises(DataError, match="the true camera never moves"):
        trajectory_errors(Trajectory(np.arange(5), straight, standing))
    with pytest.raises(DataError, match="the estimated camera never moves"):
        trajectory_errors(Trajectory(np.arange(5), standing, straight))
    errors = trajectory_errors(Trajectory(np.arange(5), 2 * straight - np.eye(4), straight))
    assert (errors.ate_sim3, errors.ate_se3, errors.scale) == (None, None, 0.5)


def test_trajectories_are_written_in_kitti_and_tum_format(clip, tmp_path):
    trajectory = estimate_trajectory(TrueMotion(curve()), opened(clip))
    write_trajectory(trajectory, tmp_path / "new" / "kitti.txt")
    rows = np.loadtxt(tmp_path / "new" / "kitti.txt")
    np.testing.assert_allclose(rows.reshape(-1, 3, 4), trajectory.poses[:, :3], atol=1e-7)

    turned = np.eye(4)
    turned[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # a quarter turn about y
    turned[:3, 3] = [1, 2, 3]
    two = replace(trajectory, times=np.array([0, 0.1]), poses=np.stack([np.eye(4), turned]))
    write_trajectory(two, tmp_path / "tum.txt", "tum")
    half = np.sqrt(0.5)
    expected = [[0, 0, 0, 0, 0, 0, 0, 1], [0.1, 1, 2, 3, 0, half, 0, half]]
    np.testing.assert_allclose(np.loadtxt(tmp_path / "tum.txt"), expected, atol=1e-7)


def test_without_evo_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "evo.core", None)
    with pytest.raises(ImportError, match=r"pip install 'fadepth_ros\[odometry\]'"):
        trajectory_errors(Trajectory(np.arange(3), curve(3), curve(3)))
