"""Confidence head: predicts how wrong the depth of each pixel is, from the decoder maps of a frozen depth network.

The head is not in the paper. It is trained with the log-likelihood of the network's own errors
(`losses.confidence.error_likelihood`), and does not change depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Channels of the maps inside the head.
WIDTH = 16


class ConfidenceHead(nn.Module):
    """Confidence c = σ(-s) = 1 / (1 + u), where u = e^s is the expected relative error of depth.

    s is computed from R_2, at half resolution, by 1×1, depthwise 3×3 and 1×1 filters, and interpolated. At full
    resolution the same filters would take four times as long: the head may take at most 3 % of the network's time.

    Args:
        widths: channels of the decoder maps R_1, R_2, ...

    Shapes: decoder maps [B, C_j, h_j, w_j] -> c in (0, 1) [B, 1, H, W], at the size of R_1.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.reduce = nn.Conv2d(widths[1], WIDTH, 1)
        self.spread = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.sum = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, decoder: Sequence[Tensor]) -> Tensor:
        return torch.sigmoid(-self.log_uncertainty(decoder))

    @torch.no_grad()
    def set_start(self, error: float) -> None:
        """Let an untrained head expect about this relative error everywhere."""
        assert self.sum.bias is not None
        self.sum.bias.fill_(math.log(error))
        self.sum.weight.mul_(0.1)

    def log_uncertainty(self, decoder: Sequence[Tensor]) -> Tensor:
        """s = ln u [B, 1, H, W]."""
        s = self.sum(F.relu(self.spread(F.relu(self.reduce(decoder[1])))))
        return F.interpolate(s, size=decoder[0].shape[-2:], mode="bilinear", align_corners=False)
