"""Pyramid loss (FA-Depth section III-C, eq. 20-22): the losses of one training step.

A level is one version of the sample: `cr` at the training size, `lr` at half and `hr` at twice this size, `flip`
mirrored, `color` with changed colours. Every level has its own base loss at its own size. Consistency terms compare the
depth and the features of a level with those of `cr`. `PyramidLoss` runs the networks and adds the supervised losses and
the distillation loss.

The gradients of a level are computed directly after its loss. This frees the level's graph before the next level runs
(docs/method.md, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fadepth_core.common.color import ColorJitter, normalise
from fadepth_core.common.memory import training_format
from fadepth_core.geometry import area_average, flip_intrinsics, mirror_motion, scale_intrinsics
from fadepth_core.losses.base import BaseWeights, Motions, Views, base_loss
from fadepth_core.losses.supervised import depth_loss, shape_loss, speed_loss
from fadepth_core.models.depth_network import DepthFeatures, DepthNetwork, halved_size
from fadepth_core.models.layers.drop import shared_masks

if TYPE_CHECKING:
    from fadepth_core.common.sample import Sample

#: Added to the variance of a map before it is standardised, so that a constant map becomes zero.
_VARIANCE_EPS = 1e-6
#: Temperature of the softmax in the metric "softmax_sigmoid", see `LevelWeights`.
FEATURE_TEMPERATURE = 8.0
#: How two maps are compared (eq. 22), see `consistency`.
METRICS = ("l1", "softmax", "softmax_sigmoid", "softmax_standardised", "softmax_lines")


@dataclass(frozen=True)
class LevelWeights:
    """Weights of one level in eq. 20.

    Attributes:
        loss: w_k, of the level's own loss.
        feature: w^f_k, of the consistency of the finest decoder map with that of cr.
        disparity: w^d_k, of the consistency of the finest disparity with that of cr.
        feature_metric, disparity_metric: how the maps are compared, a name in `METRICS`. "l1" is the mean absolute
            difference. The others are distribution errors: the L1 norm (sum) of the difference of two softmax
            distributions over the image. "softmax": of the map itself. "softmax_sigmoid": of its sigmoid, divided by
            `FEATURE_TEMPERATURE`. "softmax_standardised": of channels with zero mean and unit standard deviation.
            "softmax_lines": of the same, over every row and every column, as in eq. 28c.

    Eq. 22 uses distribution errors for lr and hr. For disparities this is "softmax": values in (0, 1) give a nearly
    uniform distribution, and the L1 norm is about the mean absolute difference of the centred maps. Decoder features
    have no bounds, so their softmax depends only on a few of the largest values, also after standardisation. The
    sigmoid of the features is bounded like disparities.

    A strong feature term makes the features nearly constant, and therefore depth too, even if the term's gradient is
    smaller than that of the level's own loss. Measured AbsRel on rendered streets (64x96, 300 iterations with batch
    size 2, levels cr and lr):

    * without the feature term: 0.49 to 0.50; constant depth: 0.72
    * "softmax_sigmoid": 0.76 at temperature 1, 0.65 at 5, 0.53 at 8 (with flip and color), 0.52 at 10
    * "softmax_standardised" and "softmax_lines" at temperature 8: 0.75 and 0.79

    Raises:
        ValueError: a metric is not in `METRICS`.
    """

    loss: float
    feature: float = 0.0
    disparity: float = 0.0
    feature_metric: str = "l1"
    disparity_metric: str = "l1"

    def __post_init__(self) -> None:
        for metric in (self.feature_metric, self.disparity_metric):
            if metric not in METRICS:
                raise ValueError(f"a level's metric must be one of {', '.join(METRICS)}, got '{metric}'")


#: All five levels with the best weights of the paper for each (Table X, used in Table IX).
PAPER_LEVELS: Mapping[str, LevelWeights] = {
    "cr": LevelWeights(1.0),
    "lr": LevelWeights(0.5, 1.0, 0.5, "softmax_sigmoid", "softmax"),
    "hr": LevelWeights(0.5, 0.5, 0.1, "softmax_sigmoid", "softmax"),
    "flip": LevelWeights(1.0, 0.1, 0.5),
    "color": LevelWeights(1.0, 0.1, 0.1),
}


@dataclass
class LevelInput:
    """Frames, camera and ground truth of one level.

    Attributes:
        frames: RGB in [0, 1], each image in the format of `training_format`: [B, 3, 3, h, w], or only the middle frames
            [B, 1, 3, h, w].
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
    """Loss of one level and its parts before weighting, each [] and detached. A part with weight 0 is None or 0.

    Attributes:
        total: the loss that was differentiated.
        photometric, structure, feature, smoothness: L_bwp, L_bds, L_bfp, L_s.
        depth, shape, speed: the supervised losses.
        apx: the distillation loss, at level cr only.
        feature_consistency, disparity_consistency: C^f, C^d.
    """

    total: Tensor
    photometric: Tensor
    structure: Tensor
    feature: Tensor
    smoothness: Tensor
    depth: Tensor | None
    shape: Tensor | None
    speed: Tensor | None
    apx: Tensor | None
    feature_consistency: Tensor | None
    disparity_consistency: Tensor | None


