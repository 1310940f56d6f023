"""Operations of a depth network as simpler ones, for a compiler that merges arithmetic (`runtime.backends.inductor`).

For such a compiler a convolution is a call of a library, with kernels of its own before and after it. A sum or a product of
matrices is arithmetic like the ReLU, the addition and the interpolation around it, and becomes one kernel with them.

`ARITHMETIC` is a table for `torch.export.ExportedProgram.run_decompositions`. Each function computes the same as the operation
that it replaces, or returns NotImplemented and the operation stays. As in convolutions in half precision, sums are in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

#: Most input channels of a filter larger than 1×1 that is written as a product. The first filter of a network has three.
FEW_CHANNELS = 4


class Geometry(NamedTuple):
    """Stride, padding and dilation of a filter, vertical and horizontal."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def convolution_as_arithmetic(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Any:
    """`aten.conv2d`, if it is depthwise or, in half precision, 1×1 or of few input channels.

    Products of float32 matrices stay convolutions: as part of a merged kernel they would be computed without tensor cores.

    Shapes: x [B, Ci, H, W], weight [Co, Ci / groups, kh, kw] -> [B, Co, h, w].
    """
    geometry = Geometry(*((v[0], v[-1]) for v in (stride, padding, dilation)))  # aten allows one number for both
    channels, outputs = x.shape[1], weight.shape[0]
    if channels == outputs == groups > 1:
        return _sum_of_shifts(x, weight[:, 0], bias, geometry)
    pointwise = weight.shape[-2:] == (1, 1) and geometry.padding == (0, 0)
    if groups > 1 or geometry.dilation != (1, 1) or not (pointwise or channels <= FEW_CHANNELS):
        return NotImplemented
    if outputs == 1 and pointwise and geometry.stride == (1, 1):
        return ((x.float() * weight[0].float()).sum(1, keepdim=True) + _offset(x, bias)).to(x.dtype)
    return NotImplemented if x.dtype == torch.float32 else _product(x, weight, bias, geometry)


def relu_in_channels_last(x: Tensor) -> Any:
    """`aten.relu` of [B, C, H, W]. The compiler stores its result in the order in which it is computed here."""
    if x.dim() != 4:
        return NotImplemented
    return x.permute(0, 2, 3, 1).clamp_min(0).permute(0, 3, 1, 2)


def bilinear_as_gather(
    x: Tensor, size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None = None
) -> Any:
    """`aten.upsample_bilinear2d` with half-pixel centres to `size` (height, width): [B, C, h, w] -> [B, C, *size]."""
    if size is None or align_corners:
        return NotImplemented
    channels_last = x.permute(0, 2, 3, 1)
    top, bottom, down = _neighbours(x.shape[-2], size[0], x.device)
    left, right, across = _neighbours(x.shape[-1], size[1], x.device)

    def pixels(rows: Tensor, columns: Tensor) -> Tensor:
        return aten._unsafe_index(channels_last, [None, rows[:, None], columns]).float()

    def between(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
        return a + (b - a) * part

    upper = between(pixels(top, left), pixels(top, right), across[:, None])
    lower = between(pixels(bottom, left), pixels(bottom, right), across[:, None])
    return between(upper, lower, down[:, None, None]).to(x.dtype).permute(0, 3, 1, 2)


ARITHMETIC: dict[Any, Callable[..., Any]] = {
    aten.conv2d.default: convolution_as_arithmetic,
    aten.relu.default: relu_in_channels_last,
    aten.upsample_bilinear2d.vec: bilinear_as_gather,
}


def _offset(x: Tensor, bias: Tensor | None) -> Tensor:
    """The bias as a float32 image, [C, 1, 1], or 0."""
    return x.new_zeros((), dtype=torch.float32) if bias is None else bias.float().view(-1, 1, 1)


def _sum_of_shifts(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A filter of each channel. Shapes: x [B, C, H, W], weight [C, kh, kw] -> [B, C, h, w]."""
    (sy, sx), (py, px), (dy, dx) = geometry
    rows, columns = weight.shape[-2:]
    height = (x.shape[-2] + 2 * py - dy * (rows - 1) - 1) // sy + 1
    width = (x.shape[-1] + 2 * px - dx * (columns - 1) - 1) // sx + 1
    total = _offset(x, bias)
    # One operation for each element of the filter, because the compiler needs time for each.
    taps = iter(weight.float().flatten(1).T[..., None, None].unbind())
    for i in range(rows):
        top = i * dy - py
        for j in range(columns):
            left = j * dx - px
            # A padded image for each element: one that all use would be stored before.
            right, bottom = left + (width - 1) * sx + 1 - x.shape[-1], top + (height - 1) * sy + 1 - x.shape[-2]
            part, tap = F.pad(x, (-left, right, -top, bottom)).float(), next(taps)
            if (sy, sx) != (1, 1):
                part = part[..., ::sy, ::sx]
            total = torch.addcmul(total, part, tap)
    return total.to(x.dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A filter without dilation: [output pixels, Ci * kh * kw] times [Ci * kh * kw, Co]. Shapes: x [B, Ci, H, W], weight [Co,
    Ci, kh, kw] -> [B, Co, h, w]."""
    (sy, sx), (py, px), _ = geometry
    rows, columns = weight.shape[-2:]
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, px, px, py, py)) if px or py else x.permute(0, 2, 3, 1)
    windows = x.unfold(1, rows, sy).unfold(2, columns, sx)  # [B, h, w, Ci, kh, kw]
    flat = weight.flatten(1)
    y = windows.reshape(-1, flat.shape[1]) @ flat.T
    if bias is not None:
        y = (y.float() + bias.float()).to(x.dtype)
    return y.view(*windows.shape[:3], -1).permute(0, 3, 1, 2)


def _neighbours(count: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of `target` positions on an axis with `count` pixels: the pixel before, the pixel after, and the part of the way from
    one to the other."""
    position = ((torch.arange(target, device=device, dtype=torch.float32) + 0.5) * (count / target) - 0.5).clamp_min(
        0.0
    )
    before = position.to(torch.int64)
    return before, (before + 1).clamp_max(count - 1), position - before
