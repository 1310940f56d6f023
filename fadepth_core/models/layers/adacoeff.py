"""Adaptive coefficients AdaCoeff (FA-Depth eq. 23): fusion of several maps with predicted per-pixel weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fadepth_core.models.layers.conv import conv2d


class AdaCoeff(nn.Module):
    """Weighted sum of n maps of one shape.

    The weights are predicted from the maps' channel means and sum to one at every pixel. HQDec instead stored one
    learned weight per pixel, which fixed the size of its input.

    Args:
        maps: their number n.

    Shapes: n maps [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self, maps: int):
        super().__init__()
        hidden = 2 * maps
        self.coefficients = nn.Sequential(
            conv2d(maps, hidden, 1, bias=True),
            nn.ELU(inplace=True),
            conv2d(hidden, hidden, 3, bias=True),
            nn.ELU(inplace=True),
            conv2d(hidden, maps, 1, bias=True),
            nn.Softmax(dim=1),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        means = torch.cat([x.mean(1, keepdim=True) for x in maps], dim=1)
        weights = self.coefficients(means).split(1, dim=1)
        return sum(weight * x for weight, x in zip(weights, maps, strict=True))
