"""Function approximation loss APX (FA-Depth section III-E, eq. 28): trains a student on the maps of a frozen teacher.

Each column and each row of a map is turned into a probability distribution, and the student's distributions are
compared with the teacher's. Pixels that the teacher places far away do not count, because the teacher is not reliable
there. The paper does not say how the distributions are formed. `ApxOptions` selects one of the interpretations that
docs/method.md, section 6, lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.geometry import disparity_to_depth
from fadepth_core.models.depth_network import DepthFeatures
from fadepth_core.models.layers.module_list import ModuleList

CHANNELS = ("mean", "projection")
DISTRIBUTIONS = ("ratio", "softmax")
DISTANCES = ("l1", "kl")

#: An image is skipped if less than this share of its pixels is inside the mask (eq. 28b).
_MIN_COUNTED_SHARE = 0.01


@dataclass(frozen=True)
class ApxWeights:
    """μ_e, μ_d, μ_x of eq. 28a; defaults: the best row of Table XI."""

    encoder: float = 0.01
    decoder: float = 0.01
    disparity: float = 1.0


@dataclass(frozen=True)
class ApxOptions:
    """How eq. 28 is computed where the paper does not specify it.

    A "line" is a column or a row of a map. A pixel's share is its value in the distribution of its line.

    Attributes:
        channels: how feature maps with different numbers of channels are compared: by their "mean" over the channels,
            or by a learned 1×1 "projection" of the student's channels to the teacher's.
        distribution: how the inverse depths x of a line become a distribution. "ratio", x / Σx, ignores a common
            factor, as median scaling does. "softmax" ignores a common offset.
        distance: "kl", the Kullback-Leibler divergence from teacher to student, or "l1".
        mask: κ of eq. 28b. Pixels count where the teacher's inverse depth is above κ times its median. None: all count.
        renormalise: true: form the distributions over the pixels inside the mask. False: form them over all pixels, and
            only leave the pixels outside the mask out of the sum of differences.

    The defaults were chosen by measurement. Without `renormalise`, the sky keeps a share of every line. No term
    constrains this share, so training moves the sky, and surfaces that look like it, farther and farther away. "l1" has
    little effect on a pixel that is much too far, because its gradient is proportional to the pixel's small share.

    AbsRel of SmallDepth on rendered streets, with true depth as teacher, after 600 steps:

    * without APX: 0.451
    * renormalise=False: "l1" 0.524, "kl" 0.619
    * renormalise=True: "l1" 0.440, "kl" 0.422

    Raises:
        ValueError: `channels`, `distribution` or `distance` has an unknown value.
    """

    channels: str = "mean"
    distribution: str = "ratio"
    distance: str = "kl"
    mask: float | None = 0.2
    renormalise: bool = True

    def __post_init__(self) -> None:
        for name, known in (("channels", CHANNELS), ("distribution", DISTRIBUTIONS), ("distance", DISTANCES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got '{value}'")


@dataclass
class Signals:
    """The maps of a student or a teacher that APX compares, for a batch of images.

    Attributes:
        disparities: inverse depth in 1/metres at 1, 1/2 and 1/4 of the input, each [B, 1, h, w].
        encoder: maps at 1/2 .. 1/32, each [B, C, h, w]; empty if only depth is known.
        decoder: maps at 1 .. 1/16, each [B, C, h, w]; empty if only depth is known.
    """

    disparities: tuple[Tensor, ...]
    encoder: tuple[Tensor, ...] = ()
    decoder: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, outputs: DepthFeatures, min_depth: float, max_depth: float) -> Signals:
        """The signals of a network's outputs; `min_depth` and `max_depth` are its depth range in metres."""
        disparities = (1 / disparity_to_depth(x.float(), min_depth, max_depth) for x in outputs.disparities)
        return cls(tuple(disparities), tuple(outputs.encoder), tuple(outputs.decoder))


