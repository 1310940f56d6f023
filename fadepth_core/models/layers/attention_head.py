"""Disparity head AttDispv2 (docs/method.md, section 5.7): a local filter gated by the global context of the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fadepth_core.models.layers.channels import ChannelAttention
from fadepth_core.models.layers.context import GlobalContext, TokenConfig
from fadepth_core.models.layers.conv import conv2d


class AttentionDisparityHead(nn.Module):
    """x = σ(c ⊙ t): c from a 3×3 filter, t in (0, 1) from the global context. Shapes: [B, C, H, W] -> [B, 1, H, W]."""

    def __init__(self, channels: int, tokens: TokenConfig):
        super().__init__()
        self.attention = ChannelAttention()
        # Reflection padding: zeros beyond the border would look like a depth edge.
        self.conv = nn.Conv2d(channels, 1, 3, padding=1, padding_mode="reflect")
        self.gate = nn.Sequential(GlobalContext(channels, tokens), conv2d(channels, 1, 1, bias=True), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return torch.sigmoid(self.conv(x) * self.gate(x))
