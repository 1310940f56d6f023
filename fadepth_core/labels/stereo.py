"""Multi-view stereo: measures the depth of a clip with known poses, as labels for training.

A plane sweep (Collins 1996) over inverse depth compares a frame with several source frames by normalised
cross-correlation. Semi-global matching (Hirschmüller 2008) fills surfaces with little texture. A check of consistency
with the depth of neighbouring frames removes most wrong depth, e.g. on moving objects, mirrors and clear sky.

Training on these labels converges much faster than training with the photometric loss. That loss compares each frame
only with its two neighbours and finds depth by gradient descent. Stereo finds it by search, and its baseline may be as
long as the distance of the nearest objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fadepth_core.common.errors import DataError
from fadepth_core.data.images import write_depth
from fadepth_core.data.video import Clip
from fadepth_core.geometry import project, relative_motion, reproject, sample, viewing_rays

#: Baselines to the source frames before and after a frame, in units of the nearest depth.
_BASELINES = (0.3, 0.6, 1.05)
#: Number of planes of the sweep.
_PLANES = 80
#: Half of the side of the correlation windows, pixels.
_RADIUS = 2
#: Variance of grey values (0 to 1) in a window without texture. It is added to each variance, so that the correlation
#: of two such windows is low.
_NOISE = 2e-5
#: Semi-global matching, in units of the cost of a window without any match: penalty P1 for a change by one plane,
#: penalty P2 for a larger change, and how strongly an image gradient reduces P2.
_P1, _P2, _P2_GRADIENT = 0.06, 0.5, 25.0
#: Pixels whose best match has a higher cost are left out.
_MAX_COST = 0.6
#: Largest difference of consistent inverse depths, as a share of the inverse depth. It is at least `_MIN_TOLERANCE`
#: times the inverse depth of the nearest plane.
_TOLERANCE, _MIN_TOLERANCE = 0.08, 0.01
#: Depth beyond this multiple of the nearest plane's depth is left out, because the baselines are too short to measure
#: it.
_MAX_DEPTH_RATIO = 30.0
#: Number of frames on either side that take part in the consistency check.
_NEIGHBOURS = 3


def write_stereo(clip: Clip, folder: Path, nearest: float = 4.0, first: int = 0, every: int = 1) -> int:
    """Measure the depth of a clip with poses and write it as the `depth` folder of its camera file (`data.video`).

    The files are <frame number>.png, 16 bits, metres * 256, 0 where unknown, at the clip's size for training.

    Args:
        clip: a clip with poses.
        folder: where to write.
        nearest: depth of the nearest plane, metres; depth up to 30 times this is measured.
        first: first frame that is measured or used as a source frame.
        every: measure every N-th frame.

    Returns:
        The number of files written.

    Raises:
        DataError: the clip has no poses, the camera moves too little, an argument is out of range, or a file cannot be
            written.
    """
    if not nearest > 0 or first < 0 or every < 1:
        raise DataError(
            f"need nearest > 0, first >= 0 and every >= 1, got nearest {nearest} m, first {first}, every {every}"
        )
    if clip.poses is None:
        raise DataError(f"{clip.camera}: has no poses, which are needed to measure depth")
    positions = clip.poses[:, :3, 3]
    sources = {number: _source_frames(positions, number, first, nearest) for number in range(first, clip.count, every)}
    numbers = [number for number, near in sources.items() if near]
    if not numbers:
        raise DataError(f"{clip.path}: the camera never moves by {_BASELINES[0] * nearest:.2g} m from frame {first} on")
    sweeps = _Sweeps(clip, sources, nearest)
    folder.mkdir(parents=True, exist_ok=True)
    for position, number in enumerate(tqdm(numbers, unit="frame", desc=f"stereo of {clip.name}")):
        around = numbers[max(0, position - _NEIGHBOURS) : position + _NEIGHBOURS + 1]
        depth = sweeps.consistent_depth(number, [n for n in around if n != number])
        path = folder / f"{number:06d}.png"
        try:
            write_depth(path, depth.numpy())
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from error
        sweeps.forget_before(around[0])
    return len(numbers)


class _Sweeps:
    """Plane sweeps of the frames of a clip. Results are kept until `forget_before`, because neighbours share them.

    Args:
        clip: a clip with poses.
        sources: source frames of each frame.
        nearest: depth of the nearest plane, metres.
    """

    def __init__(self, clip: Clip, sources: Mapping[int, Sequence[int]], nearest: float):
        self._intrinsics = torch.from_numpy(clip.intrinsics).float()
        self._poses, self._grey = torch.from_numpy(clip.poses), _GreyFrames(clip)
        self._sources, self._nearest = sources, nearest
        self._sweep = PlaneSweep(self._intrinsics, clip.size, nearest)
        self._swept: dict[int, tuple[Tensor, Tensor]] = {}

    def consistent_depth(self, number: int, neighbours: Sequence[int]) -> Tensor:
        """Depth of a frame [H, W] in metres; 0 where it is unreliable or differs from that of its neighbours."""
        inverse, cost = self._swept_frame(number)
        consistent = consistency_mask(
            inverse,
            [self._swept_frame(n)[0] for n in neighbours],
            [self._motion(number, n) for n in neighbours],
            self._intrinsics,
            self._nearest,
        )
        # At an end of the searched range, the true depth may be outside the range.
        inside = (inverse > 1 / (_MAX_DEPTH_RATIO * self._nearest)) & (inverse < 0.98 / self._nearest)
        return torch.where(consistent & inside & (cost < _MAX_COST), 1 / inverse, 0.0)

    def forget_before(self, number: int) -> None:
        """Release the results of frames before frame `number`."""
        self._swept = {n: result for n, result in self._swept.items() if n >= number}

    def _swept_frame(self, number: int) -> tuple[Tensor, Tensor]:
        """Inverse depth [H, W] of a frame and the cost of its match [H, W], see `PlaneSweep`."""
        if number not in self._swept:
            sources = self._sources[number]
            motions = torch.stack([self._motion(number, source) for source in sources])
            self._swept[number] = self._sweep(
                self._grey(number), torch.stack([self._grey(source) for source in sources]), motions
            )
        return self._swept[number]

    def _motion(self, number: int, other: int) -> Tensor:
        """T_{number→other} [4, 4]."""
        return relative_motion(self._poses[number], self._poses[other]).float()


class PlaneSweep:
    """Inverse depth of a reference view from source views with known motion.

    Args:
        intrinsics: K [3, 3] of all views, pixels.
        size: (height, width) of all views.
        nearest: depth of the nearest plane, metres; the farthest is at infinity.
    """

    def __init__(self, intrinsics: Tensor, size: tuple[int, int], nearest: float):
        self._intrinsics = intrinsics[None]
        self._planes = torch.linspace(0, 1 / nearest, _PLANES)
        self._rays = viewing_rays(self._intrinsics, *size)

    def __call__(self, reference: Tensor, sources: Tensor, motions: Tensor) -> tuple[Tensor, Tensor]:
        """Measure the inverse depth of the reference view.

        Args:
            reference: grey image [H, W] in [0, 1].
            sources: grey images [N, H, W] in [0, 1].
            motions: T_{reference→source} [N, 4, 4], metres.

        Returns:
            Inverse depth [H, W] in 1/m, and the cost of its match [H, W], from 0 (perfect) to 1 (no match).
        """
        costs = self.costs(reference, sources, motions)
        best, inverse = self._minimum(semi_global(costs, reference))
        return inverse, costs.gather(0, best[None])[0]

    def costs(self, reference: Tensor, sources: Tensor, motions: Tensor) -> Tensor:
        """Matching cost of each pixel on each plane, [planes, H, W]; arguments as for `__call__`.

        Of the sources that see a point, only the half with the lower costs is averaged, because the point may be
        occluded in the others.
        """
        height, width = reference.shape
        mean, variance = _statistics(reference[None])
        costs = torch.empty(len(sources), _PLANES, height, width)
        planes = self._planes[:, None, None, None]
        for cost, source, motion in zip(costs, sources, motions, strict=True):
            # In the source frame, the point at inverse depth d is R·ray / d + t. It is multiplied by d, which does not
            # change its pixel and is also valid for d = 0 (infinity).
            rotated = torch.einsum("ij,bjhw->bihw", motion[:3, :3], self._rays)
            points = rotated + planes * motion[:3, 3, None, None]
            pixels, depth = project(points, self._intrinsics)
            u, v = pixels[:, 0], pixels[:, 1]
            seen = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1) & (depth[:, 0] > 0.1)
            warped = sample(source[None, None].expand(_PLANES, 1, height, width), pixels)[:, 0]
            warped_mean, warped_variance = _statistics(warped)
            covariance = _window(warped * reference) - warped_mean * mean
            correlation = covariance / ((variance + _NOISE) * (warped_variance + _NOISE)).sqrt()
            cost[:] = torch.where(seen, (1 - correlation).clamp(0, 1), torch.inf)
        costs = costs.sort(dim=0).values
        count = costs.isfinite().sum(0)
        better = torch.arange(len(sources))[:, None, None, None] < (count + 1) // 2
        total = torch.where(better, costs, 0.0).sum(0)
        return torch.where(count > 0, total / ((count + 1) // 2).clamp(min=1), 1.0)

    def _minimum(self, costs: Tensor) -> tuple[Tensor, Tensor]:
        """The cheapest plane of each pixel, and its inverse depth refined by a parabola through its neighbours."""
        best = costs.argmin(0)
        middle = best.clamp(1, _PLANES - 2)
        before, at, after = (costs.gather(0, (middle + step)[None])[0] for step in (-1, 0, 1))
        curvature = before - 2 * at + after
        shift = (0.5 * (before - after) / curvature.clamp(min=1e-6)).clamp(-0.5, 0.5)
        refined = best + torch.where((best == middle) & (curvature > 1e-6), shift, 0.0)
        return best, refined * self._planes[1]


def semi_global(costs: Tensor, view: Tensor) -> Tensor:
    """Mean of the costs aggregated along paths from the left, right, top and bottom (Hirschmüller 2008, eq. 13).

    Shapes: costs [planes, H, W], grey reference view [H, W] in [0, 1] -> [planes, H, W].
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
    """Costs aggregated along the first dimension: costs [L, planes, M], view [L, M] -> [L, planes, M]."""
    p2 = (_P2 / (1 + _P2_GRADIENT * view.diff(dim=0).abs())).clamp(min=1.2 * _P1)
    paths = costs.clone()
    for i in range(1, len(costs)):
        previous = paths[i - 1]
        cheapest = previous.amin(0)
        step = previous.clone()
        step[1:] = torch.minimum(step[1:], previous[:-1] + _P1)
        step[:-1] = torch.minimum(step[:-1], previous[1:] + _P1)
        paths[i] += torch.minimum(step, cheapest + p2[i - 1]) - cheapest
    return paths


