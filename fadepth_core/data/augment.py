"""Random augmentation of a training sample (docs/method.md, section 8). All frames of a sample change in the same way.

Geometric changes come first (zoom, crop, camera rotation, mirroring), then photometric ones (colour, gamma, blur,
noise, JPEG). Intrinsics, poses, depth and a teacher's maps are changed consistently with the frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.common.color import ColorJitter
from fadepth_core.common.framing import focal_length
from fadepth_core.common.sample import Sample
from fadepth_core.geometry import (
    crop_intrinsics,
    flip_intrinsics,
    mirror_motion,
    motion_from_vector,
    scale_intrinsics,
)

_COLOR_JITTER = ColorJitter()


@dataclass(frozen=True)
class Augmentation:
    """Random geometric and photometric changes of an unbatched sample.

    Attributes:
        scale: each axis is magnified by a random factor from [1, scale], then a random window of the original size is
            kept. The focal lengths grow by the same factors.
        stretch: largest ratio between the factors of the two axes; None: no limit. Pixels of real cameras are square,
            so a large `scale` should be combined with a small `stretch`.
        roll, pitch: standard deviation, in degrees, of a rotation of the camera about its optical axis and about its
            horizontal axis. Pixels from outside the image repeat its border; their depth is unknown (0).
        flip: probability of mirroring left and right; camera motion is mirrored too.
        jitter: probability of a colour change, with the default ranges of `ColorJitter`.
        camera: probability of each of a random gamma, blur, noise and JPEG compression.
    """

    scale: float = 1.15
    stretch: float | None = None
    roll: float = 0.0
    pitch: float = 0.0
    flip: float = 0.5
    jitter: float = 0.5
    camera: float = 0.0

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The changed sample, whose tensors keep their sizes. All random numbers come from `generator`."""
        # Always draw all numbers, so that changing one setting does not change the random numbers of the others.
        down, across, top, left, flip, jitter = torch.rand(6, generator=generator).tolist()
        roll, pitch = (torch.randn(2, generator=generator) * math.pi / 180).tolist()
        down, across = 1 + (self.scale - 1) * down, 1 + (self.scale - 1) * across
        if self.stretch is not None:
            across = min(max(across, down / self.stretch), down * self.stretch)
        sample = _change_view(sample, (across, down), (left, top), self.roll * roll, self.pitch * pitch)
        if flip < self.flip:
            sample = _mirror(sample)
        if jitter < self.jitter:
            sample = replace(sample, frames=_COLOR_JITTER(sample.frames[None], generator)[0])
        if self.camera:
            sample = replace(sample, frames=_degrade(sample.frames, self.camera, generator))
        return sample


