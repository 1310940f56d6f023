"""Pyramid loss (FA-Depth section III-C, eq. 20-22): one sample seen at several sizes, mirrored and recoloured.

Every level has its own base loss at its own size; beyond that, its depth and features have to agree with those of the
unchanged level `cr`. Each level's gradients are computed as soon as its loss is known, which frees its graph before the
next level runs (specification 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.geometry import flip_intrinsics, mirror_motion, scale_intrinsics
from fadepth_core.losses.base import BaseLoss, BaseWeights, Motions, Views, base_loss
from fadepth_core.losses.supervised import depth_loss, speed_loss
from fadepth_core.models.smalldepth import PIXEL_MEAN, PIXEL_STD, DepthFeatures

if TYPE_CHECKING:
    from fadepth_core.data.sample import Sample

METRICS = ("l1", "softmax")


@dataclass(frozen=True)
class LevelWeights:
    """Weights of one level in eq. 20.

    Attributes:
        loss: w_k, of the level's own loss.
        feature: w^f_k, of the consistency of the finest decoder map with that of cr.
        disparity: w^d_k, of the consistency of the finest disparity with that of cr.
        metric: how the two are compared (eq. 22): "l1", or "softmax" for their distributions over the image.
    """

    loss: float
    feature: float = 0.0
    disparity: float = 0.0
    metric: str = "l1"

    def __post_init__(self):
        if self.metric not in METRICS:
            raise ValueError(f"a level's metric must be one of {', '.join(METRICS)}, got '{self.metric}'")


#: All five levels with the weights the paper found best for each (Table X, used in Table IX).
PAPER_LEVELS: Mapping[str, LevelWeights] = {
    "cr": LevelWeights(1.0),
    "lr": LevelWeights(0.5, 1.0, 0.5, "softmax"),
    "hr": LevelWeights(0.5, 0.5, 0.1, "softmax"),
    "flip": LevelWeights(1.0, 0.1, 0.5, "l1"),
    "color": LevelWeights(1.0, 0.1, 0.1, "l1"),
}


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, one draw per sample, shared by its three frames.

    Each change is linear in RGB (hue as a rotation of the YIQ chroma plane), so together they are one 3×3 matrix and an
    offset per sample: a single product instead of four passes and a conversion to HSV and back.

    Args:
        brightness, contrast, saturation: b draws the factor from [1 - b, 1 + b].
        hue: largest shift as a share of the full circle.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1

    def __call__(self, frames: Tensor) -> Tensor:
        """Shapes: RGB in [0, 1] [B, 3, 3, H, W] -> the same."""
        draw = frames.new_empty(4, len(frames)).uniform_(-1, 1)
        brightness, contrast, saturation = (
            1 + limit * x for limit, x in zip((self.brightness, self.contrast, self.saturation), draw[:3], strict=True)
        )
        chroma = self._chroma_matrix(saturation, 2 * torch.pi * self.hue * draw[3])
        # Contrast pulls towards the mean grey level of the brightened sample; grey passes the chroma matrix unchanged.
        grey = frames.mean((1, 3, 4)) @ _RGB_TO_YIQ.to(frames)[0]
        offset = (1 - contrast) * brightness * grey
        matrix = (contrast * brightness)[:, None, None] * chroma
        pixels = frames.permute(0, 1, 3, 4, 2)
        mixed = torch.baddbmm(offset[:, None, None], pixels.flatten(1, 3), matrix.transpose(1, 2))
        return mixed.clamp(0, 1).view(pixels.shape).permute(0, 1, 4, 2, 3)

    @staticmethod
    def _chroma_matrix(saturation: Tensor, angle: Tensor) -> Tensor:
        """RGB -> RGB [B, 3, 3] that scales and rotates the chroma plane."""
        cosine, sine, zero = saturation * angle.cos(), saturation * angle.sin(), torch.zeros_like(angle)
        rows = [torch.ones_like(angle), zero, zero, zero, cosine, -sine, zero, sine, cosine]
        to_yiq = _RGB_TO_YIQ.to(saturation)
        return torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=-1).unflatten(-1, (3, 3)) @ to_yiq


# NTSC; the chroma rows sum to zero, so that grey has no chroma.
_RGB_TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64
)


@dataclass
class LevelInput:
    """What one level looks at.

    Attributes:
        frames: RGB in [0, 1] [B, 3, 3, h, w], pictures in channels_last.
        intrinsics: K of these frames [B, 3, 3].
        poses: camera-to-world of the three frames [B, 3, 4, 4], if known.
        depth: true depth of the middle frame [B, H, W] at its own size, if known.
    """

    frames: Tensor
    intrinsics: Tensor
    poses: Tensor | None
    depth: Tensor | None


@dataclass
class LevelReport:
    """The parts of one level's loss before weighting, each [] and detached; None where a part has no weight."""

    total: Tensor
    base: BaseLoss
    depth: Tensor | None
    speed: Tensor | None
    feature_consistency: Tensor | None
    disparity_consistency: Tensor | None


