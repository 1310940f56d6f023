"""Baseline depth networks: an encoder of timm (an ImageNet classifier without its classification layer) and the decoder
of monodepth2 (Godard et al. 2019, "Digging into self-supervised monocular depth estimation").

"resnet18" and "mobilenetv3" are the networks that the paper compares SmallDepth with (Tables IV and VI); their
parameters and operations equal the printed ones. "unet" takes any encoder of `layers.backbone.ENCODER_WIDTHS` and is
the teacher of the shipped checkpoints. `BaselineDepth` is the training form; `BaselineDepth.fuse()` returns the
exported form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.geometry import MAX_DEPTH, MIN_DEPTH
from fadepth_core.models.depth_network import BackboneDepthNetwork, DeployedBackboneNetwork, DepthFeatures
from fadepth_core.models.layers.backbone import encoder_widths, timm_backbone, without_normalisation
from fadepth_core.models.layers.etm import ETMConfig, convert_to_etm, etm_config
from fadepth_core.models.layers.module_list import ModuleList

#: The paper's baselines: name in `MODELS` -> timm's name of the encoder.
PAPER_BASELINES = {"resnet18": "resnet18", "mobilenetv3": "mobilenetv3_large_100"}
DECODER_WIDTHS = (16, 32, 64, 128, 256)  # R_1..R_5, at 1/1 .. 1/16


class BaselineDepth(BackboneDepthNetwork):
    """Training form of a baseline: timm encoder, `SkipDecoder`, and three disparity heads.

    Args:
        encoder: a name in `layers.backbone.ENCODER_WIDTHS`.
        weights: local file of ImageNet weights of the encoder in timm's format; None starts from random weights.
        etm: see `etm_config`; replaces every filter larger than 1×1, in encoder and decoder. Not possible with encoders
            that pad as TensorFlow does (tf_...).
        min_depth, max_depth: depth range in metres.

    Shapes: as `DepthNetwork`.

    Raises:
        ImportError: timm cannot be imported.
        FileNotFoundError: the file `weights` does not exist.
        ValueError: the encoder is unknown, or `etm` cannot be used.
    """

    def __init__(
        self,
        encoder: str = "tf_efficientnet_lite2",
        weights: str | Path | None = None,
        etm: str | ETMConfig | Mapping | None = None,
        min_depth: float = MIN_DEPTH,
        max_depth: float = MAX_DEPTH,
    ):
        super().__init__(min_depth, max_depth)
        widths = encoder_widths(encoder)
        self.encoder = timm_backbone(encoder, weights, features_only=True)
        if encoder in _ENCODER_CHANGES:
            _ENCODER_CHANGES[encoder](self.encoder)
        # TensorFlow's "same" padding of a strided 3×3 filter pads even sides at the end only, so the first filter is
        # centred on pixel 1.
        self.feature_offset = 1 if encoder.startswith("tf_") else 0
        self.decoder = SkipDecoder(widths)
        self.decoder_widths = DECODER_WIDTHS
        self.heads = ModuleList(ReflectConv(width, 1) for width in DECODER_WIDTHS[:3])
        config = etm_config(etm)
        if config is not None:
            convert_to_etm(self.encoder, config, keep_kernels=weights is not None)
            convert_to_etm(self.decoder, config, keep_kernels=False)
            convert_to_etm(self.heads, config, keep_kernels=False)

    def forward(self, image: Tensor) -> DepthFeatures:
        encoder = self.encoder(image)
        decoder = self.decoder(encoder, image)
        disparities = tuple(torch.sigmoid(head(r)) for head, r in zip(self.heads, decoder, strict=False))
        return DepthFeatures(disparities, tuple(encoder), tuple(decoder))

    def fuse(self) -> FusedBaselineDepth:
        return FusedBaselineDepth(self)

    def encoder_blocks(self) -> int:
        return sum(len(stage) for stage in _stages(without_normalisation(self.encoder)))


class FusedBaselineDepth(DeployedBackboneNetwork):
    """Deployment form of `BaselineDepth`."""

    def maps(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        decoder = self.decoder(self.encoder(image), image)
        return torch.sigmoid(self.head(decoder[0])), decoder


class SkipDecoder(nn.Module):
    """monodepth2's decoder. Each level: filter, nearest-neighbour upsampling, concatenation with the encoder map, and a
    second filter.

    Args:
        encoder_widths: channels of the encoder's maps at 1/2 .. 1/32.

    Shapes: the encoder's maps, finest first, and the image (for its size) -> R_1..R_5 at 1/1 .. 1/16.
    """

    def __init__(self, encoder_widths: tuple[int, ...]):
        super().__init__()
        # Level i upsamples from 1/2^(i+1) to 1/2^i. At full resolution there is no encoder map to concatenate.
        inputs = (*DECODER_WIDTHS[1:], encoder_widths[-1])
        skips = (0, *encoder_widths[:-1])
        self.before = nn.ModuleList(_conv_elu(cin, cout) for cin, cout in zip(inputs, DECODER_WIDTHS, strict=True))
        self.after = nn.ModuleList(
            _conv_elu(cout + skip, cout) for skip, cout in zip(skips, DECODER_WIDTHS, strict=True)
        )

    def forward(self, encoder: list[Tensor], image: Tensor) -> list[Tensor]:
        decoder: list[Tensor] = []
        x = encoder[-1]
        for level in reversed(range(len(self.before))):
            skip = encoder[level - 1] if level else None
            # Upsample to the size of the skip, not to twice the size: strided filters round odd sizes up.
            target = image if skip is None else skip
            x = F.interpolate(self.before[level](x), size=target.shape[-2:], mode="nearest")
            x = self.after[level](x if skip is None else torch.cat([x, skip], dim=1))
            decoder.insert(0, x)
        return decoder


class ReflectConv(nn.Module):
    """3×3 filter with reflection padding. Shapes: [B, Ci, H, W] -> [B, Co, H, W].

    The padding is a separate operation, so that an ETM can replace the convolution.
    """

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3)

    def forward(self, x: Tensor) -> Tensor:
        # Reflection needs at least two rows and two columns; an image side of 32 pixels gives only one at 1/32.
        reflects = x.shape[-2] > 1 and x.shape[-1] > 1
        return self.conv(F.pad(x, (1, 1, 1, 1), mode="reflect" if reflects else "replicate"))


def _conv_elu(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(ReflectConv(cin, cout), nn.ELU(inplace=True))


def _share_activations(encoder: Any) -> None:
    """Use one activation module twice per block, as torchvision's ResNet does. Table IV counts each module once."""
    for stage in _stages(encoder):
        for block in stage:
            block.act2 = block.act1


def _without_classifier_filter(encoder: Any) -> None:
    """Remove the last stage: it is not a bottleneck but the classifier's filter to 960 channels."""
    encoder.blocks[-1] = nn.Identity()


#: Changes to timm's encoders that are needed to match the counts of the paper's Table IV, by encoder.
_ENCODER_CHANGES = {"resnet18": _share_activations, "mobilenetv3_large_100": _without_classifier_filter}


def _stages(encoder: Any) -> list[nn.Sequential]:
    """The stages of a timm encoder, each a sequence of residual blocks."""
    if hasattr(encoder, "blocks"):
        return [stage for stage in encoder.blocks if isinstance(stage, nn.Sequential)]
    return [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
