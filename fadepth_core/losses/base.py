"""Base self-supervised loss of one pyramid level (eq. 21; docs/method.md, section 4), from three consecutive frames.

Three terms compare the middle frame with each neighbour, in both directions: photometric (L_bwp), depth structure
(L_bds) and feature perception (L_bfp). The fourth term is smoothness (L_s). This module does not run the networks: the
caller passes the depth network's outputs for every frame and the motion of every pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.common.memory import training_format
from fadepth_core.geometry import (
    disparity_to_depth,
    invert_motion,
    motion_from_vector,
    relative_motion,
    reproject,
    sample,
)
from fadepth_core.losses.feature import feature_loss
from fadepth_core.losses.geometric import depth_difference, pair_weights, structure_loss
from fadepth_core.losses.photometric import ImagePairs, ImageStatistics, photometric_error, photometric_loss
from fadepth_core.losses.smoothness import smoothness_loss
from fadepth_core.models.depth_network import DepthFeatures


@dataclass(frozen=True)
class BaseWeights:
    """λ1 .. λ4 of eq. 21. A term of weight 0 is not computed."""

    photometric: float = 1.0
    structure: float = 0.1
    feature: float = 0.1
    smoothness: float = 0.001

    @property
    def need_motion(self) -> bool:
        """Whether any term compares two frames."""
        return any((self.photometric, self.structure, self.feature))


@dataclass
class Motions:
    """Camera motion from the middle frame to its neighbours.

    Attributes:
        to_previous: T_{t→t-1} [B, 4, 4].
        to_next: T_{t→t+1} [B, 4, 4].
    """

    to_previous: Tensor
    to_next: Tensor

    @classmethod
    def from_vectors(cls, vectors: Tensor) -> Motions:
        """From a pose network's outputs in temporal order, [B, 2, 6]: t-1 → t and t → t+1."""
        backward, forward = motion_from_vector(vectors).unbind(1)
        return cls(invert_motion(backward), forward)

    @classmethod
    def from_poses(cls, poses: Tensor) -> Motions:
        """From known camera-to-world poses of the three frames, [B, 3, 4, 4]."""
        previous, middle, following = poses.unbind(1)
        return cls(relative_motion(middle, previous), relative_motion(middle, following))

    @property
    def translations(self) -> Tensor:
        """Translations to the previous and to the next frame, [B, 2, 3]."""
        return torch.stack([self.to_previous[:, :3, 3], self.to_next[:, :3, 3]], dim=1)


@dataclass
class Views:
    """Reconstructions and masks at the finest scale, for display. Without gradients.

    The first dimension of `warped`, `visible` and `weight` is the directed pair: t→t-1, t→t+1, t-1→t, t+1→t.

    Attributes:
        frames: RGB in [0, 1] [B, 3, 3, H, W].
        depth: of these frames [B, 3, 1, H, W], metres (up to scale).
        warped: Î_a, the first frame of each pair reconstructed from the second [4, B, 3, H, W].
        visible: V·O, pixels of the first frame that are visible in the second, 0 or 1 [4, B, 1, H, W].
        weight: w, how much each of these pixels counts, in [0, 1] [4, B, 1, H, W].
    """

    frames: Tensor
    depth: Tensor
    warped: Tensor
    visible: Tensor
    weight: Tensor


@dataclass
class BaseLoss:
    """Loss of one level (eq. 21).

    Attributes:
        total: weighted sum of the terms, [].
        photometric, structure, feature, smoothness: the terms before weighting, each []; 0 if their weight is 0.
        views: None if no term compares frames.
    """

    total: Tensor
    photometric: Tensor
    structure: Tensor
    feature: Tensor
    smoothness: Tensor
    views: Views | None


def base_loss(
    frames: Tensor,
    intrinsics: Tensor,
    outputs: DepthFeatures,
    motions: Motions | None,
    depth_range: tuple[float, float],
    weights: BaseWeights,
    feature_offset: int = 0,
) -> BaseLoss:
    """Compute L_k, the base loss of one level.

    Args:
        frames: RGB in [0, 1], [B, 3, 3, H, W]; fastest if each image is in the format of `training_format`.
        intrinsics: K of these frames [B, 3, 3].
        outputs: of the depth network for the 3·B frames, in the order of `frames.flatten(0, 1)`.
        motions: of the camera; may be None if `weights.need_motion` is False.
        depth_range: depths in metres for which disparities 1 and 0 stand.
        weights: λ1 .. λ4.
        feature_offset: of the depth network, see `feature_loss`.
    """
    # Geometry is computed in the frames' precision, even if the networks ran in a lower one.
    disparities = [x.to(frames.dtype) for x in outputs.disparities]
    zero = frames.new_zeros(())
    smoothness = smoothness_loss(disparities, frames.flatten(0, 1)) if weights.smoothness else zero

    photometric, structure, feature, views = zero, zero, zero, None
    if weights.need_motion:
        assert motions is not None
        pairs = _DirectedPairs.of(frames, intrinsics, outputs.encoder[0], motions)
        for disparity in disparities:
            scale = _scale_terms(pairs, disparity, depth_range, weights, feature_offset)
            photometric = photometric + scale.photometric / len(disparities)
            structure = structure + scale.structure / len(disparities)
            feature = feature + scale.feature / len(disparities)
            views = views or Views(frames, scale.depth, scale.warped, scale.visible, scale.weight)

    total = (
        weights.photometric * photometric
        + weights.structure * structure
        + weights.feature * feature
        + weights.smoothness * smoothness
    )
    return BaseLoss(total, photometric, structure, feature, smoothness, views)