class ApxLoss(nn.Module):
    """L_apx (eq. 28a). Its only parameters are those of the projections, which are discarded after training.

    Args:
        weights: of the three kinds of maps. A kind with weight 0 is not compared.
        options: see `ApxOptions`.
        widths: needed for projections: numbers of channels (student, teacher) of all maps of "encoder" and "decoder".

    Raises:
        ValueError: `options` asks for projections, but `widths` does not give their channels.
    """

    def __init__(
        self,
        weights: ApxWeights = ApxWeights(),
        options: ApxOptions = ApxOptions(),
        widths: Mapping[str, Sequence[tuple[int, int]]] = MappingProxyType({}),
    ):
        super().__init__()
        self.weights, self.options = weights, options
        self.projections: Any = nn.ModuleDict()
        if options.channels == "projection":
            for kind, weight in (("encoder", weights.encoder), ("decoder", weights.decoder)):
                if weight and kind not in widths:
                    raise ValueError(f"projections need the channels of the student's and the teacher's {kind} maps")
                if weight:
                    self.projections[kind] = ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in widths[kind])

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """The loss of a batch, [].

        Raises:
            ValueError: the number or the sizes of the maps differ between student and teacher.
        """
        mask = self._mask(teacher.disparities[0])
        total = teacher.disparities[0].new_zeros(())
        if self.weights.disparity:
            pairs = _paired("disparities", student.disparities, teacher.disparities)
            logits = [(self._depth_logits(own.float()), self._depth_logits(other.float())) for own, other in pairs]
            total = total + self.weights.disparity * self._sum(logits, mask)
        for kind, weight in (("encoder", self.weights.encoder), ("decoder", self.weights.decoder)):
            if weight:
                pairs = _paired(f"{kind} maps", getattr(student, kind), getattr(teacher, kind))
                total = total + weight * self._sum(self._aligned(kind, pairs, mask), mask)
        return total

    def _mask(self, disparity: Tensor) -> Tensor:
        """Mask M of eq. 28b from the teacher's inverse depth: 0 and 1 [B, 1, H, W]; all 0 for a skipped image."""
        if self.options.mask is None:
            return torch.ones_like(disparity)
        median = disparity.flatten(1).median(dim=1).values[:, None, None, None]
        mask = (disparity > self.options.mask * median).to(disparity)
        return mask * (mask.mean((1, 2, 3), keepdim=True) >= _MIN_COUNTED_SHARE)

    def _depth_logits(self, disparity: Tensor) -> Tensor:
        """The values whose softmax is the distribution. For "ratio": log x, because softmax(log x) = x / Σx."""
        return disparity.log() if self.options.distribution == "ratio" else disparity

    def _aligned(self, kind: str, pairs: list[tuple[Tensor, Tensor]], mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The feature maps with equal numbers of channels; each channel of each image is standardised."""
        aligned = []
        for index, (student, teacher) in enumerate(pairs):
            if kind in self.projections:
                student, teacher = self.projections[kind][index](student).float(), teacher.float()
            else:
                student, teacher = (x.float().mean(dim=1, keepdim=True) for x in (student, teacher))
            counted = _at(mask, student) if self.options.renormalise else torch.ones_like(student[:, :1])
            aligned.append((_standardised(student, counted), _standardised(teacher, counted)))
        return aligned

    def _sum(self, pairs: list[tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
        """Σ Δ of eq. 28c, averaged over the images that are not skipped."""
        total = torch.stack([self._difference(*pair, mask) for pair in pairs]).sum(dim=0)
        counts = mask.amax((1, 2, 3))
        return (counts * total).sum() / counts.sum().clamp(min=1)

    def _difference(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Δ of each image, [B]."""
        mask = _at(mask, student)
        if self.options.renormalise:
            # -1e4 instead of -inf: a line without any pixel inside the mask then has a uniform distribution, not NaN.
            student, teacher = (x.masked_fill(mask == 0, -1e4) for x in (student, teacher))
        total = student.new_zeros(len(student))
        for line in (-2, -1):
            if self.options.distance == "l1":
                error = (student.softmax(line) - teacher.softmax(line)).abs()
            else:
                expected = teacher.log_softmax(line)
                error = expected.exp() * (expected - student.log_softmax(line))
            total = total + (mask * error).sum(line).mean((1, 2)) / 2
        return total


def _at(mask: Tensor, x: Tensor) -> Tensor:
    """The mask at the size of map `x`."""
    return F.interpolate(mask, size=x.shape[-2:], mode="nearest")


def _standardised(x: Tensor, counted: Tensor) -> Tensor:
    """Zero mean and unit standard deviation over the counted positions; a constant map becomes zero."""
    count = counted.sum((2, 3), keepdim=True).clamp(min=1)
    centred = x - (counted * x).sum((2, 3), keepdim=True) / count
    # 1e-8 keeps the gradient of a constant map finite.
    return centred / ((counted * centred.square()).sum((2, 3), keepdim=True) / count + 1e-8).sqrt()


def _paired(what: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair the maps of student and teacher, after a check of their sizes. `what` names the maps in the error."""
    sizes = [[tuple(x.shape[-2:]) for x in maps] for maps in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the student's {what} have sizes {sizes[0]}, the teacher's {sizes[1]}")
    return list(zip(student, teacher, strict=True))
