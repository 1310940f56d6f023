"""The three modules of SmallDepth (FA-Depth section III-A): sparse downsampling (eq. 2), the double-scale sparse
residual module (eq. 3) and sparse upsampling (eq. 6). "Sparse" means that no filter connects both channels and
neighbouring pixels: spatial filters are depthwise, channel filters are 1×1.

`fuse()` of each module returns its deployment form with the same output: BatchNorm and ETM are merged into plain
convolutions, and operations are rearranged to be cheaper (docs/method.md, section 1.5b). `load_fused()` is the inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.models.layers.conv import ConvBN, conv2d, fold, load_kernel, set_shift_only
from fadepth_core.models.layers.drop import DropBranch
from fadepth_core.models.layers.etm import ETMConfig
from fadepth_core.models.layers.module_list import ModuleList


def upsample_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation to (height, width), half-pixel centres: [B, C, h, w] -> [B, C, H, W]."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class SparseDownsample(nn.Module):
    """SD: halves the resolution and changes the channels from Ci to Co, a multiple of Ci (eq. 2).

    The output is the ReLU of a sum: a strided depthwise filter gathers context, a strided 1×1 filter connects channels.
    Only the context term may be dropped, because nothing else than the 1×1 term connects channels.

    The paper's depthwise filter has the channel multiplier Co/Ci. Several inference engines have no fast kernel for a
    multiplier, so here Co/Ci plain depthwise filters run and their outputs are concatenated. This is the same function
    except for the order of channels.

    Args:
        cin, cout: Ci and Co.
        kernel: side of the depthwise filters.
        drop: drop function of the context term; None: never dropped.
        etm: see `conv.conv2d`; applies to the depthwise filters.

    Shapes: [B, Ci, H, W] -> [B, Co, ceil(H / 2), ceil(W / 2)].

    Raises:
        ValueError: Co is not a multiple of Ci.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int = 3, drop: DropBranch | None = None, etm: ETMConfig | None = None
    ):
        super().__init__()
        if cout % cin:
            raise ValueError(f"sparse downsampling needs output channels that are a multiple of {cin}, got {cout}")
        self.context = ModuleList(conv2d(cin, cin, kernel, stride=2, groups=cin, etm=etm) for _ in range(cout // cin))
        self.context_bn = nn.BatchNorm2d(cout)
        self.drop = drop or DropBranch(0.0)
        self.channel = ConvBN(cin, cout, stride=2, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        context = self.context_bn(torch.cat([conv(x) for conv in self.context], dim=1))
        return F.relu(self.drop(context) + self.channel(x))

    def fuse(self) -> FusedSparseDownsample:
        parts = self.context_bn.num_features // len(self.context)
        context = [
            fold(conv, _bn_slice(self.context_bn, slice(i * parts, (i + 1) * parts)))
            for i, conv in enumerate(self.context)
        ]
        return FusedSparseDownsample(context, self.channel.folded())

    def load_fused(self, fused: FusedSparseDownsample) -> None:
        for own, conv in zip(self.context, fused.context, strict=True):
            load_kernel(own, conv.weight)
        set_shift_only(self.context_bn, torch.cat([conv.bias for conv in fused.context if conv.bias is not None]))
        self.channel.load_folded(fused.channel)


def _bn_slice(bn: nn.BatchNorm2d, channels: slice) -> nn.BatchNorm2d:
    """A BatchNorm with the parameters and statistics of the given channels of `bn`."""
    part = nn.BatchNorm2d(channels.stop - channels.start, eps=bn.eps).to(bn.weight)
    part.load_state_dict(
        {name: (value if value.dim() == 0 else value[channels]) for name, value in bn.state_dict().items()}
    )
    return part


class FusedSparseDownsample(nn.Module):
    """Deployment form of `SparseDownsample`; same shapes."""

    def __init__(self, context: list[nn.Conv2d], channel: nn.Conv2d):
        super().__init__()
        self.context = ModuleList(context)
        self.channel = channel

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([conv(x) for conv in self.context], dim=1) + self.channel(x))


class DoubleScaleResidual(nn.Module):
    """DSRM: residual block with a local and a dilated depthwise filter on E hidden channels (eq. 3a-d).

    Args:
        channels: C.
        hidden: E.
        kernel, dilation: side of both depthwise filters, and dilation of the second.
        drops: drop functions of the local and of the dilated branch; None: never dropped.
        etm: see `conv.conv2d`; applies to the depthwise filters.

    Shapes: [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int = 3,
        dilation: int = 2,
        drops: tuple[DropBranch, DropBranch] | None = None,
        etm: ETMConfig | None = None,
    ):
        super().__init__()
        self.expand = ConvBN(channels, hidden)
        self.local = ConvBN(hidden, hidden, kernel, groups=hidden, etm=etm)
        self.dilated = ConvBN(hidden, hidden, kernel, dilation=dilation, groups=hidden, etm=etm)
        # Two modules, so that each branch draws its own mask.
        self.drop_local, self.drop_dilated = drops or (DropBranch(0.0), DropBranch(0.0))
        self.project = ConvBN(hidden, channels, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        expanded = self.expand(x)
        context = self.drop_local(self.local(expanded)) + self.drop_dilated(self.dilated(expanded))
        return F.relu(x + self.project(expanded + context))

    def fuse(self) -> FusedDoubleScaleResidual:
        return FusedDoubleScaleResidual(
            self.expand.folded(), self.local.folded(), self.dilated.folded(), self.project.folded()
        )

    def load_fused(self, fused: FusedDoubleScaleResidual) -> None:
        for name in ("expand", "local", "dilated", "project"):
            getattr(self, name).load_folded(getattr(fused, name))


class FusedDoubleScaleResidual(nn.Module):
    """Deployment form of `DoubleScaleResidual`; same shapes."""

    def __init__(self, expand: nn.Conv2d, local: nn.Conv2d, dilated: nn.Conv2d, project: nn.Conv2d):
        super().__init__()
        self.expand, self.local, self.dilated, self.project = expand, local, dilated, project

    def forward(self, x: Tensor) -> Tensor:
        expanded = F.relu(self.expand(x))
        return F.relu(x + self.project(expanded + F.relu(self.local(expanded)) + F.relu(self.dilated(expanded))))


class SparseUpsample(nn.Module):
    """SU: doubles the resolution and changes the channels from Ci to Co (eq. 6).

    Channels are reduced and filtered at low resolution, then interpolated and filtered again at high resolution.

    Args:
        cin, cout: Ci and Co.
        low_kernel, high_kernel: sides of the depthwise filters at low and at high resolution.
        etm: see `conv.conv2d`; applies to the depthwise filters.

    Shapes: [B, Ci, h, w] -> [B, Co, *size]. `size` is that of the encoder map which is added to the result, or of the
    image at full resolution. It is (2h, 2w) if its sides are even.
    """

    def __init__(self, cin: int, cout: int, low_kernel: int = 3, high_kernel: int = 5, etm: ETMConfig | None = None):
        super().__init__()
        self.reduce = ConvBN(cin, cout)
        self.low = ConvBN(cout, cout, low_kernel, groups=cout, etm=etm)
        self.connect = ConvBN(cout, cout)
        self.refine = ConvBN(cout, cout, high_kernel, groups=cout, etm=etm)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.refine(self.connect(upsample_to(self.low(self.reduce(x)), size)))

    def fuse(self) -> FusedSparseUpsample:
        return FusedSparseUpsample(self.reduce.folded(), self.low.folded(), self.connect.folded(), self.refine.folded())

    def load_fused(self, fused: FusedSparseUpsample) -> None:
        for name in ("reduce", "low", "connect", "refine"):
            getattr(self, name).load_folded(getattr(fused, name))


class FusedSparseUpsample(nn.Module):
    """Deployment form of `SparseUpsample`; same shapes.

    The 1×1 filter runs before the interpolation, at a quarter of the cost. Exchanging the two keeps the result,
    because both are linear and the bilinear weights sum to one (this covers the bias). The ReLU is not linear, so it
    stays after the interpolation.
    """

    def __init__(self, reduce: nn.Conv2d, low: nn.Conv2d, connect: nn.Conv2d, refine: nn.Conv2d):
        super().__init__()
        self.reduce, self.low, self.connect, self.refine = reduce, low, connect, refine

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.connect(F.relu(self.low(F.relu(self.reduce(x)))))
        return F.relu(self.refine(F.relu(upsample_to(x, size))))
