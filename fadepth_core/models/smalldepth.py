"""SmallDepth (FA-Depth section III-A, eq. 8-12): a 2.4 M parameter encoder-decoder for monocular disparity.

The table `LAYOUTS` defines the architecture. `SmallDepth` is the training form; `SmallDepth.fuse()` returns
`FusedSmallDepth`, the exported form: plain convolutions with the same output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fadepth_core.geometry import MAX_DEPTH, MIN_DEPTH
from fadepth_core.models.depth_network import DeployedNetwork, DepthFeatures, DepthNetwork
from fadepth_core.models.layers.conv import ConvBN, calibrate_batch_norm, load_kernel
from fadepth_core.models.layers.drop import DropBranch
from fadepth_core.models.layers.etm import ETMConfig, etm_config
from fadepth_core.models.layers.head import DisparityHead
from fadepth_core.models.layers.module_list import ModuleList
from fadepth_core.models.layers.sparse import DoubleScaleResidual, SparseDownsample, SparseUpsample


@dataclass(frozen=True)
class Stage:
    """One encoder stage: a downsampling to `channels`, then `blocks` DSRMs (residual modules) of width `hidden`."""

    channels: int
    blocks: int
    hidden: int


@dataclass(frozen=True)
class Layout:
    """Widths of one SmallDepth. Stage i runs at 1/2^i of the input."""

    stages: tuple[Stage, ...]
    residual_kernel: int  # k of the DSRM filters
    full_channels: int  # channels of R_1, at full resolution


# The paper prints no widths. These were fitted to its complexity table (2.07 + 0.28 M parameters, 0.25 + 0.17 G
# multiply-accumulates at 128×416, six DSRMs); several layouts fit equally well (docs/method.md, section 1.5).
LAYOUTS = {
    "smalldepth": Layout(
        stages=(Stage(32, 0, 0), Stage(64, 1, 64), Stage(128, 1, 128), Stage(256, 2, 256), Stage(512, 2, 768)),
        residual_kernel=3,
        full_channels=16,
    ),
    "smalldepth_k5": Layout(
        stages=(Stage(32, 0, 0), Stage(64, 1, 64), Stage(128, 1, 192), Stage(256, 1, 256), Stage(512, 3, 512)),
        residual_kernel=5,
        full_channels=16,
    ),
}


class SmallDepth(DepthNetwork):
    """Training form of SmallDepth.

    Args:
        layout: a name in `LAYOUTS`.
        residual_drop: P_A, maximum drop rate of the two DSRM branches (Table V, first column).
        downsample_drop: P_B, maximum drop rate of the context term of sparse downsampling (Table V, second column).
        constant_drop: keep the drop rates at their maximum from the first iteration (Table V, sch4).
        etm: see `etm_config`; replaces every filter larger than 1×1.
        min_depth, max_depth: depth range in metres.

    Shapes: as `DepthNetwork`.

    Raises:
        ValueError: the layout is unknown, or `etm` is not valid.
    """

    def __init__(
        self,
        layout: str = "smalldepth",
        residual_drop: float = 0.9,
        downsample_drop: float = 0.0,
        constant_drop: bool = False,
        etm: str | ETMConfig | Mapping | None = None,
        min_depth: float = MIN_DEPTH,
        max_depth: float = MAX_DEPTH,
    ):
        super().__init__(min_depth, max_depth)
        if layout not in LAYOUTS:
            raise ValueError(f"unknown SmallDepth layout '{layout}'; known layouts: {', '.join(LAYOUTS)}")
        self.layout_name = layout
        table, etm = LAYOUTS[layout], etm_config(etm)

        def drop(rate: float) -> DropBranch:
            return DropBranch(rate, constant_drop)

        downs: list[nn.Module] = []
        blocks: list[nn.Module] = []
        previous = 3
        for index, stage in enumerate(table.stages):
            if index == 0:
                downs.append(ConvBN(previous, stage.channels, 3, stride=2, etm=etm))
            else:
                downs.append(SparseDownsample(previous, stage.channels, drop=drop(downsample_drop), etm=etm))
            blocks.append(
                nn.Sequential(
                    *(
                        DoubleScaleResidual(
                            stage.channels,
                            stage.hidden,
                            table.residual_kernel,
                            drops=(drop(residual_drop), drop(residual_drop)),
                            etm=etm,
                        )
                        for _ in range(stage.blocks)
                    )
                )
            )
            previous = stage.channels
        self.downs: ModuleList[Any] = ModuleList(downs)
        self.blocks: ModuleList[Any] = ModuleList(blocks)

        widths = [table.full_channels] + [stage.channels for stage in table.stages]
        # ups[i] is SU_{i+1}: from stage i+1 to the resolution and width of stage i.
        self.ups = ModuleList(SparseUpsample(widths[i + 1], widths[i], etm=etm) for i in range(len(table.stages)))
        self.decoder_widths = tuple(widths[:-1])
        self.heads = ModuleList(DisparityHead(widths[j], etm=etm) for j in range(3))

    def forward(self, image: Tensor) -> DepthFeatures:
        encoder = _encode(self.downs, self.blocks, image)
        decoder = _decode(self.ups, encoder, image)
        disparities = tuple(head(feature) for head, feature in zip(self.heads, decoder, strict=False))
        return DepthFeatures(disparities, tuple(encoder), tuple(decoder))

    def fuse(self) -> FusedSmallDepth:
        """The deployment form: BatchNorm folded, ETM merged, exact rewrites applied. This module is not changed."""
        return FusedSmallDepth(self)

    def load_fused(self, fused: FusedSmallDepth, images: Tensor) -> None:
        """Load the weights of a deployed network, to continue training from it. The finest disparity stays the same.

        A deployed network has only the finest head. The weights of the two coarser heads are set to zero, so until they
        are trained they predict one depth everywhere, that of their bias (see `set_start_depth`).

        Args:
            fused: the deployed network.
            images: training images, normalised [B, 3, H, W], from which BatchNorm gets its statistics.

        Raises:
            ValueError: `fused` has another layout.
        """
        if fused.layout_name != self.layout_name:
            raise ValueError(f"the deployed network is a {fused.layout_name}, not a {self.layout_name}")
        stem, *downs = self.downs
        stem.load_folded(fused.downs[0][0])
        finest, *coarser = self.heads
        modules: list[Any] = [*downs, *(block for stage in self.blocks for block in stage), *self.ups, finest]
        sources = [
            *list(fused.downs)[1:],
            *(block for stage in fused.blocks for block in stage),
            *fused.ups,
            fused.head,
        ]
        for module, source in zip(modules, sources, strict=True):
            module.load_fused(source)
        for head in coarser:
            load_kernel(head.conv, torch.zeros(1, head.conv.in_channels, *head.conv.kernel_size))
        calibrate_batch_norm(self, images)

    def encoder_modules(self) -> list[nn.Module]:
        return [self.downs, self.blocks]

    def decoder_modules(self) -> list[nn.Module]:
        return [self.ups, self.heads]

    def encoder_blocks(self) -> int:
        return sum(len(stage) for stage in self.blocks)


class FusedSmallDepth(DeployedNetwork):
    """Deployment form of `SmallDepth`."""

    def __init__(self, trained: SmallDepth):
        super().__init__(trained)
        self.layout_name = trained.layout_name
        with torch.no_grad():
            stem, *downs = trained.downs
            self.downs: ModuleList[Any] = ModuleList(
                [nn.Sequential(stem.folded(), nn.ReLU()), *(down.fuse() for down in downs)]
            )
            self.blocks: ModuleList[Any] = ModuleList(
                nn.Sequential(*(block.fuse() for block in stage)) for stage in trained.blocks
            )
            self.ups = ModuleList(up.fuse() for up in trained.ups)
            self.head = trained.heads[0].fuse()
        self.eval().requires_grad_(False)

    def maps(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        decoder = _decode(self.ups, _encode(self.downs, self.blocks, image), image)
        return self.head(decoder[0]), decoder


def _encode(downs: nn.ModuleList, blocks: nn.ModuleList, image: Tensor) -> list[Tensor]:
    """Encoder maps E_1..E_5 of an image (eq. 8)."""
    features = []
    x = image
    for down, stage in zip(downs, blocks, strict=True):
        x = stage(down(x))
        features.append(x)
    return features


def _decode(ups: nn.ModuleList, encoder: list[Tensor], image: Tensor) -> list[Tensor]:
    """Decoder maps R_1..R_5 (eq. 9-11). Skip connections add maps of equal resolution and width."""
    decoder: list[Tensor] = []
    s = encoder[-1]
    for index in reversed(range(len(ups))):
        skip = encoder[index - 1] if index > 0 else None
        # Upsample to the size of the skip, not to 2h×2w: strided filters round odd sizes up.
        target = image if skip is None else skip
        r = ups[index](s, target.shape[-2:])
        decoder.insert(0, r)
        if skip is not None:
            s = skip + r
    return decoder