@dataclass
class _DirectedPairs:
    """Data of the directed pairs a→b that all disparity scales share.

    The pairs are stacked along the batch: t→t-1, t→t+1, t-1→t, t+1→t. The second half are the pairs of the first half
    reversed. Exchanging the halves (`_reverse`) therefore turns a tensor of the frames a into one of the frames b.

    Attributes:
        images: I_a and I_b.
        features, source_features: E_1 of a and of b, each [4B, C, h, w].
        motion: T_{a→b} [4B, 4, 4].
    """

    images: ImagePairs
    features: Tensor
    source_features: Tensor
    motion: Tensor

    @classmethod
    def of(cls, frames: Tensor, intrinsics: Tensor, features: Tensor, motions: Motions) -> _DirectedPairs:
        with torch.no_grad():
            target = ImageStatistics.of(frames.flatten(0, 1)).map(lambda x: _first(x.unflatten(0, frames.shape[:2])))
            # The photometric error is symmetric, so it is computed in one direction only.
            unmoved = photometric_error(target.map(_middle_first), target.map(_middle_second)).repeat(2, 1, 1, 1)
        # Planar memory makes bilinear sampling of many channels a third faster.
        features = _first(features.to(frames.dtype).unflatten(0, frames.shape[:2])).contiguous()
        from_middle = torch.cat([motions.to_previous, motions.to_next])
        motion = torch.cat([from_middle, invert_motion(from_middle)])
        images = ImagePairs(target, _reverse(target.image), unmoved, intrinsics.repeat(4, 1, 1))
        return cls(images, features, _reverse(features), motion)


def _first(x: Tensor) -> Tensor:
    """The first frame of every directed pair: [B, 3, ...] of three frames -> [4B, ...]."""
    return torch.cat([x[:, 1], x[:, 1], x[:, 0], x[:, 2]])


def _middle_first(x: Tensor) -> Tensor:
    """The pairs t→t-1, t→t+1: [4B, ...] -> [2B, ...]."""
    return x.chunk(2)[0]


def _middle_second(x: Tensor) -> Tensor:
    """The pairs t-1→t, t+1→t: [4B, ...] -> [2B, ...]."""
    return x.chunk(2)[1]


def _reverse(x: Tensor) -> Tensor:
    """From every pair a→b to the pair b→a: exchanges the halves of [4B, ...]."""
    return torch.roll(x, x.shape[0] // 2, dims=0)


@dataclass
class _ScaleTerms:
    """Terms of one disparity scale, and its maps as in `Views`."""

    photometric: Tensor
    structure: Tensor
    feature: Tensor
    depth: Tensor
    warped: Tensor
    visible: Tensor
    weight: Tensor


def _scale_terms(
    pairs: _DirectedPairs,
    disparity: Tensor,
    depth_range: tuple[float, float],
    weights: BaseWeights,
    feature_offset: int,
) -> _ScaleTerms:
    """The terms that compare two frames, for one disparity scale [3B, 1, h, w]."""
    # Every scale is compared at full size, as in monodepth2: comparing reduced images causes depth that copies texture.
    full = F.interpolate(disparity, size=pairs.images.source.shape[-2:], mode="bilinear", align_corners=False)
    frame_depths = disparity_to_depth(full, *depth_range).unflatten(0, (-1, 3))
    depth = _first(frame_depths)

    view = reproject(depth, pairs.motion, pairs.images.intrinsics)
    difference = depth_difference(view.depth, sample(_reverse(depth), view.pixels))
    with torch.no_grad():
        returning = sample(_reverse(view.flow), view.pixels)
    masks = pair_weights(view, returning, difference)
    warped = sample(pairs.images.source, view.pixels)
    warped = warped.contiguous(memory_format=training_format(warped.device))

    photometric = structure = feature = depth.new_zeros(())
    if weights.photometric:
        error = photometric_error(pairs.images.target, ImageStatistics.of(warped))
        photometric = photometric_loss(error, pairs.images.unmoved_error, masks.weight, view.valid)
    if weights.structure:
        structure = structure_loss(difference, masks.visible)
    if weights.feature:
        feature = feature_loss(pairs.features, pairs.source_features, view.flow, masks.weight, feature_offset)
    maps = (x.detach().unflatten(0, (4, -1)) for x in (warped, masks.visible, masks.weight))
    return _ScaleTerms(photometric, structure, feature, frame_depths.detach(), *maps)
