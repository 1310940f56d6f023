"""Unprojection of depth in numpy, for the node and for engines on a CPU, which run without torch.

`geometry.unproject` does the same with torch, for batches and with gradients.
"""

from __future__ import annotations

import numpy as np


def unproject(
    depth: np.ndarray, intrinsics: np.ndarray, pixels: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Points D(p)·K⁻¹p in the optical frame: x right, y down, z forward.

    Args:
        depth: depth along the optical axis: an image [h, w], or values [...] of single pixels.
        intrinsics: K [3, 3] in pixels, without skew; the centre of the first pixel is (0, 0).
        pixels: columns u and rows v [...] of the single pixels; None if `depth` is an image.

    Returns:
        Points [..., 3] in the unit of `depth`.
    """
    u, v = (np.arange(depth.shape[1]), np.arange(depth.shape[0])[:, None]) if pixels is None else pixels
    x = (u - intrinsics[0, 2]) / intrinsics[0, 0] * depth
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1] * depth
    return np.stack([x, y, depth], axis=-1)
