"""How much of the difference between two frames a depth map explains, and the camera motion with which it explains most.

For video without true motion: every depth map is given the motion that suits it best, found by direct image alignment
(Engel et al., "Direct Sparse Odometry", 2018) over a coarse-to-fine pyramid. What is left then is the depth's own fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.geometry import motion_from_vector, reproject, sample, scale_intrinsics
from fadepth_core.losses.photometric import ImagePairs, ImageStatistics, off_rim, photometric_error

#: Steps of the optimiser on each level, from an eighth of the size to the full one.
_STEPS = (20, 20, 25, 8)
#: Where a search begins, in pixels that the picture moves: driven ahead (negative: back), and turned to the right.
_AHEAD = (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_TURNED = (-24.0, -12.0, -6.0, 0.0, 6.0, 12.0, 24.0)
#: How many of these are followed.
_FOLLOWED = 3
#: ln of the factors on the length of a known translation that are tried first, over the median of the depth given: true
#: medians from 0.14 to 1100 m.
_LENGTHS = torch.linspace(-7, 2, 46)


@dataclass
class DepthPairs:
    """A frame a beside the one before it and the one after it, b, with the depth of a.

    Attributes:
        images: a twice, and both b; P = 2.
        depth: of a [P, 1, H, W], in any unit.
    """

    images: ImagePairs
    depth: Tensor

    @classmethod
    def of(cls, frames: Tensor, depth: Tensor, intrinsics: Tensor) -> DepthPairs:
        """Shapes: three frames [3, 3, H, W], depth of the middle one [H, W], K [3, 3]."""
        images = ImagePairs.of(frames[[1, 1]], frames[[0, 2]], intrinsics.expand(2, -1, -1))
        return cls(images, depth.expand(2, 1, -1, -1))

    def unexplained(self, motion: Tensor) -> Tensor:
        """Share of the unmoved error that is left when b is seen from a with this depth and motion T_{a→b} [P, 4, 4]: [P].

        0 for a perfect reconstruction, 1 for one that is nowhere better than b as it is. Each pixel counts with the smaller
        of both errors, and with the unmoved one where it leaves the picture. That is the auto-mask of `photometric_loss`
        without its choice: pixels that look as if nothing moved gain nothing and cost nothing, and all depth maps are
        measured on the same pixels.
        """
        images = self.images
        view = reproject(self.depth, motion, images.intrinsics)
        error = photometric_error(images.target, ImageStatistics.of(sample(images.source, view.pixels)))
        seen = off_rim(view.valid, error.dtype) > 0
        left = torch.where(seen, torch.minimum(error, images.unmoved_error), images.unmoved_error)
        return left.sum((1, 2, 3)) / images.unmoved_error.sum((1, 2, 3)).clamp(min=1e-9)

    def halved(self) -> DepthPairs:
        """The same at half the size."""
        a, b = (F.avg_pool2d(x, 2) for x in (self.images.target.image, self.images.source))
        images = ImagePairs.of(a, b, scale_intrinsics(self.images.intrinsics, 0.5, 0.5))
        # Planes are linear in inverse depth.
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
    """The motions T_{a→b} [2, 4, 4] with which the depth leaves least unexplained; their lengths are in its unit.

    The search starts straight ahead (or back) at several speeds and turns, at one velocity through all three frames; on
    the finer levels each pair has its own motion.
    """
    width = pairs.images.source.shape[-1]
    focal, distance = pairs.images.intrinsics[0, [0, 1], [0, 1]].prod().sqrt(), pairs.depth.median()
    # One unit of each of the six numbers moves the picture by about a pixel: motion along z does so a quarter of the
    # picture away from its middle.
    turn, side = 1 / focal, distance / focal
    units = torch.stack([turn, turn, turn, side, side, 4 * distance / width])
    starts = torch.zeros(len(_AHEAD), len(_TURNED), 6)
    starts[..., 5] = -torch.tensor(_AHEAD)[:, None]  # the world comes towards a camera that drives ahead
    starts[..., 1] = -torch.tensor(_TURNED)

    def steady(x: Tensor) -> Tensor:
        return motion_from_vector(torch.stack([-x, x], dim=-2) * units)

    def free(x: Tensor) -> Tensor:
        return motion_from_vector(x * units)

    levels = _pyramid(pairs)
    x = _search(levels[:2], steady, starts.flatten(0, 1))
    x = torch.stack([-x, x])
    for level, steps in zip(levels[2:], _STEPS[2:], strict=True):
        x = _descend(level, free, x, steps)
    return free(x)


def fit_length(pairs: DepthPairs, motions: Tensor) -> Tensor:
    """Known motions T_{a→b} [2, 4, 4] with their translations times one fitted factor, for depth of unknown scale."""

    def stretched(x: Tensor) -> Tensor:
        factor = torch.ones(*x.shape[:-1], 4, 4)
        factor[..., :3, 3] = x.exp()
        return motions * factor[..., None, :, :]

    return stretched(_search(_pyramid(pairs), stretched, (_LENGTHS + pairs.depth.median().log())[:, None]))


def _pyramid(pairs: DepthPairs) -> list[DepthPairs]:
    """From the coarsest level to `pairs` themselves."""
    levels = [pairs]
    while len(levels) < len(_STEPS):
        levels.insert(0, levels[0].halved())
    return levels


def _search(levels: Sequence[DepthPairs], motions_of: Callable[[Tensor], Tensor], starts: Tensor) -> Tensor:
    """The numbers [n] with whose motions, [..., n] -> [..., 2, 4, 4], least is unexplained; found from `starts` [G, n]."""
    with torch.no_grad():
        tried = levels[0].repeated(len(starts)).unexplained(motions_of(starts).flatten(0, 1))
    followed = starts[tried.view(-1, 2).sum(1).argsort()[:_FOLLOWED]]
    ends = [_descend(levels[0], motions_of, start, _STEPS[0]) for start in followed]
    x = min(ends, key=lambda end: float(levels[0].unexplained(motions_of(end)).sum()))
    for level, steps in zip(levels[1:], _STEPS[1:], strict=False):
        x = _descend(level, motions_of, x, steps)
    return x


def _descend(pairs: DepthPairs, motions_of: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Minimise `unexplained` from one start."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        left = pairs.unexplained(motions_of(x)).sum()
        left.backward()
        return left

    optimizer.step(loss)
    return x.detach()
