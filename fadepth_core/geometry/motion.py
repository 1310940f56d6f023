"""Rigid camera motion, and the error between two motions. T_{a→b} [..., 4, 4] maps a point's coordinates in camera a to
those in camera b (docs/method.md, section 4.1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def motion_from_vector(vector: Tensor) -> Tensor:
    """Motion [..., 4, 4] from [..., 6]: axis-angle rotation (radians), then translation.

    The rotation is the matrix exponential, whose gradient is exact everywhere. kornia's conversion is not used, because
    up to 0.8.1, the last version for Python 3.10, its gradient at zero rotation is NaN.
    """
    x, y, z = vector[..., :3].unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return _rigid(torch.linalg.matrix_exp(cross), vector[..., 3:, None])


def invert_motion(motion: Tensor) -> Tensor:
    """T_{b→a} from T_{a→b}: rotation Rᵀ, translation -Rᵀt. Shapes: [..., 4, 4] -> [..., 4, 4]."""
    rotation = motion[..., :3, :3].transpose(-1, -2)
    return _rigid(rotation, -rotation @ motion[..., :3, 3:])


def relative_motion(pose_a: Tensor, pose_b: Tensor) -> Tensor:
    """T_{a→b} from two camera-to-world poses. Shapes: [..., 4, 4], [..., 4, 4] -> [..., 4, 4]."""
    return invert_motion(pose_b) @ pose_a


def mirror_motion(motion: Tensor) -> Tensor:
    """Motion (or pose) of the camera in horizontally mirrored images: M·T·M with M = diag(-1, 1, 1, 1).

    Shapes: [..., 4, 4] -> [..., 4, 4].
    """
    mirror = motion.new_tensor([-1.0, 1.0, 1.0, 1.0])
    return mirror[:, None] * motion * mirror


def transform_points(motion: Tensor, points: Tensor) -> Tensor:
    """X' = T·X. Shapes: [B, 4, 4], [B, 3, H, W] -> [B, 3, H, W]."""
    moved = torch.baddbmm(motion[:, :3, 3:], motion[:, :3, :3], points.flatten(2))
    return moved.unflatten(2, points.shape[-2:])


def rotation_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """Angle in degrees between the rotations of two motions. Shapes: [..., 4, 4], [..., 4, 4] -> [...]."""
    r = estimate[..., :3, :3].transpose(-1, -2) @ truth[..., :3, :3]
    twice_sine = torch.stack(
        [r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], dim=-1
    ).norm(dim=-1)
    twice_cosine = r.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    # The arc cosine of the trace is not used: in single precision it cannot resolve angles below 0.03°.
    return torch.rad2deg(torch.atan2(twice_sine, twice_cosine))


def translation_direction_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """Angle in degrees between the translation directions of two motions; NaN where one translation is zero.

    Shapes: [..., 4, 4], [..., 4, 4] -> [...].
    """
    a, b = estimate[..., :3, 3], truth[..., :3, 3]
    angle = torch.rad2deg(torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1)))
    return angle.masked_fill((a == 0).all(-1) | (b == 0).all(-1), torch.nan)


def _rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """Assemble a motion: rotation [..., 3, 3], translation [..., 3, 1] -> [..., 4, 4]."""
    upper = torch.cat([rotation, translation], dim=-1)
    # Append the row (0, 0, 0, 1).
    return F.pad(upper, (0, 0, 0, 1)) + upper.new_tensor([0, 0, 0, 1]).diag()
