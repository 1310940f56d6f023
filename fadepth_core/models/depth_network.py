"""What every depth network shares: how its input is normalised, what it returns, and its depth range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fadepth_core.models.layers.head import MAX_DEPTH, MIN_DEPTH


@dataclass
class DepthFeatures:
    """What the losses look at.

    Attributes:
        disparities: x_j in (0, 1) at 1, 1/2 and 1/4 of the input, each [B, 1, h, w].
        encoder: E_1..E_5, at 1/2 .. 1/32.
        decoder: R_1..R_5, at 1/1 .. 1/16.
    """

    disparities: tuple[Tensor, ...]
    encoder: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]


def halved_size(size: Sequence[int], halvings: int) -> tuple[int, ...]:
    """Size (height, width) of a map at 1/2^halvings of an image of `size`: sides are rounded up, as strided filters do."""
    return tuple(math.ceil(side / 2**halvings) for side in size)


class DepthNetwork(nn.Module):
    """Base class of the training forms. `fuse()` of a subclass returns the deployment form.

    Subclasses set `heads`, three modules with a filter `conv` before the sigmoid, finest first.

    Args:
        min_depth, max_depth: metres that the sigmoid's range is mapped to.

    Shapes: image [B, 3, H, W], normalised with `PIXEL_MEAN` and `PIXEL_STD`, any H, W of at least 32 pixels ->
    `DepthFeatures`, whose maps at 1/s of the input have ceil(H / s) rows and ceil(W / s) columns.
    """

    #: Pixel of the image, along both axes, that the first feature of the map at 1/2 is centred on; feature i is centred on
    #: pixel 2·i + feature_offset. 0: strided filters with equal padding on both sides.
    feature_offset = 0
    #: What the response of an untrained head's filter is multiplied with before the sigmoid.
    initial_gate = 1.0

    heads: nn.ModuleList

    def __init__(self, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH):
        super().__init__()
        self.min_depth, self.max_depth = min_depth, max_depth

    def forward(self, image: Tensor) -> DepthFeatures:
        raise NotImplementedError

    def fuse(self) -> nn.Module:
        """The deployment form: image [B, 3, H, W] -> finest disparity x in (0, 1) [B, 1, H, W], without BatchNorm and
        ETM, in evaluation mode. This module is left unchanged."""
        raise NotImplementedError

    def encoder_modules(self) -> list[nn.Module]:
        raise NotImplementedError

    def decoder_modules(self) -> list[nn.Module]:
        """All behind the encoder, with the two coarser heads that only training needs, as the paper's Table IV counts."""
        raise NotImplementedError

    def encoder_blocks(self) -> int:
        """Number of residual blocks in the encoder: N of the paper's Table IV."""
        raise NotImplementedError

    @torch.no_grad()
    def set_start_depth(self, metres: float) -> None:
        """Let untrained heads answer about `metres` instead of the middle of the disparity range, which is 0.2 m.

        For metric training: at 0.2 m nothing that one frame sees lies inside the next, and no loss says where to go
        (measured on a scene with known poses: the error falls from 0.48 to 0.16 from a start at 8 m, and stays at 0.98
        from 0.2 m).

        Raises:
            ValueError: the depth is outside the network's range.
        """
        if not self.min_depth < metres < self.max_depth:
            raise ValueError(f"a start depth must lie between {self.min_depth} and {self.max_depth} m, got {metres}")
        near, far = 1 / self.min_depth, 1 / self.max_depth
        x = (1 / metres - far) / (near - far)
        for head in self.heads:
            head.conv.bias.fill_(math.log(x / (1 - x)) / self.initial_gate)
