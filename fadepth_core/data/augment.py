"""Random changes of a whole sample (specification 8): one draw for its three frames, with what is known about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from fadepth_core.data.sample import Sample
from fadepth_core.geometry import crop_intrinsics, flip_intrinsics, mirror_motion, scale_intrinsics
from fadepth_core.losses import ColorJitter

_RECOLOUR = ColorJitter()


@dataclass(frozen=True)
class Augmentation:
    """Random scaling and cropping, mirroring and recolouring of an unbatched sample.

    Attributes:
        scale: each axis is enlarged by a factor from [1, scale], then a random part of the original size is kept.
        flip: probability of mirroring left and right; camera motion is mirrored with the picture.
        jitter: probability of recolouring, with the ranges of `ColorJitter`.
    """

    scale: float = 1.15
    flip: float = 0.5
    jitter: float = 0.5

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The changed sample, of the same sizes; everything is drawn from `generator`."""
        # All numbers are drawn whatever comes of them, so that one setting does not shift the others' random numbers.
        enlarge_y, enlarge_x, top, left, flip, jitter = torch.rand(6, generator=generator).tolist()
        if self.scale > 1:
            sample = _enlarge_and_crop(
                sample, 1 + (self.scale - 1) * enlarge_y, 1 + (self.scale - 1) * enlarge_x, top, left
            )
        if flip < self.flip:
            sample = _mirror(sample)
        if jitter < self.jitter:
            sample = replace(sample, frames=_RECOLOUR(sample.frames[None], generator)[0])
        return sample


def paste_strip(sample: Sample, other: Sample, generator: torch.Generator) -> Sample:
    """`sample` with a strip, a fifth to two thirds of its width, of what `other` shows there: frames and depth.

    A strip from top to bottom, so that what is up stays up. Everything else is the sample's own and does not hold in the
    strip, which has nothing to say but depth.
    """
    width = sample.frames.shape[-1]
    share, left = torch.rand(2, generator=generator).tolist()
    strip = round(width * (0.2 + 0.47 * share))
    start = round(left * (width - strip))
    frames, depth = sample.frames.clone(), sample.depth
    frames[..., start : start + strip] = other.frames[..., start : start + strip]
    if depth is not None and other.depth is not None:
        depth = depth.clone()
        # Depth has a size of its own.
        start, end = (round(x * depth.shape[1] / width) for x in (start, start + strip))
        depth[:, start:end] = F.interpolate(other.depth[None, None], depth.shape, mode="nearest")[0, 0, :, start:end]
    return replace(sample, frames=frames, depth=depth, name=f"{sample.name} and {other.name}")


def _enlarge_and_crop(sample: Sample, enlarge_y: float, enlarge_x: float, top: float, left: float) -> Sample:
    """`top` and `left` in [0, 1] say where between the two ends the kept part lies."""
    height, width = sample.frames.shape[-2:]
    new_height, new_width = round(height * enlarge_y), round(width * enlarge_x)
    y, x = round(top * (new_height - height)), round(left * (new_width - width))
    frames = F.interpolate(sample.frames, (new_height, new_width), mode="bilinear", align_corners=False)
    intrinsics = scale_intrinsics(sample.intrinsics, new_width / width, new_height / height)
    depth = sample.depth
    if depth is not None:
        # Depth has a size of its own, and holes: nearest neighbour, along rows and columns of that size.
        rows, columns = (
            (((torch.arange(n) + 0.5) / n * side + offset) / enlarged * n).long()
            for n, side, offset, enlarged in (
                (depth.shape[0], height, y, new_height),
                (depth.shape[1], width, x, new_width),
            )
        )
        depth = depth[rows][:, columns]
    teacher = sample.teacher
    if teacher is not None:
        part = ((x / new_width, width / new_width), (y / new_height, height / new_height))
        teacher = {name: _part(values, part) for name, values in teacher.items()}
    return replace(
        sample,
        frames=frames[..., y : y + height, x : x + width],
        intrinsics=crop_intrinsics(intrinsics, x, y),
        depth=depth,
        teacher=teacher,
    )


def _part(values: torch.Tensor, part: tuple[tuple[float, float], tuple[float, float]]) -> torch.Tensor:
    """The part of a map [C, h, w] that starts at a fraction of its width and height and has a fraction of them, at the
    map's size."""
    (left, across), (top, down) = part
    # grid_sample counts from -1 to 1.
    transform = torch.tensor([[[across, 0, 2 * left + across - 1], [0, down, 2 * top + down - 1]]])
    grid = F.affine_grid(transform, [1, *values.shape], align_corners=False)
    return F.grid_sample(values[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _mirror(sample: Sample) -> Sample:
    return replace(
        sample,
        frames=sample.frames.flip(-1),
        intrinsics=flip_intrinsics(sample.intrinsics, sample.frames.shape[-1]),
        poses=None if sample.poses is None else mirror_motion(sample.poses),
        depth=None if sample.depth is None else sample.depth.flip(-1),
        teacher=None if sample.teacher is None else {name: x.flip(-1) for name, x in sample.teacher.items()},
    )