def consistency_mask(
    inverse: Tensor, others: Sequence[Tensor], motions: Sequence[Tensor], intrinsics: Tensor, nearest: float
) -> Tensor:
    """Pixels of a view whose depth is confirmed by two or more other views and by half or more of those that see it.

    Args:
        inverse: inverse depth of the view, [H, W] in 1/m.
        others: inverse depths of the other views.
        motions: T_{view→other} [4, 4] for each of them, metres.
        intrinsics: K [3, 3] of all views.
        nearest: depth of the nearest plane, metres.

    Returns:
        bool [H, W].
    """
    height, width = inverse.shape
    depth = 1 / inverse.clamp(min=0.2 / (_MAX_DEPTH_RATIO * nearest))[None, None]
    agreeing, seeing = torch.zeros_like(inverse), torch.zeros_like(inverse)
    for other, motion in zip(others, motions, strict=True):
        projected = reproject(depth, motion[None], intrinsics[None])
        # Read the depth of the nearest pixel, because depth must not be interpolated across edges.
        u, v = projected.pixels[0].round().long()
        sees = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (projected.depth[0, 0] > 0.1)
        expected = 1 / projected.depth[0, 0]
        measured = other[v.clamp(0, height - 1), u.clamp(0, width - 1)]
        tolerance = (_TOLERANCE * expected).clamp(min=_MIN_TOLERANCE / nearest)
        agreeing += sees & ((measured - expected).abs() < tolerance)
        seeing += sees
    return (agreeing >= 2) & (agreeing >= seeing / 2)


