"""Photometric error that remains when a depth map warps one frame to another, and the camera motion that minimises it.

For video without known motion: the motion that fits a depth map best is found by direct image alignment (Engel et al.,
"Direct Sparse Odometry", 2018) over a coarse-to-fine pyramid, so that the remaining error is due to the depth alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.geometry import motion_from_vector, reproject, sample, scale_intrinsics
from fadepth_core.losses.photometric import ImagePairs, ImageStatistics, eroded, photometric_error

#: Steps of the optimiser on each level, from an eighth of the size to the full one.
_STEPS = (20, 20, 25, 8)
#: Initial motions, in pixels of image motion: translation forward (negative: backward), and rotation to the right.
_FORWARD = (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_RIGHT = (-24.0, -12.0, -6.0, 0.0, 6.0, 12.0, 24.0)
#: Number of initial values, the best ones, from which the optimiser starts.
_STARTS = 3
#: Initial values of ln(factor on known translations / median of the given depth): for true medians from 0.14 to 1100 m.
_LOG_FACTORS = torch.linspace(-7, 2, 46)


@dataclass
class DepthPairs:
    """A frame a, paired with the frame before it and the frame after it (b), and the depth of a.

    Attributes:
        images: P = 2 pairs: a twice as target, both b as source.
        depth: depth of a [P, 1, H, W], in any unit.
    """

    images: ImagePairs
    depth: Tensor

    @classmethod
    def of(cls, frames: Tensor, depth: Tensor, intrinsics: Tensor) -> DepthPairs:
        """Shapes: three frames [3, 3, H, W], depth of the middle one [H, W], K [3, 3]."""
        images = ImagePairs.of(frames[[1, 1]], frames[[0, 2]], intrinsics.expand(2, -1, -1))
        return cls(images, depth.expand(2, 1, -1, -1))

    def unexplained(self, motion: Tensor) -> Tensor:
        """Photometric error after warping b to a, relative to that of b without warping [P], for T_{a→b} [P, 4, 4].

        0 for a perfect reconstruction, 1 for one that is nowhere better than b itself. Each pixel counts with the
        smaller of the two errors, and with the unwarped one where it leaves the image. This resembles the auto-mask of
        `photometric_loss`, but masks no pixel, so that all depth maps are measured on the same pixels; pixels that
        match without warping have no effect.
        """
        images = self.images
        view = reproject(self.depth, motion, images.intrinsics)
        error = photometric_error(images.target, ImageStatistics.of(sample(images.source, view.pixels)))
        seen = eroded(view.valid, error.dtype) > 0
        remaining = torch.where(seen, torch.minimum(error, images.unmoved_error), images.unmoved_error)
        return remaining.sum((1, 2, 3)) / images.unmoved_error.sum((1, 2, 3)).clamp(min=1e-9)

    def halved(self) -> DepthPairs:
        """The same at half the size."""
        a, b = (F.avg_pool2d(x, 2) for x in (self.images.target.image, self.images.source))
        images = ImagePairs.of(a, b, scale_intrinsics(self.images.intrinsics, 0.5, 0.5))
        # Average inverse depth, because planes are linear in it.
        return DepthPairs(images, 1 / F.avg_pool2d(1 / self.depth, 2))

    def repeated(self, times: int) -> DepthPairs:
        """[P, ...] -> [times · P, ...]."""
        images = self.images
        source, unmoved_error, depth = (
            x.repeat(times, 1, 1, 1) for x in (images.source, images.unmoved_error, self.depth)
        )
        target = images.target.map(lambda x: x.repeat(times, 1, 1, 1))
        return DepthPairs(ImagePairs(target, source, unmoved_error, images.intrinsics.repeat(times, 1, 1)), depth)


def fit_motion(pairs: DepthPairs) -> Tensor:
    """The motions T_{a→b} [2, 4, 4] that minimise `DepthPairs.unexplained`; translations are in the unit of depth.

    The search starts from forward and backward motions with several speeds and rotations. It assumes constant velocity
    over the three frames on the two coarsest levels; on the finer levels each pair has its own motion.
    """
    width = pairs.images.source.shape[-1]
    focal, distance = pairs.images.intrinsics[0, [0, 1], [0, 1]].prod().sqrt(), pairs.depth.median()
    # One unit of each parameter moves the image by about one pixel; for translation along z, a quarter of the width
    # from the image centre.
    rotation, sideways = 1 / focal, distance / focal
    units = torch.stack([rotation, rotation, rotation, sideways, sideways, 4 * distance / width])
    starts = torch.zeros(len(_FORWARD), len(_RIGHT), 6)
    starts[..., 5] = -torch.tensor(_FORWARD)[:, None]  # points come towards a camera that moves forward
    starts[..., 1] = -torch.tensor(_RIGHT)

    def constant_velocity(x: Tensor) -> Tensor:
        """[..., 6] -> [..., 2, 4, 4]."""
        return motion_from_vector(torch.stack([-x, x], dim=-2) * units)

    def independent(x: Tensor) -> Tensor:
        """[2, 6] -> [2, 4, 4]."""
        return motion_from_vector(x * units)

    levels = _pyramid(pairs)
    x = _search(levels[:2], constant_velocity, starts.flatten(0, 1))
    x = torch.stack([-x, x])
    for level, steps in zip(levels[2:], _STEPS[2:], strict=True):
        x = _minimise(level, independent, x, steps)
    return independent(x)


def fit_length(pairs: DepthPairs, motions: Tensor) -> Tensor:
    """Scale the translations of known motions T_{a→b} [2, 4, 4] by one fitted factor, for depth of unknown scale."""

    def scaled(x: Tensor) -> Tensor:
        """ln(factor) [..., 1] -> [..., 2, 4, 4]."""
        factor = torch.ones(*x.shape[:-1], 4, 4)
        factor[..., :3, 3] = x.exp()
        return motions * factor[..., None, :, :]

    return scaled(_search(_pyramid(pairs), scaled, (_LOG_FACTORS + pairs.depth.median().log())[:, None]))


def _pyramid(pairs: DepthPairs) -> list[DepthPairs]:
    """The levels from the coarsest to `pairs` itself."""
    levels = [pairs]
    while len(levels) < len(_STEPS):
        levels.insert(0, levels[0].halved())
    return levels


def _search(levels: Sequence[DepthPairs], motions_of: Callable[[Tensor], Tensor], starts: Tensor) -> Tensor:
    """The parameters [n] that minimise `unexplained`, from coarse to fine.

    Args:
        motions_of: parameters [..., n] -> motions [..., 2, 4, 4].
        starts: initial parameters [G, n]; the best ones are optimised.
    """
    with torch.no_grad():
        errors = levels[0].repeated(len(starts)).unexplained(motions_of(starts).flatten(0, 1))
    best = starts[errors.view(-1, 2).sum(1).argsort()[:_STARTS]]
    ends = [_minimise(levels[0], motions_of, start, _STEPS[0]) for start in best]
    x = min(ends, key=lambda end: float(levels[0].unexplained(motions_of(end)).sum()))
    for level, steps in zip(levels[1:], _STEPS[1:], strict=False):
        x = _minimise(level, motions_of, x, steps)
    return x


def _minimise(pairs: DepthPairs, motions_of: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Minimise `unexplained` from one initial value by L-BFGS."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = pairs.unexplained(motions_of(x)).sum()
        error.backward()
        return error

    optimizer.step(loss)
    return x.detach()
