"""Camera trajectory of a clip from a pose network, and its errors against known poses.

    clip -> pairs of frames -> pose network -> T_{a→b} -> chained camera-to-world poses -> KITTI or TUM file

Errors are computed by evo (github.com/MichaelGrupp/evo), so that they are comparable with those of other methods.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fadepth_core.common.color import normalise
from fadepth_core.common.errors import DataError
from fadepth_core.common.framing import focal_length as focal_length_of
from fadepth_core.data.video import Clip
from fadepth_core.geometry import motion_from_vector

FORMATS = ("kitti", "tum")


@dataclass(frozen=True)
class Trajectory:
    """Poses of a camera, in the coordinates of its first frame.

    Attributes:
        times: [N] seconds.
        poses: estimated camera-to-world poses [N, 4, 4] float64; translations in metres up to one factor.
        true_poses: true camera-to-world poses [N, 4, 4], metres, in any world frame, NaN where unknown; None
            if all are unknown.
    """

    times: np.ndarray
    poses: np.ndarray
    true_poses: np.ndarray | None


@dataclass(frozen=True)
class TrajectoryErrors:
    """Errors of an estimated trajectory against the true one.

    Attributes:
        ate_sim3: absolute trajectory error: root mean square distance of the positions, metres, after alignment by the
            best similarity transform (rotation, translation, scale; Umeyama 1991). None where this is undetermined,
            because the camera moves on an exactly straight line.
        ate_se3: the same after the best rigid alignment, so that a wrong scale counts.
        translation: mean error of the translation between consecutive frames, in percent of the mean true step, after
            scaling the estimate by `scale`.
        rotation: mean error of the rotation between consecutive frames, degrees.
        scale: true path length / estimated path length; 1 for metric motion.
    """

    ate_sim3: float | None
    ate_se3: float | None
    translation: float
    rotation: float
    scale: float


@torch.no_grad()
def estimate_trajectory(
    pose_net: nn.Module, clip: Clip, focal_length: float | None = None, batch: int = 16
) -> Trajectory:
    """Chain the motions between every `clip.stride`-th frame: P_b = P_a · T_{a→b}⁻¹, where P_0 is the identity.

    Args:
        pose_net: in evaluation mode; normalised pair [B, 6, H, W] -> [B, 6], see `models.posenet`.
        clip: opened at the size on which the network was trained.
        focal_length: canonical focal length of the network's training (`data.focal`), pixels; translations are scaled
            to the clip's focal length. None: not scaled.
        batch: number of pairs per batch.
    """
    device = next(pose_net.parameters(), torch.empty(0)).device
    numbers = range(0, clip.count, clip.stride)
    scale = 1.0 if focal_length is None else focal_length_of(clip.intrinsics) / focal_length
    poses = [np.eye(4)]
    for start in tqdm(range(0, len(numbers) - 1, batch), desc="odometry", unit="batch"):
        frames = np.stack([clip.source.frame(number) for number in numbers[start : start + batch + 1]])
        images = normalise(torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 255)
        vectors = pose_net(torch.cat([images[:-1], images[1:]], dim=1)).double().cpu()
        vectors[:, 3:] *= scale
        for motion in motion_from_vector(vectors).numpy():
            poses.append(poses[-1] @ np.linalg.inv(motion))
    taken = list(numbers)
    return Trajectory(clip.times[taken], np.stack(poses), None if clip.poses is None else clip.poses[taken])


def trajectory_errors(trajectory: Trajectory) -> TrajectoryErrors:
    """Errors of a trajectory with true poses. Frames whose true pose is not known are left out.

    Raises:
        DataError: the true poses are unknown, or the true or the estimated camera never moves.
        ImportError: evo is not installed.
    """
    try:
        from evo.core import metrics
        from evo.core.geometry import GeometryException
        from evo.core.trajectory import PosePath3D
    except ImportError as error:
        raise ImportError(
            f"trajectories are compared with evo: pip install 'fadepth_ros[odometry]' ({error})"
        ) from error

    if trajectory.true_poses is None:
        raise DataError("the true poses are unknown")
    known = np.isfinite(trajectory.true_poses).all((1, 2))
    truth, estimate = (PosePath3D(poses_se3=list(poses[known])) for poses in (trajectory.true_poses, trajectory.poses))
    for path, whose in ((truth, "true"), (estimate, "estimated")):
        if not path.path_length > 0:
            raise DataError(f"the {whose} camera never moves, so the trajectories cannot be compared")

    def absolute(correct_scale: bool) -> float | None:
        aligned = deepcopy(estimate)
        try:
            aligned.align(truth, correct_scale)
        except GeometryException:
            return None
        error = metrics.APE(metrics.PoseRelation.translation_part)
        error.process_data((truth, aligned))
        return float(error.get_statistic(metrics.StatisticsType.rmse))

    def relative(relation: metrics.PoseRelation) -> float:
        error = metrics.RPE(relation, delta=1, delta_unit=metrics.Unit.frames)
        error.process_data((truth, scaled))
        return float(error.get_statistic(metrics.StatisticsType.mean))

    scale = float(truth.path_length / estimate.path_length)
    scaled = deepcopy(estimate)
    scaled.scale(scale)
    step = truth.path_length / (truth.num_poses - 1)
    return TrajectoryErrors(
        ate_sim3=absolute(correct_scale=True),
        ate_se3=absolute(correct_scale=False),
        translation=100 * relative(metrics.PoseRelation.translation_part) / step,
        rotation=relative(metrics.PoseRelation.rotation_angle_deg),
        scale=scale,
    )


def write_trajectory(trajectory: Trajectory, path: Path, kind: str = "kitti") -> None:
    """Write the estimated poses, one per line.

    Args:
        kind: "kitti": the upper 3x4 of the camera-to-world pose, row by row. "tum": t tx ty tz qx qy qz qw, t in
            seconds.

    Raises:
        ValueError: another kind.
        OSError: the file cannot be written.
    """
    if kind not in FORMATS:
        raise ValueError(f"unknown trajectory format '{kind}'; known: {', '.join(FORMATS)}")
    if kind == "kitti":
        rows = trajectory.poses[:, :3].reshape(-1, 12)
    else:
        quaternions = [_quaternion(pose[:3, :3]) for pose in trajectory.poses]
        rows = np.column_stack([trajectory.times, trajectory.poses[:, :3, 3], quaternions])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, rows, fmt="%.9g" if kind == "kitti" else ["%.9f"] + 7 * ["%.9g"])


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion (x, y, z, w) of a rotation [3, 3]."""
    vector = cv2.Rodrigues(rotation)[0].ravel()
    angle = np.linalg.norm(vector)
    axis = vector / angle if angle > 0 else vector
    return np.array([*(axis * np.sin(angle / 2)), np.cos(angle / 2)])
