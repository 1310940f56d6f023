"""Losses against measurements, for data that has them (beyond the paper, because robots need metres): true depth, and
the speed of the camera, which fixes the scale that monocular video leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.models.layers.head import disparity_to_depth


def depth_loss(disparities: Sequence[Tensor], truth: Tensor, min_depth: float, max_depth: float) -> Tensor:
    """Scale-aware log-depth loss: mean of |log D - log D_true| where the truth is known, averaged over the scales.

    Not scale-invariant on purpose: a common factor on all depths costs |log factor|. Each image counts alike, however
    dense its truth; images without any count nothing. Truth beyond the range the network can express is compared at its
    end.

    Args:
        disparities: x_j in (0, 1) at one or more scales, each [B, 1, h, w]; brought to the truth's size.
        truth: depth in metres [B, H, W], 0 where unknown.
        min_depth, max_depth: metres that the network's range ends at.
    """
    known = truth > 0
    target = truth.clamp(min_depth, max_depth).log()
    count = known.sum((1, 2))
    total = truth.new_zeros(())
    for disparity in disparities:
        # Disparity, not depth, is interpolated: as the published protocols do.
        x = F.interpolate(disparity.to(truth.dtype), size=truth.shape[-2:], mode="bilinear", align_corners=False)
        error = (disparity_to_depth(x, min_depth, max_depth).squeeze(1).log() - target).abs()
        means = (error * known).sum((1, 2)) / count.clamp(min=1)
        total = total + means.sum() / (count > 0).sum().clamp(min=1)
    return total / len(disparities)


def speed_loss(translations: Tensor, speed: Tensor, interval: Tensor) -> Tensor:
    """Mean of |length of the predicted translation - speed · interval|, in metres; direction is left free.

    Shapes: translations [B, N, 3] in metres, of N motions that each span one interval; speed [B] in metres per second,
    NaN where unknown; interval [B] in seconds.
    """
    known = speed.isfinite()
    travelled = torch.where(known, speed * interval, 0.0)[:, None]
    error = (translations.norm(dim=-1) - travelled).abs().mean(dim=1)
    return (error * known).sum() / known.sum().clamp(min=1)
