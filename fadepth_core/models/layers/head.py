"""Disparity head (FA-Depth eq. 12): one dilated 3×3 filter and a sigmoid.

`geometry.disparity_to_depth` converts its output to metres.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fadepth_core.models.layers.conv import conv2d, load_kernel
from fadepth_core.models.layers.etm import ETMConfig, ETMConv2d


class DisparityHead(nn.Module):
    """x = σ(Conv3×3, dilation δ). Shapes: [B, C, H, W] -> [B, 1, H, W], values in (0, 1)."""

    def __init__(self, channels: int, dilation: int = 2, etm: ETMConfig | None = None):
        super().__init__()
        self.conv = conv2d(channels, 1, 3, dilation=dilation, bias=True, etm=etm)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x))

    def fuse(self) -> FusedDisparityHead:
        return FusedDisparityHead(self.conv.reparameterize() if isinstance(self.conv, ETMConv2d) else self.conv)

    def load_fused(self, fused: FusedDisparityHead) -> None:
        """Load the weights of `fused`, so that both heads give the same output: the inverse of `fuse`."""
        load_kernel(
            self.conv, (fused.depthwise.weight * fused.sum.weight.transpose(0, 1)).transpose(0, 1), fused.sum.bias
        )


class FusedDisparityHead(nn.Module):
    """Deployment form of `DisparityHead`: the filter from C channels to 1 is split into C depthwise filters and a sum.

    Inference engines compute several output channels at once, as a vector. With a single output channel most of the
    vector is padding; depthwise filters use all of it. The split costs one more multiply-accumulate per channel and
    pixel (docs/method.md, section 1.5b).

    Shapes: [B, C, H, W] -> [B, 1, H, W], values in (0, 1).
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        channels, dilation = conv.in_channels, conv.dilation[0]
        self.depthwise = nn.Conv2d(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False
        ).to(conv.weight)
        self.sum = nn.Conv2d(channels, 1, 1).to(conv.weight)
        with torch.no_grad():
            self.depthwise.weight.copy_(conv.weight.transpose(0, 1))
            self.sum.weight.fill_(1.0)
            assert conv.bias is not None
            assert self.sum.bias is not None
            self.sum.bias.copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.sum(self.depthwise(x)))
