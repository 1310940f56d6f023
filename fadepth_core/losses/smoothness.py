"""Edge-aware smoothness loss L_s (docs/method.md, section 4.3): penalises disparity changes away from image edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothness_loss(disparities: Sequence[Tensor], image: Tensor) -> Tensor:
    """L_s = Σ_j 2^{-j} mean(|∂x d*|·e^{-|∂x I|} + |∂y d*|·e^{-|∂y I|}) with d* = disparity / its mean over the image.

    L_s is zero only for a constant disparity. Its weight must be small, so that it decides only between solutions that
    are equally good for the other terms.

    Args:
        disparities: x_j at 1, 1/2, 1/4, .. of the image, each [B, 1, h, w]. The image is reduced to their sizes.
        image: RGB in [0, 1], [B, 3, H, W].

    Returns:
        The loss, [].
    """
    total = image.new_zeros(())
    for j, disparity in enumerate(disparities):
        with torch.no_grad():
            if j > 0:
                image = F.interpolate(image, size=disparity.shape[-2:], mode="bilinear", antialias=True)
            edges = [torch.exp(-gradient.abs().mean(1, keepdim=True)) for gradient in _gradients(image)]
        relative = disparity / (disparity.mean((2, 3), keepdim=True) + 1e-7)
        for gradient, edge in zip(_gradients(relative), edges, strict=True):
            total = total + 2.0**-j * (gradient.abs() * edge).mean()
    return total


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels along x [B, C, H, W-1] and along y [B, C, H-1, W]."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
