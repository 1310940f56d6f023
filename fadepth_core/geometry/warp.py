"""Reprojection of one view into another by depth and motion, and bilinear sampling (docs/method.md, section 4.1).

kornia's depth warpers are not used: the losses need the flow, the moved depth and the validity of the same projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fadepth_core.geometry.camera import MIN_Z, pixel_grid, project, unproject
from fadepth_core.geometry.motion import transform_points


@dataclass
class Reprojection:
    """Where camera b sees the point that camera a sees at pixel p. All maps are on a's pixel grid.

    Attributes:
        pixels: q [B, 2, H, W], (u, v) in b's image.
        flow: F_{a→b}(p) = q - p [B, 2, H, W], pixels.
        depth: D^c, the "affine" depth z(X') of the point in b [B, 1, H, W], metres.
        valid: V, whether q is inside b's image and the point is in front of b [B, 1, H, W] bool.
    """

    pixels: Tensor
    flow: Tensor
    depth: Tensor
    valid: Tensor


def reproject(depth: Tensor, motion: Tensor, intrinsics: Tensor) -> Reprojection:
    """Move the points seen by camera a into camera b and project them. Both have the same intrinsics and image size.

    Shapes: depth of a [B, 1, H, W], T_{a→b} [B, 4, 4], K [B, 3, 3].
    """
    height, width = depth.shape[-2:]
    pixels, moved = project(transform_points(motion, unproject(depth, intrinsics)), intrinsics)
    u, v = pixels[:, :1], pixels[:, 1:]
    valid = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1) & (moved > MIN_Z)
    return Reprojection(
        pixels, pixels - pixel_grid(height, width, device=depth.device, dtype=depth.dtype), moved, valid
    )


def sample(values: Tensor, pixels: Tensor) -> Tensor:
    """values⟨q⟩: bilinear interpolation at pixel coordinates, zero outside.

    Shapes: values [B, C, h, w], pixels [B, 2, H, W] -> [B, C, H, W].
    """
    height, width = values.shape[-2:]
    span = pixels.new_tensor([(width - 1) / 2, (height - 1) / 2])[:, None, None]
    grid = (pixels / span - 1).permute(0, 2, 3, 1)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
