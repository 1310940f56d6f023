"""Refinement AdaRMv2 of HQDecv2 (FA-Depth eq. 24-26): fuses a map with its local and its global context."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.models.layers.adacoeff import AdaCoeff
from fadepth_core.models.layers.channels import ChannelAttention, conv_bn_elu
from fadepth_core.models.layers.context import GlobalContext, TokenConfig
from fadepth_core.models.layers.conv import ConvBN

_SQUEEZE = 4  # r = C / m of eq. 24a


class Refinement(nn.Module):
    """Map, local context and global context, summed with per-pixel weights. Shapes: [B, C, H, W] -> [B, C, H, W].

    Both contexts are computed in C/4 channels.
    """

    def __init__(self, channels: int, tokens: TokenConfig):
        super().__init__()
        squeezed = channels // _SQUEEZE
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze = conv_bn_elu(channels, squeezed)
        self.local_context = nn.Sequential(
            conv_bn_elu(squeezed, squeezed, 3), ConvBN(squeezed, channels, relu=False), ChannelAttention()
        )
        self.global_context = nn.Sequential(
            GlobalContext(squeezed, tokens), ConvBN(squeezed, channels, relu=False), ChannelAttention()
        )
        self.fuse = AdaCoeff(3)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeeze(x)
        return F.elu(self.fuse(self.norm(x), self.local_context(squeezed), self.global_context(squeezed)))
