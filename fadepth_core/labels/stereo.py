"""Depth of a clip whose poses are known, from the clip itself, as labels for training: multi-view stereo.

A plane sweep (Collins 1996) over inverse depth compares a frame with several others by normalised cross-correlation,
semi-global matching (Hirschmüller 2008) carries the answer over surfaces that show too little, and what the sweeps of
neighbouring frames do not confirm is left out. That goes for most of what moves by itself, for mirrors and bare sky.

To learn from it is far quicker than from the photometric loss, which compares two frames with one: here the camera may have
moved by the distance of the nearest things, and no gradient has to find its way there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fadepth_core.common.errors import DataError
from fadepth_core.data.video import Clip
from fadepth_core.geometry import project, relative_motion, reproject, sample, viewing_rays

#: How far the camera is to have moved between the frames that are compared, as parts of the nearest depth, both ways.
_BASELINES = (0.3, 0.6, 1.05)
_PLANES = 80
#: Half the side of the windows that are correlated, pixels.
_RADIUS = 2
#: Variance of grey values (0 to 1) below which a window shows nothing.
_NOISE = 2e-5
#: Semi-global matching: what one plane's difference between neighbours costs, and what more costs at most, where 1 is a
#: window that does not match; over an edge of the picture more costs less.
_STEP, _JUMP, _EDGE = 0.06, 0.5, 25.0
#: Windows that match worse than this are not believed.
_WORST = 0.6
#: Two frames agree on a point whose inverse depths differ by less than this part, or this part of the nearest plane's.
_AGREE, _AGREE_FAR = 0.08, 0.01
#: What is farther than this many times the nearest is not measured: the camera has not moved enough.
_REACH = 30.0
_NEIGHBOURS = 3


def write_stereo(clip: Clip, folder: Path, nearest: float = 4.0, first: int = 0, every: int = 1) -> int:
    """Measure every `every`-th frame of a posed clip from frame `first` on; frames before it are not looked at.

    Writes what the `depth` of a clip's camera file means: <number>.png, 16 bits, metres * 256, 0 unknown, of the clip's
    size for training.

    Args:
        nearest: depth of the nearest plane, metres; 30 times it is the farthest that is measured.

    Returns:
        How many pictures were written.

    Raises:
        DataError: the clip has no poses, or moves too little; a number that makes no sense.
    """
    if not nearest > 0 or first < 0 or every < 1:
        raise DataError(
            f"nearest {nearest} m, first {first}, every {every}: must be positive, not negative, at least 1"
        )
    if clip.poses is None:
        raise DataError(f"{clip.camera}: has no poses, from which depth could be measured")
    intrinsics = torch.from_numpy(clip.intrinsics).float()
    sweep = PlaneSweep(intrinsics, clip.size, nearest)
    poses = torch.from_numpy(clip.poses)
    numbers = list(range(first, clip.count, every))
    partners = {number: _partners(poses[:, :3, 3].numpy(), number, first, nearest) for number in numbers}
    numbers = [number for number in numbers if partners[number]]
    if not numbers:
        raise DataError(
            f"{clip.path}: the camera nowhere moves by {_BASELINES[0] * nearest:.2g} m from frame {first} on"
        )
    grey = _Greys(clip)
    swept: dict[int, tuple[Tensor, Tensor]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for position, number in enumerate(tqdm(numbers, unit="frame", desc=f"stereo of {clip.name}")):
        around = numbers[max(0, position - _NEIGHBOURS) : position + _NEIGHBOURS + 1]
        for n in around:
            if n not in swept:
                motions = torch.stack([relative_motion(poses[n], poses[p]).float() for p in partners[n]])
                swept[n] = sweep(grey(n), torch.stack([grey(p) for p in partners[n]]), motions)
        for n in [n for n in swept if n < around[0]]:
            del swept[n]
        inverse, cost = swept[number]
        others = [n for n in around if n != number]
        agreed = confirmed(
            inverse,
            [swept[n][0] for n in others],
            [relative_motion(poses[number], poses[n]).float() for n in others],
            intrinsics,
            nearest,
        )
        inside = (inverse > 1 / (_REACH * nearest)) & (inverse < 0.98 / nearest)  # at an end it may lie beyond
        depth = torch.where(agreed & inside & (cost < _WORST), 1 / inverse, 0.0)
        picture = (depth * 256).round().clamp(max=np.iinfo(np.uint16).max).numpy().astype(np.uint16)
        path = folder / f"{number:06d}.png"
        if not cv2.imwrite(str(path), picture):
            raise DataError(f"{path}: cannot be written")
    return len(numbers)


class PlaneSweep:
    """Inverse depth of one view from others whose motion is known.

    Args:
        intrinsics: K [3, 3] of all views, pixels.
        size: (height, width) of all views.
        nearest: depth of the nearest plane, metres; the farthest is at infinity.
    """

    def __init__(self, intrinsics: Tensor, size: tuple[int, int], nearest: float):
        self._intrinsics = intrinsics[None]
        self._planes = torch.linspace(0, 1 / nearest, _PLANES)
        self._rays = viewing_rays(self._intrinsics, *size)

    def __call__(self, view: Tensor, others: Tensor, motions: Tensor) -> tuple[Tensor, Tensor]:
        """
        Shapes: grey view [H, W] and others [N, H, W] in [0, 1], motions T_{view→other} [N, 4, 4] in metres -> inverse
        depth [H, W] in 1/m, and what the match there costs [H, W], 0 for a perfect one and 1 for none.
        """
        costs = self.costs(view, others, motions)
        best, inverse = self._minimum(semi_global(costs, view))
        return inverse, costs.gather(0, best[None])[0]

    def costs(self, view: Tensor, others: Tensor, motions: Tensor) -> Tensor:
        """What it costs to have each pixel on each plane, [planes, H, W]: of the others that see it there, the mean over the
        better half, since from the worse half something may hide it."""
        height, width = view.shape
        mean, variance = _statistics(view[None])
        costs = torch.empty(len(others), _PLANES, height, width)
        planes = self._planes[:, None, None, None]
        for cost, other, motion in zip(costs, others, motions, strict=True):
            # T(X / d) of the point at inverse depth d, times d, so that infinity is a plane like the others.
            turned = torch.einsum("ij,bjhw->bihw", motion[:3, :3], self._rays)
            points = turned + planes * motion[:3, 3, None, None]
            pixels, depth = project(points, self._intrinsics)
            u, v = pixels[:, 0], pixels[:, 1]
            seen = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1) & (depth[:, 0] > 0.1)
            warped = sample(other[None, None].expand(_PLANES, 1, height, width), pixels)[:, 0]
            warped_mean, warped_variance = _statistics(warped)
            covariance = _window(warped * view) - warped_mean * mean
            correlation = covariance / ((variance + _NOISE) * (warped_variance + _NOISE)).sqrt()
            cost[:] = torch.where(seen, (1 - correlation).clamp(0, 1), torch.inf)
        costs = costs.sort(dim=0).values
        count = costs.isfinite().sum(0)
        better = torch.arange(len(others))[:, None, None, None] < (count + 1) // 2
        total = torch.where(better, costs, 0.0).sum(0)
        return torch.where(count > 0, total / ((count + 1) // 2).clamp(min=1), 1.0)

    def _minimum(self, costs: Tensor) -> tuple[Tensor, Tensor]:
        """The cheapest plane of each pixel, and its inverse depth refined by the parabola through its neighbours."""
        best = costs.argmin(0)
        middle = best.clamp(1, _PLANES - 2)
        before, at, after = (costs.gather(0, (middle + step)[None])[0] for step in (-1, 0, 1))
        curvature = before - 2 * at + after
        shift = (0.5 * (before - after) / curvature.clamp(min=1e-6)).clamp(-0.5, 0.5)
        refined = best + torch.where((best == middle) & (curvature > 1e-6), shift, 0.0)
        return best, refined * self._planes[1]


def semi_global(costs: Tensor, view: Tensor) -> Tensor:
    """Costs with those of paths from the left, right, top and bottom added (Hirschmüller 2008, eq. 13), as their mean.

    Shapes: costs [planes, H, W], grey view [H, W] in [0, 1] -> [planes, H, W].
    """
    total = torch.zeros_like(costs)
    for dim in (1, 2):
        for backwards in (False, True):
            lines, greys = costs.movedim(dim, 0).contiguous(), view.movedim(dim - 1, 0)
            if backwards:
                lines, greys = lines.flip(0), greys.flip(0)
            paths = _paths(lines, greys)
            total += (paths.flip(0) if backwards else paths).movedim(0, dim)
    return total / 4


def _paths(costs: Tensor, view: Tensor) -> Tensor:
    """Along the first dimension: costs [L, planes, M], view [L, M] -> [L, planes, M]."""
    jumps = (_JUMP / (1 + _EDGE * view.diff(dim=0).abs())).clamp(min=1.2 * _STEP)
    paths = costs.clone()
    for i in range(1, len(costs)):
        previous = paths[i - 1]
        cheapest = previous.amin(0)
        step = previous.clone()
        step[1:] = torch.minimum(step[1:], previous[:-1] + _STEP)
        step[:-1] = torch.minimum(step[:-1], previous[1:] + _STEP)
        paths[i] += torch.minimum(step, cheapest + jumps[i - 1]) - cheapest
    return paths


def confirmed(
    inverse: Tensor, others: Sequence[Tensor], motions: Sequence[Tensor], intrinsics: Tensor, nearest: float
) -> Tensor:
    """Where at least two other views, and half of those that look there, have measured the same.

    Shapes: inverse depth [H, W] in 1/m of the view and of each other, T_{view→other} [4, 4] each, K [3, 3] -> bool [H, W].
    """
    height, width = inverse.shape
    depth = 1 / inverse.clamp(min=0.2 / (_REACH * nearest))[None, None]
    agree, looking = torch.zeros_like(inverse), torch.zeros_like(inverse)
    for other, motion in zip(others, motions, strict=True):
        there = reproject(depth, motion[None], intrinsics[None])
        # The nearest pixel: between two depths there is no third.
        u, v = there.pixels[0].round().long()
        looks = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (there.depth[0, 0] > 0.1)
        expected = 1 / there.depth[0, 0]
        measured = other[v.clamp(0, height - 1), u.clamp(0, width - 1)]
        allowed = (_AGREE * expected).clamp(min=_AGREE_FAR / nearest)
        agree += looks & ((measured - expected).abs() < allowed)
        looking += looks
    return (agree >= 2) & (agree >= looking / 2)


class _Greys:
    """The frames of a clip in grey, [H, W] float32 in [0, 1]; the last ones are kept, neighbours share them."""

    def __init__(self, clip: Clip):
        self._clip, self._kept = clip, {}

    def __call__(self, number: int) -> Tensor:
        if number not in self._kept:
            while len(self._kept) >= 64:
                self._kept.pop(next(iter(self._kept)))
            grey = cv2.cvtColor(np.ascontiguousarray(self._clip.source.frame(number)), cv2.COLOR_RGB2GRAY)
            self._kept[number] = torch.from_numpy(grey).float() / 255
        return self._kept[number]


def _partners(positions: np.ndarray, number: int, first: int, nearest: float) -> list[int]:
    """Frames to compare with, from `first` on: on either side the first that is as far away as each baseline asks."""
    distances = np.linalg.norm(positions - positions[number], axis=1)
    found = []
    for side in (range(number - 1, first - 1, -1), range(number + 1, len(positions))):
        for baseline in _BASELINES:
            partner = next((n for n in side if distances[n] >= baseline * nearest), None)
            if partner is not None and partner not in found:
                found.append(partner)
    return found


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the window around each pixel, [N, H, W] each."""
    mean = _window(image)
    return mean, (_window(image * image) - mean * mean).clamp(min=0)


def _window(image: Tensor) -> Tensor:
    """Mean of the window around each pixel, edges repeated. Shapes: [N, H, W] -> [N, H, W]."""
    padded = F.pad(image[:, None], 4 * (_RADIUS,), mode="replicate")
    return F.avg_pool2d(padded, 2 * _RADIUS + 1, stride=1)[:, 0]
