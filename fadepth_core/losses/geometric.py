"""Masks and weights of pixels, and the depth structure loss L_bds (docs/method.md, sections 4.2, 4.3).

At moving objects and occlusions, forward and backward flow do not cancel, and the depth moved from one view differs
from the depth sampled in the other view. Both differences reduce the weight of a pixel. The difference of the depths is
also the structure loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fadepth_core.geometry import Reprojection

#: A directed pair is skipped if the mean weight of its pixels is below this (docs/method.md, section 4.2).
MIN_MEAN_WEIGHT = 0.01


@dataclass
class PairWeights:
    """How much each pixel of view a counts in the comparison with view b. Each [B, 1, H, W], without gradients.

    Attributes:
        unoccluded: O, whether forward and backward flow cancel, bool.
        visible: V·O as 0 or 1; all 0 in images that are skipped (`MIN_MEAN_WEIGHT`).
        weight: w = V·O·w_F·w_D in [0, 1]; all 0 in images that are skipped.
    """

    unoccluded: Tensor
    visible: Tensor
    weight: Tensor


def depth_difference(moved: Tensor, sampled: Tensor) -> Tensor:
    """δ_D = |D^c - D^s| / (D^c + D^s), in [0, 1]. Both depths have the same shape and unit; `moved` is positive."""
    return (moved - sampled).abs() / (moved + sampled + 1e-7)


@torch.no_grad()
def pair_weights(view: Reprojection, returning: Tensor, difference: Tensor) -> PairWeights:
    """Masks and weights of docs/method.md, section 4.2.

    Args:
        view: reprojection of a into b.
        returning: F_{b→a}⟨q⟩ [B, 2, H, W], the opposite flow sampled at the pixels q.
        difference: δ_D [B, 1, H, W].
    """
    out2, back2 = (flow.square().sum(1, keepdim=True) for flow in (view.flow, returning))
    residual2 = (view.flow + returning).square().sum(1, keepdim=True)
    unoccluded = residual2 < 0.01 * (out2 + back2) + 0.5
    visible = (view.valid & unoccluded).to(difference.dtype)
    flow_weight = torch.exp(-residual2.sqrt() / (out2.sqrt() + back2.sqrt() + 1))
    weight = visible * flow_weight * (1 - difference)
    enough = _mean_weight(weight) >= MIN_MEAN_WEIGHT
    return PairWeights(unoccluded, visible * enough, weight * enough)


def structure_loss(difference: Tensor, visible: Tensor) -> Tensor:
    """L_bds: mean of δ_D [B, 1, H, W] over pixels visible in both views. Gradients reach both depths and the motion."""
    return weighted_mean(difference, visible)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of each image, averaged over the images whose mean weight is at least `MIN_MEAN_WEIGHT`.

    The result is 0 if there is no such image. All images count the same, regardless of their weights.

    Shapes: two [B, 1, H, W] -> [].
    """
    enough = _mean_weight(weight) >= MIN_MEAN_WEIGHT
    means = (values * weight).sum((1, 2, 3), keepdim=True) / (weight.sum((1, 2, 3), keepdim=True) + 1e-7)
    return (means * enough).sum() / enough.sum().clamp(min=1)


def _mean_weight(weight: Tensor) -> Tensor:
    """Mean weight of each image, [B, 1, 1, 1]."""
    return weight.mean((1, 2, 3), keepdim=True)
