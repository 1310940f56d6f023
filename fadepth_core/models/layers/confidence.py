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

#: Index of the decoder map that the head reads, R_3, and the input's size over that of the map.
LEVEL, SCALE = 2, 4
#: Channels of the maps inside the head.
WIDTH = 16


class ConfidenceHead(nn.Module):
    """Confidence c = σ(-s) = 1 / (1 + u), where u = e^s is the expected relative error of depth.

    s is computed from R_3 by 1×1, depthwise 3×3 and 1×1 filters; the last one gives the 4×4 pixels of each pixel of
    R_3 as channels. Interpolating a single channel would take longer than all filters: with it the head takes 15 % of
    OpenVINO's time for a frame, without it 1 to 2 %. Finer maps cost more and rank errors worse. AUSE (AbsRel) on 21
    pictures with measured depth and on 64 validation pictures: R_1 with one 1×1 filter 0.131 and 0.153, R_2 0.099 and
    0.145, R_3 0.091 and 0.136, R_4 0.085 and 0.157.

    Args:
        widths: channels of the decoder maps R_1, R_2, ...

    Shapes: decoder maps [B, C_j, h_j, w_j] -> c in [0, 1] [B, 1, H, W], at the input's size, a multiple of 4.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.reduce = nn.Conv2d(widths[LEVEL], WIDTH, 1)
        self.spread = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.sum = nn.Conv2d(WIDTH, SCALE * SCALE, 1)

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
        return F.pixel_shuffle(self.sum(F.relu(self.spread(F.relu(self.reduce(decoder[LEVEL]))))), SCALE)
