"""Unprojection in numpy.

`geometry.unproject` is the same for torch, with gradients and batches. This one exists because engines on a CPU, and
what the node computes from their depth, run without torch; importing `geometry` imports it.
"""

from __future__ import annotations

import numpy as np


def unproject(
    depth: np.ndarray, intrinsics: np.ndarray, pixels: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Points D(p)·K⁻¹p in the optical frame: x right, y down, z forward.

    Args:
        depth: along the optical axis, [h, w], or [...] of single pixels; points are in its unit.
        intrinsics: K [3, 3] in pixels, without skew; the centre of the first pixel is (0, 0).
        pixels: columns u and rows v [...] of single pixels; None: those of a depth image [h, w].

    Returns:
        Points [..., 3].
    """
    u, v = (np.arange(depth.shape[1]), np.arange(depth.shape[0])[:, None]) if pixels is None else pixels
    x = (u - intrinsics[0, 2]) / intrinsics[0, 0] * depth
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1] * depth
    return np.stack([x, y, depth], axis=-1)
