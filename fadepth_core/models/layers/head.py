"""Disparity head (FA-Depth eq. 12): one 3×3 filter with spaced elements, then a sigmoid; and the mapping from the
sigmoid's output to depth (specification 1.6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fadepth_core.models.layers.conv import conv2d, load_kernel
from fadepth_core.models.layers.etm import ETMConfig, ETMConv2d

MIN_DEPTH = 0.1  # metres; the range the sigmoid spans, not what the node publishes
MAX_DEPTH = 100.0


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
        """Compute what `fused` does: the inverse of `fuse`."""
        load_kernel(
            self.conv, (fused.depthwise.weight * fused.sum.weight.transpose(0, 1)).transpose(0, 1), fused.sum.bias
        )


class FusedDisparityHead(nn.Module):
    """Deployment form of `DisparityHead`: the C -> 1 filter as C depthwise filters and a 1×1 sum.

    Engines pad a single output channel to a full vector; depthwise filters use every lane. Multiply-accumulates grow by
    one per channel and pixel.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        channels = conv.in_channels
        self.depthwise = nn.Conv2d(
            channels, channels, 3, padding=conv.padding, dilation=conv.dilation, groups=channels, bias=False
        ).to(conv.weight)
        self.sum = nn.Conv2d(channels, 1, 1).to(conv.weight)
        with torch.no_grad():
            self.depthwise.weight.copy_(conv.weight.transpose(0, 1))
            self.sum.weight.fill_(1.0)
            self.sum.bias.copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.sum(self.depthwise(x)))


def disparity_to_depth(x: Tensor, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH) -> Tensor:
    """Depth in metres from the head's output: 1 / (a·x + b), a = 1/d_min - 1/d_max, b = 1/d_max."""
    return 1.0 / ((1.0 / min_depth - 1.0 / max_depth) * x + 1.0 / max_depth)