def cutmix_strip(sample: Sample, other: Sample, generator: torch.Generator) -> Sample:
    """Replace a vertical strip of `sample`, frames and depth, by that of `other` (CutMix, Yun et al. 2019).

    The strip has a fifth to two thirds of the width and the full height, so that objects keep their height in the
    image. Poses, speed and intrinsics remain those of `sample` and are wrong inside the strip, so only depth can be
    learnt there. The frames of both samples must have the same size.
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
        # Depth may differ in size from the frames.
        start, end = (round(x * depth.shape[1] / width) for x in (start, start + strip))
        depth[:, start:end] = F.interpolate(other.depth[None, None], depth.shape, mode="nearest")[0, 0, :, start:end]
    return replace(sample, frames=frames, depth=depth, name=f"{sample.name} and {other.name}")


def _change_view(
    sample: Sample, enlarge: tuple[float, float], place: tuple[float, float], roll: float, pitch: float
) -> Sample:
    """The same scene seen by a camera with a longer, off-centre lens that is rotated about the camera's centre.

    Args:
        enlarge: factors along x and y, at least 1.
        place: position of the window that is kept along x and y, from 0 (left, top) to 1 (right, bottom).
        roll, pitch: radians.
    """
    if enlarge == (1.0, 1.0) and not roll and not pitch:
        return sample
    height, width = sample.frames.shape[-2:]
    # Depth and a teacher's maps may differ in size from the frames. All coordinates are in pixels of the frames.
    kept = [side / factor for side, factor in zip((width, height), enlarge, strict=True)]
    start = [p * (side - k) for p, side, k in zip(place, (width, height), kept, strict=True)]
    old = sample.intrinsics.double()
    new = crop_intrinsics(
        scale_intrinsics(old, *enlarge), *(s * factor for s, factor in zip(start, enlarge, strict=True))
    )
    motion = _camera_rotation(roll, pitch)
    rotation = motion[:3, :3]
    # Homography from new to old pixels; the third row gives the old depth of a point whose new depth is 1.
    to_old = (old @ rotation.T @ torch.linalg.inv(new)).tolist()

    def resample(maps: Tensor, mode: str, padding: str) -> tuple[Tensor, Tensor]:
        """Maps [N, C, h, w] resampled to the new view, and the ratio old depth / new depth [h, w]."""
        h, w = maps.shape[-2:]
        x = (torch.arange(w) + 0.5) * width / w - 0.5
        y = (torch.arange(h)[:, None] + 0.5) * height / h - 0.5
        u, v, ratio = (row[0] * x + (row[1] * y + row[2]) for row in to_old)
        grid = torch.stack([(2 * u / ratio + 1) / width - 1, (2 * v / ratio + 1) / height - 1], dim=-1)
        grid = grid.to(maps)[None].expand(len(maps), -1, -1, -1)
        return F.grid_sample(maps, grid, mode=mode, padding_mode=padding, align_corners=False), ratio.to(maps)

    frames, _ = resample(sample.frames, "bilinear", "border")
    depth, poses, teacher = sample.depth, sample.poses, sample.teacher
    if depth is not None:  # not interpolated, because a mean of two depths at an edge is wrong
        depth, ratio = resample(depth[None, None], "nearest", "zeros")
        depth = depth[0, 0] / ratio
    if poses is not None:
        # Poses stay relative to the middle camera.
        poses = (motion @ poses.double() @ motion.T).to(poses)
    if teacher is not None:
        longer = focal_length(new) / focal_length(old)
        changed = {}
        for name, values in teacher.items():
            moved, ratio = resample(values[None], "bilinear", "border")
            # A teacher's depth is scaled to one focal length (`data.focal`). A longer lens makes objects larger in the
            # image, so the teacher's depth becomes smaller and its disparity larger, by the same factor.
            changed[name] = moved[0] * ratio * longer if name.startswith("disparity") else moved[0]
        teacher = changed
    return replace(
        sample, frames=frames, intrinsics=new.to(sample.intrinsics), depth=depth, poses=poses, teacher=teacher
    )


def _camera_rotation(roll: float, pitch: float) -> Tensor:
    """Rotation T_{old→new} of points from the old camera's coordinates to the new one's, float64 [4, 4]."""
    about_x, about_z = motion_from_vector(
        torch.tensor([[pitch, 0, 0, 0, 0, 0], [0, 0, roll, 0, 0, 0]], dtype=torch.float64)
    )
    return about_x @ about_z


def _degrade(frames: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Random gamma, blur, noise and JPEG compression of frames [N, 3, H, W], each with the given probability.

    All frames get the same changes; only the noise differs from frame to frame.
    """
    chances = (torch.rand(4, generator=generator) < probability).tolist()
    exposure, blur, noise, quality = torch.rand(4, generator=generator).tolist()
    grain = torch.randn(frames.shape, generator=generator)
    exposed, blurred, noisy, compressed = chances
    if exposed:
        frames = frames ** (1.6 ** (2 * exposure - 1))
    if blurred:
        sigma = 0.3 + 1.2 * blur
        frames = _map_images(frames, lambda picture: cv2.GaussianBlur(picture, (0, 0), sigma))
    if noisy:
        frames = (frames + 0.04 * noise * grain).clamp(0, 1)
    if compressed:
        frames = _map_images(frames, lambda picture: _jpeg(picture, round(25 + 65 * quality)))
    return frames


def _map_images(frames: Tensor, change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Frames [N, 3, H, W] with `change` applied to each as float32 [H, W, 3]."""
    pictures = [change(np.ascontiguousarray(picture)) for picture in frames.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress an image [H, W, 3] in [0, 1]."""
    _, data = cv2.imencode(".jpg", (picture * 255).round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded.astype(np.float32) / 255


def _mirror(sample: Sample) -> Sample:
    """The sample mirrored left and right."""
    return replace(
        sample,
        frames=sample.frames.flip(-1),
        intrinsics=flip_intrinsics(sample.intrinsics, sample.frames.shape[-1]),
        poses=None if sample.poses is None else mirror_motion(sample.poses),
        depth=None if sample.depth is None else sample.depth.flip(-1),
        teacher=None if sample.teacher is None else {name: x.flip(-1) for name, x in sample.teacher.items()},
    )
