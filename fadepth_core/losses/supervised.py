"""Losses against measurements, for data that has them (beyond the paper, because robots need metres): true depth, and
the speed of the camera, which fixes the scale that monocular video leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.models.layers.head import disparity_to_depth


def depth_loss(
    disparities: Sequence[Tensor],
    truth: Tensor,
    min_depth: float,
    max_depth: float,
    error: Literal["relative", "log"] = "relative",
) -> Tensor:
    """Scale-aware log-depth loss: mean over the pixels whose truth is known, averaged over the scales.

    With δ = log D - log D_true a pixel costs |δ| in the error "log", whose best guess is the median of what a pixel may be.
    In the error "relative" it costs |δ| where it is too near, and where it is too far its relative error e^δ - 1, growing
    with constant slope from δ = 1 on. So where leaves and sky, or a car and the road behind it, cannot be told
    apart, the nearer one wins: calling near things far is what robots can least afford, and what AbsRel counts most.
    (SmallDepth on rendered streets, 1200 steps: AbsRel 0.457 instead of 0.519 with |δ| on both sides, δ1 0.482 instead of
    0.481, and the ratio of true to predicted medians 0.99 instead of 0.79.)

    Not scale-invariant on purpose: a common factor on all depths costs as much as it is wrong. Each image counts alike, however
    dense its truth; images without any count nothing. Truth beyond the range the network can express is compared at its
    end.

    Args:
        disparities: x_j in (0, 1) at one or more scales, each [B, 1, h, w]; brought to the truth's size.
        truth: depth in metres [B, H, W], 0 where unknown.
        min_depth, max_depth: metres that the network's range ends at.
        error: see above.
    """
    known = truth > 0
    target = truth.clamp(min_depth, max_depth).log()
    count = known.sum((1, 2))
    total = truth.new_zeros(())
    for disparity in disparities:
        # Disparity, not depth, is interpolated: as the published protocols do.
        x = F.interpolate(disparity.to(truth.dtype), size=truth.shape[-2:], mode="bilinear", align_corners=False)
        difference = disparity_to_depth(x, min_depth, max_depth).squeeze(1).log() - target
        cost = difference.abs() if error == "log" else _asymmetric(difference)
        means = (cost * known).sum((1, 2)) / count.clamp(min=1)
        total = total + means.sum() / (count > 0).sum().clamp(min=1)
    return total / len(disparities)


def _asymmetric(difference: Tensor) -> Tensor:
    """|δ| where too near; where too far, the relative error e^δ - 1, from δ = 1 on with constant slope."""
    far = difference.clamp(0, 1)
    return torch.where(difference < 0, -difference, far.expm1() + math.e * (difference - far))


def speed_loss(translations: Tensor, speed: Tensor, interval: Tensor) -> Tensor:
    """Mean of |length of the predicted translation - speed · interval|, in metres; direction is left free.

    Shapes: translations [B, N, 3] in metres, of N motions that each span one interval; speed [B] in metres per second,
    NaN where unknown; interval [B] in seconds.
    """
    known = speed.isfinite()
    travelled = torch.where(known, speed * interval, 0.0)[:, None]
    error = (translations.norm(dim=-1) - travelled).abs().mean(dim=1)
    return (error * known).sum() / known.sum().clamp(min=1)
