"""Axial downsampling of HQDecv2 (docs/method.md, section 5.5).

One branch moves pixels into channels, first along the height, then along the width, so no pixel is lost. The other
branch is max pooling. AdaCoeff fuses the two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.models.layers.adacoeff import AdaCoeff
from fadepth_core.models.layers.channels import ChannelInteraction, conv_bn_elu


class AxialDownsample(nn.Module):
    """Downsampling by a factor s. Shapes: [B, C, H, W] -> [B, C, H / s, W / s]; H and W are multiples of s."""

    def __init__(self, channels: int, factor: int):
        super().__init__()
        self.pool = nn.Sequential(nn.MaxPool2d(factor), nn.BatchNorm2d(channels))
        self.axial = nn.Sequential(
            _AxialStep(channels, factor, dim=2), _AxialStep(channels, factor, dim=3), nn.BatchNorm2d(channels)
        )
        self.fuse = AdaCoeff(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.fuse(self.pool(x), self.axial(x)))


class _AxialStep(nn.Module):
    """Downsampling of one axis: groups of s lines become s·C channels, which are mixed and reduced to C channels."""

    def __init__(self, channels: int, factor: int, dim: int):
        super().__init__()
        self.dim = dim
        self.phase = nn.Parameter(torch.empty(factor))  # one learned offset for each of the s lines of a group
        nn.init.trunc_normal_(self.phase, std=0.02)
        self.interact = ChannelInteraction(channels * factor)
        self.exit = conv_bn_elu(channels * factor, channels)

    def forward(self, x: Tensor) -> Tensor:
        lines = x.unflatten(self.dim, (-1, len(self.phase))).movedim(self.dim + 1, 2)  # [B, C, s, H', W']
        lines = lines + self.phase.view(-1, 1, 1)
        return self.exit(self.interact(lines.flatten(1, 2)))
