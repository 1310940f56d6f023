"""Deployment form of networks whose modules have no `fuse()` of their own: removes all BatchNorms and ETMs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fadepth_core.models.layers.conv import fold, running_statistics
from fadepth_core.models.layers.etm import ETMConv2d


@torch.no_grad()
def without_batch_norm(module: nn.Module) -> nn.Module:
    """A copy of `module` without BatchNorm and ETM, in evaluation mode, with the same output.

    A BatchNorm that is declared directly after a convolution or an ETM is folded into it. Any other BatchNorm becomes a
    `ChannelAffine`. Child modules must be declared in the order in which they run; this holds for all modules of this
    package and for timm's encoders.
    """
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for parent in list(module.modules()):
        previous = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                if previous is not None and isinstance(conv := getattr(parent, previous), (nn.Conv2d, ETMConv2d)):
                    setattr(parent, previous, fold(conv, child))
                    affine: nn.Module = nn.Identity()
                else:
                    affine = ChannelAffine(child)
                # timm's BatchNorm contains the activation that follows it.
                act: nn.Module | None = getattr(child, "act", None)
                setattr(parent, name, affine if act is None else nn.Sequential(affine, act))
            previous = name
        for name, child in list(parent.named_children()):
            if isinstance(child, ETMConv2d):  # not followed by a BatchNorm
                setattr(parent, name, child.reparameterize().requires_grad_(False))
    return module


class ChannelAffine(nn.Module):
    """BatchNorm with fixed statistics: one scale and one shift per channel. Shapes: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, bn: nn.BatchNorm2d):
        super().__init__()
        mean, var = running_statistics(bn)
        scale = bn.weight.double() / (var.double() + bn.eps).sqrt()
        shift = bn.bias.double() - mean.double() * scale
        self.scale = nn.Parameter(scale.to(bn.weight.dtype).view(-1, 1, 1), requires_grad=False)
        self.shift = nn.Parameter(shift.to(bn.weight.dtype).view(-1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift
