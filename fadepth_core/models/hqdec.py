"""HQDecv2 (FA-Depth section III-D, eq. 23-27): the paper's large depth network and teacher, 24.65 M parameters.

Each decoder stage receives, besides its own encoder map, the encoder maps of all higher resolutions. They are
downsampled to the stage's resolution and fused with per-pixel weights. The tables below define the architecture. The
paper prints no widths; these were fitted to its parameter count (docs/method.md, section 5.9). `HQDecv2` is the
training form; `HQDecv2.fuse()` returns the exported form.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.geometry import MAX_DEPTH, MIN_DEPTH
from fadepth_core.models.depth_network import BackboneDepthNetwork, DeployedBackboneNetwork, DepthFeatures, halved_size
from fadepth_core.models.layers.adacoeff import AdaCoeff
from fadepth_core.models.layers.attention_head import AttentionDisparityHead
from fadepth_core.models.layers.axial import AxialDownsample
from fadepth_core.models.layers.backbone import encoder_widths, timm_backbone, without_normalisation
from fadepth_core.models.layers.context import TokenConfig
from fadepth_core.models.layers.conv import conv2d
from fadepth_core.models.layers.module_list import ModuleList
from fadepth_core.models.layers.refine import Refinement
from fadepth_core.models.layers.upsample import AdaptiveUpsample

# Level j runs at 1/2^(j+1) of the input.
# f_0..f_4 have the encoder's widths: (24, 48, 64, 160, 256) with the paper's EfficientNetV2-S.
REFINED_WIDTHS = (24, 48, 64, 160, 160)  # g_0..g_4
DECODER_WIDTHS = (24, 24, 48, 64, 160)  # u_0..u_4, at twice the resolution of their level
# On every level, the halvings reduce the map to the same token grid at 1/32 of the input.
LEVEL_TOKENS = (
    TokenConfig(width=24, heads=2, halvings=4),
    TokenConfig(width=48, heads=4, halvings=3),
    TokenConfig(width=64, heads=4, halvings=2),
    TokenConfig(width=160, heads=8, halvings=1),
    TokenConfig(width=256, heads=8, halvings=0),
)
HEAD_TOKENS = (
    TokenConfig(width=12, heads=2, halvings=5),
    TokenConfig(width=24, heads=4, halvings=4),
    TokenConfig(width=32, heads=4, halvings=3),
)
_STRIDE = 32


class HQDecv2(BackboneDepthNetwork):
    """Training form of HQDecv2.

    Args:
        weights: local file of ImageNet weights of the encoder in timm's format; None starts from random weights.
        encoder: an EfficientNet (tf_efficientnet...) of `layers.backbone.ENCODER_WIDTHS`; the default is the paper's.
        min_depth, max_depth: depth range in metres.

    Shapes: as `DepthNetwork`. The decoder needs sides that are multiples of 32. Other images are padded to the next
    multiples by repeating their last row and column, and the returned maps are cropped accordingly.

    Raises:
        ImportError: timm cannot be imported.
        FileNotFoundError: the file `weights` does not exist.
        ValueError: the encoder is unknown or not an EfficientNet.
    """

    # TensorFlow's "same" padding of a strided 3×3 filter pads even sides at the end only, so the first filter is
    # centred on pixel 1.
    feature_offset = 1
    # The head multiplies by a gate, the sigmoid of a map that is about 0 before training.
    initial_gate = 0.5

    def __init__(
        self,
        weights: str | Path | None = None,
        encoder: str = "tf_efficientnetv2_s",
        min_depth: float = MIN_DEPTH,
        max_depth: float = MAX_DEPTH,
    ):
        super().__init__(min_depth, max_depth)
        if not encoder.startswith("tf_efficientnet"):
            raise ValueError(f"HQDecv2 takes an EfficientNet (tf_efficientnet...) for encoder, not '{encoder}'")
        widths = encoder_widths(encoder)
        self.encoder = timm_backbone(encoder, weights, features_only=True)
        self.decoder = HQDecoder(widths)
        self.decoder_widths = DECODER_WIDTHS
        self.heads = ModuleList(
            AttentionDisparityHead(width, tokens) for width, tokens in zip(DECODER_WIDTHS, HEAD_TOKENS, strict=False)
        )

    def forward(self, image: Tensor) -> DepthFeatures:
        """Predict disparities. The returned encoder maps are f_0..f_4, the decoder maps u_0..u_4."""
        size = image.shape[-2:]
        height, width = size
        padding = (0, -width % _STRIDE, 0, -height % _STRIDE)
        encoder = self.encoder(F.pad(image, padding, mode="replicate") if any(padding) else image)
        decoder = self.decoder(encoder)
        disparities = [head(feature) for head, feature in zip(self.heads, decoder, strict=False)]
        return DepthFeatures(_cropped(disparities, 0, size), _cropped(encoder, 1, size), _cropped(decoder, 0, size))

    def fuse(self) -> FusedHQDecv2:
        """The deployment form: BatchNorm folded, finest disparity only. This module is not changed."""
        return FusedHQDecv2(self)

    def encoder_blocks(self) -> int:
        encoder: Any = without_normalisation(self.encoder)
        return sum(len(stage) for stage in encoder.blocks)


def _cropped(maps: list[Tensor], halvings: int, size: Sequence[int]) -> tuple[Tensor, ...]:
    """Crop the maps of a padded image to those of an image of `size` (height, width).

    The first map is at 1/2^halvings of the image; each further one has half the resolution of the one before.
    """
    sizes = (halved_size(size, level) for level in range(halvings, halvings + len(maps)))
    return tuple(x[..., :height, :width] for x, (height, width) in zip(maps, sizes, strict=True))


class HQDecoder(nn.Module):
    """Decoder (docs/method.md, section 5.1).

    Args:
        widths: channels of the encoder maps.

    Shapes: encoder maps f_0..f_4 at 1/2 .. 1/32 -> u_0..u_4 at 1/1 .. 1/16.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        levels = range(len(LEVEL_TOKENS))
        self.laterals = nn.ModuleList(_refined(widths[j], REFINED_WIDTHS[j], LEVEL_TOKENS[j]) for j in levels)
        # crossings[j][i] downsamples f_i to level j, for all i < j. The coarsest level has no crossings.
        self.crossings = ModuleList(
            ModuleList(
                nn.Sequential(
                    AxialDownsample(widths[i], 2 ** (j - i)),
                    _refined(widths[i], REFINED_WIDTHS[j], LEVEL_TOKENS[j]),
                )
                for i in range(j)
            )
            for j in levels[:-1]
        )
        self.fusions = nn.ModuleList(AdaCoeff(j + 2) for j in levels[:-1])
        ups = [
            nn.Sequential(
                _refined(REFINED_WIDTHS[j], DECODER_WIDTHS[j], LEVEL_TOKENS[j]),
                AdaptiveUpsample(DECODER_WIDTHS[j], LEVEL_TOKENS[j]),
            )
            for j in levels[:-1]
        ]
        self.ups = nn.ModuleList([*ups, AdaptiveUpsample(DECODER_WIDTHS[-1], LEVEL_TOKENS[-1])])

    def forward(self, encoder: list[Tensor]) -> list[Tensor]:
        u = self.ups[-1](self.laterals[-1](encoder[-1]))
        decoder = [u]
        for j in reversed(range(len(self.fusions))):
            crossed = [crossing(f) for crossing, f in zip(self.crossings[j], encoder, strict=False)]
            u = self.ups[j](self.fusions[j](*crossed, self.laterals[j](encoder[j]), u))
            decoder.insert(0, u)
        return decoder


def _refined(cin: int, cout: int, tokens: TokenConfig) -> nn.Sequential:
    """R(TL(x)): a 1×1 filter to `cout` channels, then refinement."""
    return nn.Sequential(conv2d(cin, cout, 1, bias=True), nn.ELU(inplace=True), Refinement(cout, tokens))


class FusedHQDecv2(DeployedBackboneNetwork):
    """Deployment form of `HQDecv2`; the sides of images are multiples of 32."""

    def maps(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        decoder = self.decoder(self.encoder(image))
        return self.head(decoder[0]), decoder