class _GreyFrames:
    """Grey frames of a clip, [H, W] float32 in [0, 1]. The last 64 are kept, because they are used several times."""

    def __init__(self, clip: Clip):
        self._clip = clip
        self._kept: dict[int, Tensor] = {}

    def __call__(self, number: int) -> Tensor:
        if number not in self._kept:
            while len(self._kept) >= 64:
                self._kept.pop(next(iter(self._kept)))
            grey = cv2.cvtColor(np.ascontiguousarray(self._clip.source.frame(number)), cv2.COLOR_RGB2GRAY)
            self._kept[number] = torch.from_numpy(grey).float() / 255
        return self._kept[number]


def _source_frames(positions: np.ndarray, number: int, first: int, nearest: float) -> list[int]:
    """Numbers of the source frames of frame `number`; none is before frame `first`.

    On either side, and for each of `_BASELINES`, the nearest frame with at least this baseline is taken.
    """
    distances = np.linalg.norm(positions - positions[number], axis=1)
    found = []
    for side in (range(number - 1, first - 1, -1), range(number + 1, len(positions))):
        for baseline in _BASELINES:
            source = next((n for n in side if distances[n] >= baseline * nearest), None)
            if source is not None and source not in found:
                found.append(source)
    return found


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the window around each pixel, [N, H, W] each."""
    mean = _window(image)
    return mean, (_window(image * image) - mean * mean).clamp(min=0)


def _window(image: Tensor) -> Tensor:
    """Mean of the window around each pixel, edges repeated. Shapes: [N, H, W] -> [N, H, W]."""
    padded = F.pad(image[:, None], 4 * (_RADIUS,), mode="replicate")
    return F.avg_pool2d(padded, 2 * _RADIUS + 1, stride=1)[:, 0]
