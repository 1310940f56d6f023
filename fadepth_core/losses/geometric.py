"""What makes two views comparable, and the depth structure loss L_bds (specification 4.2 and 4.3).

Moving objects and occlusions show in two ways: the flow there and back does not return to where it began, and the depth
moved from one view differs from the depth sampled in the other. Both become weights; the second is a loss as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fadepth_core.geometry import Reprojection

#: A directed pair of which less than this share of an image's pixels can be compared is left out.
SMALLEST_SHARE = 0.01


@dataclass
class PairWeights:
    """How far each pixel of a can be compared with b, [B, 1, H, W]; nothing here carries a gradient.

    Attributes:
        unoccluded: O, whether flow there and back returns to the pixel, bool.
        visible: V·O as 0 or 1, all 0 in images that are left out.
        weight: w = V·O·w_F·w_D in [0, 1], all 0 in images that are left out.
    """

    unoccluded: Tensor
    visible: Tensor
    weight: Tensor


def depth_difference(moved: Tensor, sampled: Tensor) -> Tensor:
    """δ_D = |D^c - D^s| / (D^c + D^s), in [0, 1]; shapes and units of both depths alike, `moved` positive."""
    return (moved - sampled).abs() / (moved + sampled + 1e-7)


@torch.no_grad()
def pair_weights(view: Reprojection, returning: Tensor, difference: Tensor) -> PairWeights:
    """Masks and weights of specification 4.2.

    Args:
        view: reprojection of a into b.
        returning: F_{b→a}⟨q⟩, the opposite flow sampled where a's pixels land [B, 2, H, W].
        difference: δ_D [B, 1, H, W].
    """
    out2, back2 = (flow.square().sum(1, keepdim=True) for flow in (view.flow, returning))
    residual2 = (view.flow + returning).square().sum(1, keepdim=True)
    unoccluded = residual2 < 0.01 * (out2 + back2) + 0.5
    visible = (view.valid & unoccluded).to(difference.dtype)
    flow_weight = torch.exp(-residual2.sqrt() / (out2.sqrt() + back2.sqrt() + 1))
    weight = visible * flow_weight * (1 - difference)
    enough = _share(weight) >= SMALLEST_SHARE
    return PairWeights(unoccluded, visible * enough, weight * enough)


def structure_loss(difference: Tensor, visible: Tensor) -> Tensor:
    """L_bds: mean of δ_D [B, 1, H, W] over what both views see; its gradient reaches both depths and the motion."""
    return weighted_mean(difference, visible)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """⟨w⟩-mean of each image, then the mean over the images with enough weight; 0 if there is none.

    Each image counts alike, so that a batch and the average of its parts give the same loss. Shapes: two [B, 1, H, W]
    -> [].
    """
    enough = _share(weight) >= SMALLEST_SHARE
    means = (values * weight).sum((1, 2, 3), keepdim=True) / (weight.sum((1, 2, 3), keepdim=True) + 1e-7)
    return (means * enough).sum() / enough.sum().clamp(min=1)


def _share(weight: Tensor) -> Tensor:
    """Mean weight of each image, [B, 1, 1, 1]."""
    return weight.mean((1, 2, 3), keepdim=True)
