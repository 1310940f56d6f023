"""Depthwise convolution as a sum of shifted images, for compilers that merge arithmetic (`runtime.backends.inductor`)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class DepthwiseSum(nn.Module):
    """The same function as a depthwise convolution with zero padding; for inference.

    Shapes: [B, C, H, W] -> that of the convolution.

    Args:
        conv: a convolution that `replaces` accepts. Its weights are used, not copied.

    Raises:
        ValueError: `replaces` does not accept it.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        if not self.replaces(conv) or isinstance(conv.padding, str):
            raise ValueError(f"not a depthwise convolution with zero padding: {conv}")
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.dilation = conv.stride, conv.dilation
        self.padding: tuple[int, ...] = conv.padding

    @staticmethod
    def replaces(conv: nn.Conv2d) -> bool:
        depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
        return depthwise and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        (sy, sx), (py, px), (dy, dx) = self.stride, self.padding, self.dilation
        rows, columns = self.weight.shape[-2:]
        height = (x.shape[-2] + 2 * py - dy * (rows - 1) - 1) // sy + 1
        width = (x.shape[-1] + 2 * px - dx * (columns - 1) - 1) // sx + 1
        padded = F.pad(x, (px, px, py, py))
        # Summed in float32, as convolutions in half precision are.
        weight = self.weight.float()
        total = weight.new_zeros(()) if self.bias is None else self.bias.float().view(-1, 1, 1)
        for i in range(rows):
            for j in range(columns):
                top, left = i * dy, j * dx
                part = padded[..., top : top + (height - 1) * sy + 1 : sy, left : left + (width - 1) * sx + 1 : sx]
                total = total + part.float() * weight[:, 0, i, j].view(-1, 1, 1)
        return total.to(x.dtype)


def with_depthwise_sums(module: Network) -> Network:
    """A copy of a deployed network, or of a module that contains one, in which depthwise convolutions are `DepthwiseSum`s."""

    def replace(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and DepthwiseSum.replaces(child):
                setattr(parent, name, DepthwiseSum(child))
            else:
                replace(child)

    copied = copy.deepcopy(module)
    replace(copied)
    return copied
