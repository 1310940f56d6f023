"""Base class of the depth networks: the input normalisation, outputs and depth range that all of them share."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fadepth_core.geometry import MAX_DEPTH, MIN_DEPTH, depth_to_disparity
from fadepth_core.models.layers.backbone import with_fixed_padding
from fadepth_core.models.layers.confidence import ConfidenceHead
from fadepth_core.models.layers.folding import without_batch_norm
from fadepth_core.models.layers.module_list import ModuleList


@dataclass
class DepthFeatures:
    """Outputs of a depth network that the losses use.

    Attributes:
        disparities: x_j in (0, 1) at 1, 1/2 and 1/4 of the input, each [B, 1, h, w].
        encoder: maps E_1..E_5 at 1/2 .. 1/32 of the input, each [B, C, h, w].
        decoder: maps R_1..R_5 at 1/1 .. 1/16 of the input, each [B, C, h, w].
    """

    disparities: tuple[Tensor, ...]
    encoder: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]


class DeployedNetwork(nn.Module):
    """Base class of the deployment forms.

    Attributes:
        min_depth, max_depth, confidence: as for `DepthNetwork`.
        decoder_widths: channels of the decoder maps R_1, R_2, ...

    Args:
        trained: the training form, which is not changed.
    """

    min_depth: float
    max_depth: float
    decoder_widths: tuple[int, ...]
    confidence: ConfidenceHead | None

    def __init__(self, trained: DepthNetwork):
        super().__init__()
        self.min_depth, self.max_depth = trained.min_depth, trained.max_depth
        self.decoder_widths = trained.decoder_widths
        self.confidence = copy.deepcopy(trained.confidence)

    def maps(self, image: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Finest disparity x in (0, 1) [B, 1, H, W] and the decoder maps R_1.. of a normalised image [B, 3, H, W]."""
        raise NotImplementedError

    def forward(self, image: Tensor, with_confidence: bool = False) -> Any:
        """Finest disparity x in (0, 1) [B, 1, H, W] of a normalised image [B, 3, H, W]; `with_confidence` returns x and
        the confidence in (0, 1) [B, 1, H, W] as a pair."""
        # One `forward` for both, because the ONNX exporter names nodes after modules that are called, not after methods.
        x, decoder = self.maps(image)
        if not with_confidence:
            return x
        if self.confidence is None:
            raise ValueError("this network has no confidence head")
        return x, self.confidence(decoder)


def add_confidence(network: DepthNetwork | DeployedNetwork) -> ConfidenceHead:
    """Give a network without confidence an untrained confidence head, which is returned."""
    network.confidence = ConfidenceHead(network.decoder_widths).train(network.training)
    return network.confidence


def halved_size(size: Sequence[int], halvings: int) -> tuple[int, ...]:
    """Size (height, width) of a map at 1/2^halvings of an image of `size`. Strided filters round odd sides up."""
    return tuple(math.ceil(side / 2**halvings) for side in size)


class DepthNetwork(nn.Module):
    """Base class of the training forms. `fuse()` of a subclass returns the deployment form.

    Attributes:
        heads: set by subclasses: three disparity heads, finest first, each with a convolution `conv` before the
            sigmoid.
        decoder_widths: set by subclasses: channels of the decoder maps R_1, R_2, ...
        confidence: predicts the errors of depth; None if there is no such head. `add_confidence` adds it. Both forms of
            a network have the same head.

    Args:
        min_depth, max_depth: depth range in metres; disparity 1 stands for `min_depth`, disparity 0 for `max_depth`.

    Shapes: image [B, 3, H, W], normalised with `PIXEL_MEAN` and `PIXEL_STD`, H and W at least 32 -> `DepthFeatures`,
    whose maps at 1/s of the input have ceil(H / s) rows and ceil(W / s) columns.
    """

    #: Pixel offset of the encoder map at 1/2: its feature i is centred on image pixel 2·i + feature_offset, along both
    #: axes. The offset is 0 if the strided filters pad both sides equally.
    feature_offset = 0
    #: In an untrained head, the input of the sigmoid is the output of `conv` times this factor.
    initial_gate = 1.0

    heads: ModuleList[Any]
    decoder_widths: tuple[int, ...]
    confidence: ConfidenceHead | None

    def __init__(self, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH):
        super().__init__()
        self.min_depth, self.max_depth = min_depth, max_depth
        self.confidence = None

    def forward(self, image: Tensor) -> DepthFeatures:
        raise NotImplementedError

    def fuse(self) -> DeployedNetwork:
        """The deployment form, in evaluation mode, without BatchNorm and ETM: image [B, 3, H, W] -> finest disparity
        x in (0, 1) [B, 1, H, W]. This module is not changed."""
        raise NotImplementedError

    def encoder_modules(self) -> list[nn.Module]:
        """The modules that the paper's Table IV counts as the encoder."""
        raise NotImplementedError

    def decoder_modules(self) -> list[nn.Module]:
        """The modules that Table IV counts as the decoder: all others, including the two coarser heads."""
        raise NotImplementedError

    def encoder_blocks(self) -> int:
        """Number of residual blocks in the encoder: N of Table IV."""
        raise NotImplementedError

    @torch.no_grad()
    def set_start_depth(self, metres: float) -> None:
        """Set the biases of untrained heads so that the network predicts a depth of about `metres`.

        Metric training needs this. Without it an untrained network predicts 0.2 m, the middle of the disparity range.
        At that depth no point of one frame projects into the next frame, so the losses have no useful gradient.
        Measured on
        a scene with known poses: started at 8 m, the error falls from 0.48 to 0.16; started at 0.2 m, it stays at 0.98.

        Raises:
            ValueError: the depth is outside the network's range.
        """
        if not self.min_depth < metres < self.max_depth:
            raise ValueError(f"a start depth must lie between {self.min_depth} and {self.max_depth} m, got {metres}")
        x = depth_to_disparity(metres, self.min_depth, self.max_depth)
        for head in self.heads:
            head.conv.bias.fill_(math.log(x / (1 - x)) / self.initial_gate)


class BackboneDepthNetwork(DepthNetwork):
    """Base class of the networks with a timm encoder and a decoder that has all other modules but the heads."""

    encoder: nn.Module
    decoder: nn.Module

    def encoder_modules(self) -> list[nn.Module]:
        return [self.encoder]

    def decoder_modules(self) -> list[nn.Module]:
        return [self.decoder, self.heads]


class DeployedBackboneNetwork(DeployedNetwork):
    """Base class of their deployment forms: BatchNorm folded, finest disparity only. `trained` is not changed."""

    def __init__(self, trained: BackboneDepthNetwork):
        super().__init__(trained)
        self.encoder = with_fixed_padding(without_batch_norm(trained.encoder))
        self.decoder = without_batch_norm(trained.decoder)
        self.head = without_batch_norm(trained.heads[0])
        self.eval().requires_grad_(False)