@dataclass
class PyramidReport:
    """One call's result, detached: L_pyr, its parts by level, and pictures of level cr if frames were compared."""

    total: Tensor
    levels: dict[str, LevelReport]
    views: Views | None


class PyramidLoss:
    """L_pyr of a batch, networks included.

    Args:
        depth_net: normalised image [N, 3, H, W] -> `DepthFeatures`; has `min_depth` and `max_depth`.
        pose_net: normalised pair [N, 6, H, W] -> [N, 6]; None takes the motion from the samples' poses.
        size: (H, W) of level cr.
        levels: weights by level; a subset of the five, `cr` among them. {"cr": LevelWeights(1.0)} is the plain base loss.
        weights: λ1 .. λ4, the same at every level.
        depth_weight: of the supervised depth loss at every level; needs samples with depth.
        speed_weight: of the speed loss at every level; needs samples with speed and a pose network.
        color_jitter: what level color does to the frames.
        joint: keep all graphs and differentiate the sum once; consistency then pulls on cr as well. Needs the memory of
            all levels together.

    Raises:
        ValueError: levels or weights that make no sense together.
    """

    def __init__(
        self,
        depth_net: nn.Module,
        pose_net: nn.Module | None,
        size: tuple[int, int],
        levels: Mapping[str, LevelWeights] = PAPER_LEVELS,
        weights: BaseWeights = BaseWeights(),  # noqa: B008 - immutable
        depth_weight: float = 0.0,
        speed_weight: float = 0.0,
        color_jitter: ColorJitter = ColorJitter(),  # noqa: B008 - immutable
        joint: bool = False,
    ):
        unknown = levels.keys() - PAPER_LEVELS.keys()
        if unknown:
            raise ValueError(f"unknown pyramid levels: {', '.join(sorted(unknown))}; known: {', '.join(PAPER_LEVELS)}")
        if "cr" not in levels:
            raise ValueError("the pyramid needs level cr, with which the others are compared")
        if levels["cr"].feature or levels["cr"].disparity:
            raise ValueError("level cr has no consistency terms: it would be compared with itself")
        if "lr" in levels and (size[0] % 2 or size[1] % 2):
            raise ValueError(f"level lr halves the image, so its height and width must be even, got {size[0]}x{size[1]}")
        if speed_weight and pose_net is None:
            raise ValueError("a speed loss needs a pose network: with known poses there is no motion to correct")
        self.depth_net, self.pose_net = depth_net, pose_net
        self.size, self.levels, self.joint = tuple(size), dict(levels), joint
        self.weights, self.depth_weight, self.speed_weight = weights, depth_weight, speed_weight
        self.color_jitter = color_jitter

    def __call__(self, sample: Sample, backward: Callable[[Tensor], object]) -> PyramidReport:
        """Run the networks on every level and differentiate.

        Args:
            sample: a batch on the networks' device. Frames of the size of level cr, or twice that; twice is required by
                level hr, which then sees the original pixels.
            backward: called with each level's loss as soon as it is known (`joint`: once, with the sum). It owns the
                gradients' scaling and accumulation, e.g. Lightning Fabric's `fabric.backward`.

        Raises:
            ValueError: the sample lacks what the weights need, or its frames have the wrong size.
        """
        self._check(sample)
        levels = self._inputs(sample)
        name, cr = next(levels)
        outputs, loss, report = self._run(cr, sample, self.levels[name])
        reference = _Reference.of(outputs, detached=not self.joint)
        views, reports, losses = report.base.views, {name: report}, []
        finish = losses.append if self.joint else backward
        finish(loss)
        del outputs, loss  # what holds level cr's graph

        for name, level in levels:
            finish(self._compared(name, level, sample, reference, reports))
        if self.joint:
            backward(torch.stack(losses).sum())
        return PyramidReport(torch.stack([report.total for report in reports.values()]).sum(), reports, views)

    def _compared(
        self, name: str, level: LevelInput, sample: Sample, reference: _Reference, reports: dict[str, LevelReport]
    ) -> Tensor:
        """A further level's loss with its consistency terms (eq. 20); adds its report."""
        weights = self.levels[name]
        outputs, loss, report = self._run(level, sample, weights)
        undo = partial(_to_cr, name, size=self.size)
        if weights.feature:
            features = outputs.decoder[0].to(loss.dtype)
            feature = _consistency(reference.features, undo(features), weights.metric)
            loss, report.feature_consistency = loss + weights.feature * feature, feature.detach()
        if weights.disparity:
            disparity = _consistency(reference.disparity, undo(outputs.disparities[0].to(loss.dtype)), weights.metric)
            loss, report.disparity_consistency = loss + weights.disparity * disparity, disparity.detach()
        report.total = loss.detach()
        report.base.views = None
        reports[name] = report
        return loss
