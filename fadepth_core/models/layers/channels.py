"""Channel operations of HQDecv2 (docs/method.md, sections 5.3, 5.5, 5.6, 5.8).

The convolution unit of HQDecv2, two kinds of channel attention, and the channel interaction unit, which combines them.
"""

from __future__ import annotations

from torch import Tensor, nn

from fadepth_core.models.layers.conv import ConvBN, conv2d


def conv_bn_elu(cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution (no bias) -> BatchNorm -> ELU: [B, Ci, H, W] -> [B, Co, ceil(H / s), ceil(W / s)]."""
    return nn.Sequential(ConvBN(cin, cout, kernel, stride, groups=groups, relu=False), nn.ELU(inplace=True))


class ChannelAttention(nn.Module):
    """ECA: scales each channel by a weight computed from the means of three neighbouring channels.

    Shapes: [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3)).unsqueeze(1)
        return x * self.conv(means).sigmoid().transpose(1, 2).unsqueeze(-1)


class SqueezeExcite(nn.Module):
    """Scales each channel by a weight computed from the means of all channels, with C/16 hidden channels.

    Shapes: [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Sequential(
            conv2d(channels, channels // 16, 1, bias=True),
            nn.SiLU(inplace=True),
            conv2d(channels // 16, channels, 1, bias=True),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x.mean((2, 3), keepdim=True))


class ChannelInteraction(nn.Sequential):
    """CI: depthwise filter, squeeze-excite, 1×1 filter, channel attention. Shapes: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int):
        super().__init__(
            conv_bn_elu(channels, channels, 3, groups=channels),
            SqueezeExcite(channels),
            conv_bn_elu(channels, channels),
            ChannelAttention(),
        )
