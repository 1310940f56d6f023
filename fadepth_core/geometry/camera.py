"""Pinhole cameras: pixel grids, unprojection, projection, and the intrinsics of resized, cropped and mirrored images
(docs/method.md, section 4.1).

The centre of the first pixel is (0, 0), so an image of width W spans [-½, W - ½]. Intrinsics are
K = [[f_x, 0, c_x], [0, f_y, c_y], [0, 0, 1]] in pixels, without skew. Points are in the optical frame: x right, y down,
z forward, metres.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Smallest visible depth, metres along the optical axis (docs/method.md, section 4.1). Nearer points and points behind
#: the camera are not visible.
MIN_Z = 1e-3


def pixel_grid(
    height: int, width: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Coordinates (u, v) of every pixel centre, [2, H, W]."""
    v, u = torch.meshgrid(
        torch.arange(height, device=device, dtype=dtype), torch.arange(width, device=device, dtype=dtype), indexing="ij"
    )
    return torch.stack([u, v])


def pixel_directions(intrinsics: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Slopes of the viewing rays: X/Z = (u - c_x) / f_x of every column, Y/Z = (v - c_y) / f_y of every row.

    Shapes: K [..., 3, 3] -> [..., 1, W], [..., H, 1].
    """
    u = torch.arange(width, device=intrinsics.device, dtype=intrinsics.dtype).unsqueeze(0)
    v = torch.arange(height, device=intrinsics.device, dtype=intrinsics.dtype).unsqueeze(1)
    fx, fy, cx, cy = (intrinsics[..., i : i + 1, j : j + 1] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return (u - cx) / fx, (v - cy) / fy


def viewing_rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """K⁻¹p for every pixel: its point at depth 1 m. Shapes: [B, 3, 3] -> [B, 3, H, W]."""
    x, y = (direction.expand(-1, height, width) for direction in pixel_directions(intrinsics, height, width))
    return torch.stack([x, y, torch.ones_like(x)], dim=1)


def unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """X = D(p)·K⁻¹p. Shapes: depth [B, 1, H, W], metres along the optical axis, K [B, 3, 3] -> points [B, 3, H, W]."""
    return depth * viewing_rays(intrinsics, *depth.shape[-2:])


def project(points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Project points into a camera: their pixels q = π(KX) and their depth.

    Depth is clamped to at least `MIN_Z` to avoid division by zero. The pixels of clamped points are meaningless.

    Shapes: points [B, 3, H, W] in metres, K [B, 3, 3] -> pixels (u, v) [B, 2, H, W], depth [B, 1, H, W] in metres.
    """
    focal, centre = _focal_and_centre(intrinsics)
    depth = points[:, 2:].clamp(min=MIN_Z)
    return points[:, :2] / depth * focal + centre, depth


def scale_intrinsics(intrinsics: Tensor, scale_x: float, scale_y: float) -> Tensor:
    """K of an image resized by s = new size / old size along each axis: p' = s(p + ½) - ½. Shapes: [..., 3, 3] -> same.

    Because pixel centres are at whole numbers, the principal point differs from that of diag(s, s, 1)·K by (s - 1) / 2.
    This is the convention of area averaging and of interpolation with `align_corners=False`.
    """
    shift_x, shift_y = (scale_x - 1) / 2, (scale_y - 1) / 2
    matrix = intrinsics.new_tensor([[scale_x, 0, shift_x], [0, scale_y, shift_y], [0, 0, 1]])
    return matrix @ intrinsics


def area_average(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Reduce images to `size` (height, width): each new pixel is the mean over its area. [N, C, H, W] -> [N, C, *size].

    `Framing` uses the same filter (OpenCV's INTER_AREA) in evaluation and deployment. `scale_intrinsics` gives the
    intrinsics of the result. Antialiased interpolation (a triangle filter) blurs more: after halving, the standard
    deviation of the image's Laplacian is 0.051 instead of 0.073.
    """
    return images if tuple(images.shape[-2:]) == tuple(size) else F.interpolate(images, tuple(size), mode="area")


def crop_intrinsics(intrinsics: Tensor, left: float, top: float) -> Tensor:
    """K of the crop of an image that starts at pixel (left, top). Shapes: [..., 3, 3] -> [..., 3, 3]."""
    return intrinsics - intrinsics.new_tensor([[0, 0, left], [0, 0, top], [0, 0, 0]])


def flip_intrinsics(intrinsics: Tensor, width: int) -> Tensor:
    """K of a horizontally mirrored image of width W: c_x -> W - 1 - c_x. Shapes: [..., 3, 3] -> [..., 3, 3].

    f_x keeps its sign, because the mirrored image shows a mirrored scene (see `mirror_motion`).
    """
    flipped = intrinsics.clone()
    flipped[..., 0, 2] = width - 1 - intrinsics[..., 0, 2]
    return flipped


def _focal_and_centre(intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """(f_x, f_y) and (c_x, c_y), each [B, 2, 1, 1]."""
    focal = intrinsics[:, :2, :2].diagonal(dim1=-2, dim2=-1)
    return focal[..., None, None], intrinsics[:, :2, 2, None, None]
