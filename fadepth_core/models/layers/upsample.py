"""Upsampling DAdaNRSUv2 of HQDecv2 (FA-Depth eq. 27): pixel shuffle fused with bilinear interpolation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fadepth_core.models.layers.adacoeff import AdaCoeff
from fadepth_core.models.layers.channels import ChannelInteraction, conv_bn_elu
from fadepth_core.models.layers.context import TokenConfig
from fadepth_core.models.layers.refine import Refinement


class AdaptiveUpsample(nn.Module):
    """Doubles the resolution. Shapes: [B, C, h, w] -> [B, C, 2h, 2w].

    Four filters expand the map to 4C channels, which pixel shuffle arranges as 2×2 pixels. AdaCoeff fuses the result
    with the bilinear interpolation of the map.
    """

    def __init__(self, channels: int, tokens: TokenConfig):
        super().__init__()
        self.expand = nn.ModuleList(
            [
                nn.Identity(),
                conv_bn_elu(channels, channels, 3, groups=channels),
                conv_bn_elu(channels, channels, 5, groups=channels),
                Refinement(channels, tokens),
            ]
        )
        self.interact = ChannelInteraction(4 * channels)
        self.shuffle = nn.Sequential(nn.PixelShuffle(2), nn.BatchNorm2d(channels))
        self.interpolate = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), nn.BatchNorm2d(channels)
        )
        self.fuse = AdaCoeff(2)

    def forward(self, x: Tensor) -> Tensor:
        expanded = torch.cat([function(x) for function in self.expand], dim=1)
        return self.fuse(self.interpolate(x), self.shuffle(self.interact(expanded)))
