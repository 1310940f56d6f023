"""Random changes of a whole sample (specification 8): one draw for all its frames, with what is known about them.

First another view of the scene (zoom, cut, camera turned, mirrored), then another camera (colour, exposure, blur, noise, JPEG).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.common.color import ColorJitter
from fadepth_core.common.sample import Sample
from fadepth_core.data.focal import focal_length
from fadepth_core.geometry import (
    crop_intrinsics,
    flip_intrinsics,
    mirror_motion,
    motion_from_vector,
    scale_intrinsics,
)

_RECOLOUR = ColorJitter()


@dataclass(frozen=True)
class Augmentation:
    """A random view and a random camera for an unbatched sample.

    Attributes:
        scale: each axis is enlarged by a factor from [1, scale], then a random part of the original size is kept. That is a
            longer lens: the focal length grows with it.
        stretch: how much the factors of the two axes differ at most; None: as much as they like. Pixels of real cameras are
            square, so a large `scale` wants a small one.
        roll, pitch: standard deviation in degrees of a rotation of the camera about its optical axis and about its horizontal
            axis. What comes into view from outside the picture repeats its border, and has no known depth.
        flip: probability of mirroring left and right; camera motion is mirrored with the picture.
        jitter: probability of recolouring, with the ranges of `ColorJitter`.
        camera: probability of each of another exposure curve, blur, noise and JPEG compression.
    """

    scale: float = 1.15
    stretch: float | None = None
    roll: float = 0.0
    pitch: float = 0.0
    flip: float = 0.5
    jitter: float = 0.5
    camera: float = 0.0

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The changed sample, of the same sizes; everything is drawn from `generator`."""
        # All numbers are drawn whatever comes of them, so that one setting does not shift the others' random numbers.
        down, across, top, left, flip, jitter = torch.rand(6, generator=generator).tolist()
        roll, pitch = (torch.randn(2, generator=generator) * math.pi / 180).tolist()
        down, across = 1 + (self.scale - 1) * down, 1 + (self.scale - 1) * across
        if self.stretch is not None:
            across = min(max(across, down / self.stretch), down * self.stretch)
        sample = _seen_anew(sample, (across, down), (left, top), self.roll * roll, self.pitch * pitch)
        if flip < self.flip:
            sample = _mirror(sample)
        if jitter < self.jitter:
            sample = replace(sample, frames=_RECOLOUR(sample.frames[None], generator)[0])
        if self.camera:
            sample = replace(sample, frames=_photographed(sample.frames, self.camera, generator))
        return sample


def cutmix_strip(sample: Sample, other: Sample, generator: torch.Generator) -> Sample:
    """`sample` with a strip, a fifth to two thirds of its width, of what `other` shows there: frames and depth.

    A strip from top to bottom, so that what is up stays up. Everything else is the sample's own and does not hold in the
    strip, which has nothing to say but depth. The frames of both have one size.
    """
    width = sample.frames.shape[-1]
    share, left = torch.rand(2, generator=generator).tolist()
    strip = round(width * (0.2 + 0.47 * share))
    start = round(left * (width - strip))
    frames, depth = sample.frames.clone(), sample.depth
    frames[..., start : start + strip] = other.frames[..., start : start + strip]
    if depth is not None and other.depth is not None:
        depth = depth.clone()
        if sample.sharp is not None and other.sharp is not None:
            sample = replace(sample, sharp=sample.sharp & other.sharp)
        # Depth has a size of its own.
        start, end = (round(x * depth.shape[1] / width) for x in (start, start + strip))
        depth[:, start:end] = F.interpolate(other.depth[None, None], depth.shape, mode="nearest")[0, 0, :, start:end]
    return replace(sample, frames=frames, depth=depth, name=f"{sample.name} and {other.name}")