@dataclass
class PyramidReport:
    """Result of one call of `PyramidLoss`, detached: L_pyr, its parts by level, and the views of level cr.

    `views` is None if no loss compares frames.
    """

    total: Tensor
    levels: dict[str, LevelReport]
    views: Views | None


def predict_motions(pose_net: nn.Module, normalised: Tensor) -> Motions:
    """Motions of both pairs of frames, from one pass of the pose network on normalised frames [B, 3, 3, H, W]."""
    previous, middle, following = normalised.unbind(1)
    # Concatenating along the batch first keeps the memory format of the images.
    pairs = torch.cat([torch.cat([previous, middle]), torch.cat([middle, following])], dim=1)
    vectors = pose_net(pairs).to(normalised.dtype)
    return Motions.from_vectors(torch.stack(vectors.chunk(2), dim=1))


class PyramidLoss:
    """L_pyr of a batch: runs the networks at every level, computes all losses and their gradients.

    Args:
        depth_net: normalised image [N, 3, H, W] -> `DepthFeatures`; has `min_depth` and `max_depth`.
        pose_net: normalised pair [N, 6, H, W] -> [N, 6]; None: motion from the poses in the samples.
        size: (H, W) of level cr.
        levels: weights by level: `cr` and any of the other four. {"cr": LevelWeights(1.0)} is the plain base loss.
        weights: λ1 .. λ4, the same at every level.
        depth_weight: of `supervised.depth_loss` at every level; needs samples with depth.
        depth_error: see `supervised.depth_loss`.
        shape_weight: of `supervised.shape_loss` at every level; needs samples with depth. Only samples with sharp depth
            count.
        speed_weight: of `supervised.speed_loss` at every level; needs samples with speed and a pose network.
        distillation: (normalised middle frames [B, 3, H, W], the network's outputs for them, the sample) -> loss [],
            added at level cr.
        color_jitter: the change of colour of level color.
        rescale_to_cr: resize the outputs of levels lr and hr to the size of cr before their losses (Table VIII,
            use_cr).
        share_masks: draw the drop masks once for all levels of a batch, so that the consistency terms do not measure
            the difference between masks. Off by default: in one comparison (rendered streets, 64x96, P_A = 0.9, 300
            iterations with batch size 2, one seed) AbsRel was 0.535 without and 0.633 with shared masks.
        joint: keep the graphs of all levels and differentiate the sum once. Consistency terms then have a gradient at
            level cr too. This needs the memory of all levels together.
        other_sizes: further sizes (H, W) of level cr that a batch may have.

    Raises:
        ValueError: the levels, weights and sizes contradict each other.
    """

    def __init__(
        self,
        depth_net: DepthNetwork,
        pose_net: nn.Module | None,
        size: tuple[int, int],
        levels: Mapping[str, LevelWeights] = PAPER_LEVELS,
        weights: BaseWeights = BaseWeights(),  # noqa: B008 - immutable
        depth_weight: float = 0.0,
        depth_error: Literal["relative", "log"] = "relative",
        shape_weight: float = 0.0,
        speed_weight: float = 0.0,
        distillation: Callable[[Tensor, DepthFeatures, Sample], Tensor] | None = None,
        color_jitter: ColorJitter = ColorJitter(),
        rescale_to_cr: bool = False,
        share_masks: bool = False,
        joint: bool = False,
        other_sizes: Sequence[tuple[int, int]] = (),
    ):
        unknown = levels.keys() - PAPER_LEVELS.keys()
        if unknown:
            raise ValueError(f"unknown pyramid levels: {', '.join(sorted(unknown))}; known: {', '.join(PAPER_LEVELS)}")
        if "cr" not in levels:
            raise ValueError("the pyramid needs level cr: the other levels are compared with it")
        if levels["cr"].feature or levels["cr"].disparity:
            raise ValueError("level cr cannot have consistency terms: it would be compared with itself")
        self.sizes = [tuple(size), *(tuple(other) for other in other_sizes)]
        for height, width in self.sizes:
            if "lr" in levels and (height % 2 or width % 2):
                raise ValueError(
                    f"level lr halves the image, so its height and width must be even, got {height}x{width}"
                )
        if speed_weight and pose_net is None:
            raise ValueError("a speed loss needs a pose network; known poses cannot be trained")
        self.depth_net, self.pose_net = depth_net, pose_net
        self.levels, self.joint = dict(levels), joint
        self.weights, self.depth_weight, self.speed_weight = weights, depth_weight, speed_weight
        self.depth_error, self.shape_weight = depth_error, shape_weight
        self.distillation = distillation
        self.color_jitter = color_jitter
        self.rescale_to_cr, self.share_masks = rescale_to_cr, share_masks

    def __call__(self, sample: Sample, backward: Callable[[Tensor], object]) -> PyramidReport:
        """Run the networks on every level and differentiate.

        Args:
            sample: a batch on the networks' device. Its frames have the size of level cr or twice that size. Level hr
                needs twice the size, because it must not be upsampled.
            backward: called with the loss of each level (`joint`: once, with the sum). It scales and accumulates the
                gradients, e.g. Lightning Fabric's `fabric.backward`.

        Raises:
            ValueError: the sample has no data for a weighted loss, or its frames have the wrong size.
            RuntimeError: called under autocast. Only the networks may run in lower precision (Fabric's modules switch
                autocast on by themselves); geometry and losses need full precision.
        """
        if torch.is_autocast_enabled(sample.frames.device.type):
            raise RuntimeError("the pyramid loss must not run under autocast; only the networks may, inside it")
        self._check(sample)
        reference: _Reference | None = None
        reports, losses, views = {}, [], None
        with shared_masks(self.depth_net) if self.share_masks else nullcontext():
            for name, level in self.inputs(sample):
                result = self._level(name, level, sample, reference)
                reports[name] = result.report
                if name == "cr":
                    reference, views = result.reference, result.views
                if self.joint:
                    losses.append(result.loss)
                else:
                    backward(result.loss)
                del result  # frees the rest of the level's graph before the next level runs
        if self.joint:
            backward(torch.stack(losses).sum())
        total = torch.stack([report.total for report in reports.values()]).sum()
        return PyramidReport(total, reports, views)

    def _check(self, sample: Sample) -> None:
        """Raise ValueError if the sample's frames have the wrong size or data for a loss is missing."""
        found = tuple(sample.frames.shape[-2:])
        twice = [(2 * height, 2 * width) for height, width in self.sizes]
        allowed = twice if "hr" in self.levels else [*self.sizes, *twice]
        if found not in allowed:
            wanted = " or ".join(f"{h}x{w}" for h, w in allowed)
            raise ValueError(f"these pyramid levels need frames of {wanted} pixels, got {found[0]}x{found[1]}")
        if self._compares_frames and sample.frames.shape[1] != 3:
            raise ValueError(f"these losses compare three frames, the samples have {sample.frames.shape[1]}")
        if self.weights.need_motion and self.pose_net is None and sample.poses is None:
            raise ValueError("without a pose network the samples must have camera poses")
        if (self.depth_weight or self.shape_weight) and sample.depth is None:
            raise ValueError("a supervised depth loss needs samples with true depth")
        if self.speed_weight and sample.speed is None:
            raise ValueError("a speed loss needs samples with the camera's speed")

    def inputs(self, sample: Sample) -> Iterator[tuple[str, LevelInput]]:
        """Name and input of each level, cr first. An input is computed only when it is requested, to save memory."""
        # If no loss compares frames, only the middle frame is needed, because only its depth can be known.
        middle = sample.frames.shape[1] // 2
        frames = sample.frames if self._compares_frames else sample.frames[:, middle : middle + 1]
        given = LevelInput(_in_training_format(frames), sample.intrinsics, sample.poses, sample.depth)
        at_cr = "hr" not in self.levels and tuple(given.frames.shape[-2:]) in self.sizes
        cr = given if at_cr else _halved(given)
        yield "cr", cr
        for name in self.levels:
            if name == "lr":
                yield name, _halved(cr)
            elif name == "hr":
                yield name, given
            elif name == "flip":
                yield name, _mirrored(cr)
            elif name == "color":
                yield name, replace(cr, frames=self.color_jitter(cr.frames))

    def _level(self, name: str, level: LevelInput, sample: Sample, reference: _Reference | None) -> _LevelResult:
        """Run the networks and compute all losses of one level: its summand of eq. 20."""
        weights = self.levels[name]
        normalised = normalise(level.frames)
        outputs, motions = self._run_networks(level, normalised)
        network = self.depth_net
        depth_range = (network.min_depth, network.max_depth)
        if name == "cr":
            reference = _Reference.of(level, outputs, detached=not self.joint)
        assert reference is not None  # level cr is the first
        # Base and supervised losses compare the outputs with the level itself or, resized, with level cr.
        scaled_outputs, target = outputs, level
        if self.rescale_to_cr and name in ("lr", "hr"):
            scaled_outputs, target = _resized(outputs, reference.size), reference.level
        base = base_loss(
            target.frames, target.intrinsics, scaled_outputs, motions, depth_range, self.weights, network.feature_offset
        )
        loss = base.total

        depth = shape = speed = apx = None
        if self.depth_weight or self.shape_weight:
            middle = _middle(scaled_outputs, level.frames.shape[1])
        if self.depth_weight:
            assert level.depth is not None  # see `_check`
            depth = depth_loss(middle.disparities, level.depth, *depth_range, self.depth_error)
            loss = loss + self.depth_weight * depth
        if self.shape_weight:
            assert level.depth is not None
            truth = level.depth if sample.sharp is None else level.depth * sample.sharp[:, None, None]
            shape = shape_loss(middle.disparities[0], truth, *depth_range)
            loss = loss + self.shape_weight * shape
        if self.speed_weight:
            assert motions is not None
            assert sample.speed is not None
            speed = speed_loss(motions.translations, sample.speed, sample.interval)
            loss = loss + self.speed_weight * speed
        loss = weights.loss * loss
        if self.distillation is not None and name == "cr":
            count = level.frames.shape[1]
            apx = self.distillation(normalised[:, count // 2], _middle(outputs, count), sample)
            loss = loss + apx

        feature = disparity = None
        if weights.feature:
            feature = consistency(
                reference.features, _to_cr(name, outputs.decoder[0], reference.size), weights.feature_metric
            )
            loss = loss + weights.feature * feature
        if weights.disparity:
            values = _to_cr(name, outputs.disparities[0], reference.size)
            disparity = consistency(reference.disparity, values, weights.disparity_metric)
            loss = loss + weights.disparity * disparity

        terms = (
            base.photometric,
            base.structure,
            base.feature,
            base.smoothness,
            depth,
            shape,
            speed,
            apx,
            feature,
            disparity,
        )
        report = LevelReport(loss.detach(), *(cast(Tensor, part if part is None else part.detach()) for part in terms))
        return _LevelResult(loss, report, reference, base.views)

    def _run_networks(self, level: LevelInput, normalised: Tensor) -> tuple[DepthFeatures, Motions | None]:
        """Outputs of the depth network for every frame, and the motions of both pairs, with one pass of each network.

        The motions are None if no loss compares frames.
        """
        outputs = self.depth_net(normalised.flatten(0, 1))
        if not self._compares_frames:
            return outputs, None
        if self.pose_net is None:
            assert level.poses is not None  # see `_check`
            return outputs, Motions.from_poses(level.poses)
        return outputs, predict_motions(self.pose_net, normalised)

    @property
    def _compares_frames(self) -> bool:
        """Whether any loss needs all three frames."""
        return self.weights.need_motion or self.speed_weight > 0


@dataclass
class _LevelResult:
    """Result of one level: the loss with its graph, the report, the reference of level cr, and the views if any."""

    loss: Tensor
    report: LevelReport
    reference: _Reference | None
    views: Views | None


@dataclass
class ReferenceMap:
    """A map [N, C, H, W] of level cr with a cache of its distributions by metric."""

    values: Tensor
    _distributions: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def distributions(self, metric: str) -> tuple[Tensor, ...]:
        if metric not in self._distributions:
            self._distributions[metric] = _distributions(self.values, metric)
        return self._distributions[metric]


@dataclass
class _Reference:
    """Input, features and disparity of level cr, for comparison with the other levels."""

    level: LevelInput
    features: ReferenceMap
    disparity: ReferenceMap

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of level cr."""
        height, width = self.level.frames.shape[-2:]
        return height, width

    @classmethod
    def of(cls, level: LevelInput, outputs: DepthFeatures, detached: bool) -> _Reference:
        maps = (x.to(level.frames.dtype) for x in (outputs.decoder[0], outputs.disparities[0]))
        return cls(level, *(ReferenceMap(x.detach() if detached else x) for x in maps))


def _to_cr(name: str, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Φ_k⁻¹ of eq. 22: bring a map [N, C, h, w] of level `name` to the pixel grid of level cr.

    `size` is the (height, width) of level cr.
    """
    if name == "flip":
        return x.flip(-1)
    if name in ("lr", "hr"):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return x


def _middle(outputs: DepthFeatures, count: int) -> DepthFeatures:
    """The outputs for the middle frame of each sample; samples have `count` frames."""
    maps = (outputs.disparities, outputs.encoder, outputs.decoder)
    return DepthFeatures(*(tuple(x.unflatten(0, (-1, count))[:, count // 2] for x in kind) for kind in maps))


def _resized(outputs: DepthFeatures, size: tuple[int, int]) -> DepthFeatures:
    """The outputs with every map interpolated to the size it has for an image of `size`."""

    def maps(kind: tuple[Tensor, ...], first: int) -> tuple[Tensor, ...]:
        return tuple(
            F.interpolate(x, halved_size(size, j), mode="bilinear", align_corners=False)
            for j, x in enumerate(kind, first)
        )

    return DepthFeatures(maps(outputs.disparities, 0), maps(outputs.encoder, 1), maps(outputs.decoder, 0))


def consistency(reference: ReferenceMap, values: Tensor, metric: str) -> Tensor:
    """C of eq. 22, averaged over batch and channels: the mean over positions for "l1", the sum for distributions.

    The sum is the ‖·‖₁ of eq. 22. Distributions already sum to one, so a mean would divide by H·W a second time. With
    the paper's weights, the gradient of such a mean is only 2.5e-4 (features) and 2e-6 (disparity) of that of the
    level's own loss.
    """
    values = values.to(reference.values.dtype)
    if metric == "l1":
        return (reference.values - values).abs().mean()
    expected, found = reference.distributions(metric), _distributions(values, metric)
    errors = [(p - q).abs().sum(1).mean() for p, q in zip(expected, found, strict=True)]
    return torch.stack(errors).mean()


def _distributions(x: Tensor, metric: str) -> tuple[Tensor, ...]:
    """The distributions [N, positions, ...] of a map [N, C, H, W] that `metric` compares.

    One distribution over the whole image, or for "softmax_lines" two, over columns and over rows.
    """
    # The softmax runs over dim 1 with channels last, the networks' memory layout. On a planar copy it is four times
    # slower.
    if metric == "softmax_sigmoid":
        x = x.sigmoid() / FEATURE_TEMPERATURE
    x = x.permute(0, 2, 3, 1)
    if metric in ("softmax_standardised", "softmax_lines"):
        variance, mean = torch.var_mean(x, dim=(1, 2), correction=0, keepdim=True)
        x = (x - mean) / (variance + _VARIANCE_EPS).sqrt()
    if metric == "softmax_lines":
        return x.softmax(dim=1), x.transpose(1, 2).softmax(dim=1)
    return (x.flatten(1, 2).softmax(dim=1),)


def _halved(level: LevelInput) -> LevelInput:
    """The level at half the size, reduced by the area average that evaluation and deployment use.

    True depth keeps its own size.
    """
    height, width = level.frames.shape[-2:]
    half = area_average(level.frames.flatten(0, 1), (height // 2, width // 2))
    frames = _in_training_format(half.unflatten(0, level.frames.shape[:2]))
    return replace(level, frames=frames, intrinsics=scale_intrinsics(level.intrinsics, 0.5, 0.5))


def _mirrored(level: LevelInput) -> LevelInput:
    """The level horizontally mirrored: frames, depth, intrinsics and poses."""
    return LevelInput(
        level.frames.flip(-1),
        flip_intrinsics(level.intrinsics, level.frames.shape[-1]),
        None if level.poses is None else mirror_motion(level.poses),
        None if level.depth is None else level.depth.flip(-1),
    )


def _in_training_format(frames: Tensor) -> Tensor:
    """Frames [B, N, 3, H, W] with every image in the memory format of `training_format`."""
    images = frames.flatten(0, 1).contiguous(memory_format=training_format(frames.device))
    return images.unflatten(0, frames.shape[:2])
