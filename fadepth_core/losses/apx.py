"""Function approximation loss APX (FA-Depth section III-E, eq. 28): a student's maps take the shape of its teacher's.

Every map is compared as a probability distribution along its columns and along its rows, and only where the teacher can
be trusted: not where it puts things far away. The paper leaves open how distributions are formed; each reading of
specification 6 is one word here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.models.layers.head import disparity_to_depth
from fadepth_core.models.smalldepth import DepthFeatures

CHANNELS = ("mean", "projection")
DISTRIBUTIONS = ("ratio", "softmax")
DISTANCES = ("l1", "kl")

#: An image of which less than this share is trusted says nothing.
_LEAST_TRUSTED = 0.01


@dataclass(frozen=True)
class ApxWeights:
    """μ_e, μ_d, μ_x of eq. 28a; the best row of Table XI."""

    encoder: float = 0.01
    decoder: float = 0.01
    disparity: float = 1.0


@dataclass(frozen=True)
class ApxReading:
    """How eq. 28 is read.

    Attributes:
        channels: how feature maps of different widths are compared: "mean" over channels, or a learned 1×1 "projection"
            of the student's channels onto the teacher's.
        distribution: of inverse depths along a line: "ratio" to their sum, which leaves one factor open (as median scaling
            does), or "softmax", which leaves an offset open.
        distance: "kl", the Kullback-Leibler divergence from teacher to student, or "l1".
        mask: κ of eq. 28b, pixels count where the teacher's inverse depth is above κ times its median; None: all count.
        renormalise: form distributions inside the mask, instead of leaving pixels out of the comparison only.

    The paper says neither how far apart two distributions are nor which positions they are formed of. Left out of the sum only,
    a sky keeps its share of every line: nothing holds it, so it is pushed ever farther, and what looks like it goes along.
    L1 lets go of a pixel that is much too far (its gradient is in proportion to the pixel's share). SmallDepth on rendered
    streets taught by the true depth, 600 steps, AbsRel: alone 0.451; l1 0.524, kl 0.619; inside the mask l1 0.440, kl 0.422.
    """

    channels: str = "mean"
    distribution: str = "ratio"
    distance: str = "kl"
    mask: float | None = 0.2
    renormalise: bool = True

    def __post_init__(self):
        for name, known in (("channels", CHANNELS), ("distribution", DISTRIBUTIONS), ("distance", DISTANCES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got '{value}'")


@dataclass
class Signals:
    """What is compared, of a batch of images.

    Attributes:
        disparities: inverse depth in 1/metres at 1, 1/2 and 1/4 of the input, each [B, 1, h, w].
        encoder: maps at 1/2 .. 1/32, each [B, C, h, w]; none where only depth is known.
        decoder: maps at 1 .. 1/16.
    """

    disparities: tuple[Tensor, ...]
    encoder: tuple[Tensor, ...] = ()
    decoder: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, outputs: DepthFeatures, min_depth: float, max_depth: float) -> Signals:
        """A network's; `min_depth` and `max_depth` in metres are its range."""
        disparities = (1 / disparity_to_depth(x.float(), min_depth, max_depth) for x in outputs.disparities)
        return cls(tuple(disparities), tuple(outputs.encoder), tuple(outputs.decoder))


class ApxLoss(nn.Module):
    """L_apx (eq. 28a); its parameters, if any, are the projections, which nobody needs after training.

    Args:
        weights: of the three kinds of maps; a kind of weight 0 is not looked at.
        reading: see `ApxReading`.
        widths: for projections, the channels of (student, teacher) for every map of "encoder" and "decoder".

    Raises:
        ValueError: projections without widths.
    """

    def __init__(
        self,
        weights: ApxWeights = ApxWeights(),
        reading: ApxReading = ApxReading(),
        widths: Mapping[str, Sequence[tuple[int, int]]] = MappingProxyType({}),
    ):
        super().__init__()
        self.weights, self.reading = weights, reading
        self.projections = nn.ModuleDict()
        if reading.channels == "projection":
            for kind, weight in (("encoder", weights.encoder), ("decoder", weights.decoder)):
                if weight and kind not in widths:
                    raise ValueError(f"projections need the channels of student and teacher: {kind}")
                if weight:
                    self.projections[kind] = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in widths[kind])

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """The loss, [].

        Raises:
            ValueError: the two have another number of maps, or maps of other sizes.
        """
        mask = self._mask(teacher.disparities[0])
        total = teacher.disparities[0].new_zeros(())
        if self.weights.disparity:
            pairs = _pairs("disparities", student.disparities, teacher.disparities)
            logits = [tuple(self._depth_logits(x.float()) for x in pair) for pair in pairs]
            total = total + self.weights.disparity * self._sum(logits, mask)
        for kind, weight in (("encoder", self.weights.encoder), ("decoder", self.weights.decoder)):
            if weight:
                pairs = _pairs(f"{kind} maps", getattr(student, kind), getattr(teacher, kind))
                total = total + weight * self._sum(self._aligned(kind, pairs, mask), mask)
        return total

    def _mask(self, disparity: Tensor) -> Tensor:
        """M of eq. 28b, [B, 1, H, W] of 0 and 1; all 0 for an image with hardly a pixel that counts."""
        if self.reading.mask is None:
            return torch.ones_like(disparity)
        median = disparity.flatten(1).median(dim=1).values[:, None, None, None]
        mask = (disparity > self.reading.mask * median).to(disparity)
        return mask * (mask.mean((1, 2, 3), keepdim=True) >= _LEAST_TRUSTED)

    def _depth_logits(self, disparity: Tensor) -> Tensor:
        """What `softmax` turns into the wanted distribution: its logarithm for x / Σx."""
        return disparity.log() if self.reading.distribution == "ratio" else disparity

    def _aligned(self, kind: str, pairs: list[tuple[Tensor, Tensor]], mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Maps of equal width, each channel of each image with zero mean and unit spread."""
        aligned = []
        for index, (student, teacher) in enumerate(pairs):
            if kind in self.projections:
                student, teacher = self.projections[kind][index](student).float(), teacher.float()
            else:
                student, teacher = (x.float().mean(dim=1, keepdim=True) for x in (student, teacher))
            counted = _at(mask, student) if self.reading.renormalise else torch.ones_like(student[:, :1])
            aligned.append((_standardised(student, counted), _standardised(teacher, counted)))
        return aligned

    def _sum(self, pairs: list[tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
        """Σ Δ of eq. 28c, averaged over the images that have something to say."""
        total = torch.stack([self._difference(*pair, mask) for pair in pairs]).sum(dim=0)
        counts = mask.amax((1, 2, 3))
        return (counts * total).sum() / counts.sum().clamp(min=1)

    def _difference(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Δ of each image, [B]."""
        mask = _at(mask, student)
        if self.reading.renormalise:
            # Finite, so that a line that is masked altogether is uniform in both instead of undefined.
            student, teacher = (x.masked_fill(mask == 0, -1e4) for x in (student, teacher))
        total = student.new_zeros(len(student))
        for line in (-2, -1):
            if self.reading.distance == "l1":
                error = (student.softmax(line) - teacher.softmax(line)).abs()
            else:
                expected = teacher.log_softmax(line)
                error = expected.exp() * (expected - student.log_softmax(line))
            total = total + (mask * error).sum(line).mean((1, 2)) / 2
        return total


def _at(mask: Tensor, x: Tensor) -> Tensor:
    """The mask at the size of a map."""
    return F.interpolate(mask, size=x.shape[-2:], mode="nearest")


def _standardised(x: Tensor, counted: Tensor) -> Tensor:
    """Zero mean and unit spread over the positions that count; a map without spread becomes zero."""
    count = counted.sum((2, 3), keepdim=True).clamp(min=1)
    centred = x - (counted * x).sum((2, 3), keepdim=True) / count
    # Without the small number, no spread would have no gradient.
    return centred / ((counted * centred.square()).sum((2, 3), keepdim=True) / count + 1e-8).sqrt()


def _pairs(what: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    sizes = [[tuple(x.shape[-2:]) for x in maps] for maps in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the student's {what} have sizes {sizes[0]}, the teacher's {sizes[1]}")
    return list(zip(student, teacher, strict=True))