def _seen_anew(
    sample: Sample, enlarge: tuple[float, float], place: tuple[float, float], roll: float, pitch: float
) -> Sample:
    """The scene through a longer lens, off-centre, by a camera turned about its centre.

    Args:
        enlarge: factors along x and y, at least 1.
        place: in [0, 1], where between the left (upper) and the right (lower) end the kept part lies.
        roll, pitch: radians.
    """
    if enlarge == (1, 1) and not roll and not pitch:
        return sample
    height, width = sample.frames.shape[-2:]
    # Everything at its own size: positions are counted in pixels of the frames.
    kept = [side / factor for side, factor in zip((width, height), enlarge, strict=True)]
    start = [p * (side - k) for p, side, k in zip(place, (width, height), kept, strict=True)]
    old = sample.intrinsics.double()
    new = crop_intrinsics(
        scale_intrinsics(old, *enlarge), *(s * factor for s, factor in zip(start, enlarge, strict=True))
    )
    motion = _turn(roll, pitch)
    turned = motion[:3, :3]
    # From the new picture's pixels to the old one's, and the depth of a point that has depth 1 in the new one.
    to_old = (old @ turned.T @ torch.linalg.inv(new)).tolist()

    def look_up(maps: Tensor, mode: str, padding: str) -> tuple[Tensor, Tensor]:
        """Maps [N, C, h, w] in the new view, and by what depths shrink there [h, w]."""
        h, w = maps.shape[-2:]
        x = (torch.arange(w) + 0.5) * width / w - 0.5
        y = (torch.arange(h)[:, None] + 0.5) * height / h - 0.5
        u, v, ratio = (row[0] * x + (row[1] * y + row[2]) for row in to_old)
        grid = torch.stack([(2 * u / ratio + 1) / width - 1, (2 * v / ratio + 1) / height - 1], dim=-1)
        grid = grid.to(maps)[None].expand(len(maps), -1, -1, -1)
        return F.grid_sample(maps, grid, mode=mode, padding_mode=padding, align_corners=False), ratio.to(maps)

    frames, _ = look_up(sample.frames, "bilinear", "border")
    depth, poses, teacher = sample.depth, sample.poses, sample.teacher
    if depth is not None:  # never interpolated
        depth, ratio = look_up(depth[None, None], "nearest", "zeros")
        depth = depth[0, 0] / ratio
    if poses is not None:
        # In the middle camera's coordinates, as before.
        poses = (motion @ poses.double() @ motion.T).to(poses)
    if teacher is not None:
        longer = focal_length(new) / focal_length(old)
        changed = {}
        for name, values in teacher.items():
            moved, ratio = look_up(values[None], "bilinear", "border")
            # A teacher answers for one focal length: through a longer lens all it sees is nearer.
            changed[name] = moved[0] * ratio * longer if name.startswith("disparity") else moved[0]
        teacher = changed
    return replace(
        sample, frames=frames, intrinsics=new.to(sample.intrinsics), depth=depth, poses=poses, teacher=teacher
    )


def _turn(roll: float, pitch: float) -> Tensor:
    """Of points from the old camera's coordinates to the new one's, a rotation, float64 [4, 4]."""
    about_x, about_z = motion_from_vector(
        torch.tensor([[pitch, 0, 0, 0, 0, 0], [0, 0, roll, 0, 0, 0]], dtype=torch.float64)
    )
    return about_x @ about_z


def _photographed(frames: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Frames [N, 3, H, W] as another camera stores them; one draw for all of them, but for the noise."""
    chances = (torch.rand(4, generator=generator) < probability).tolist()
    exposure, blur, noise, quality = torch.rand(4, generator=generator).tolist()
    grain = torch.randn(frames.shape, generator=generator)
    exposed, blurred, noisy, compressed = chances
    if exposed:
        frames = frames ** (1.6 ** (2 * exposure - 1))
    if blurred:
        sigma = 0.3 + 1.2 * blur
        frames = _each(frames, lambda picture: cv2.GaussianBlur(picture, (0, 0), sigma))
    if noisy:
        frames = (frames + 0.04 * noise * grain).clamp(0, 1)
    if compressed:
        frames = _each(frames, lambda picture: _compressed(picture, round(25 + 65 * quality)))
    return frames


def _each(frames: Tensor, change) -> Tensor:
    """`change` applied to every frame as float32 [H, W, 3]."""
    pictures = [change(np.ascontiguousarray(picture)) for picture in frames.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    _, data = cv2.imencode(".jpg", (picture * 255).round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR).astype(np.float32) / 255


def _mirror(sample: Sample) -> Sample:
    return replace(
        sample,
        frames=sample.frames.flip(-1),
        intrinsics=flip_intrinsics(sample.intrinsics, sample.frames.shape[-1]),
        poses=None if sample.poses is None else mirror_motion(sample.poses),
        depth=None if sample.depth is None else sample.depth.flip(-1),
        teacher=None if sample.teacher is None else {name: x.flip(-1) for name, x in sample.teacher.items()},
    )
