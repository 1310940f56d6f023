"""Screen-space ambient occlusion: darkens corners and narrow gaps, which receive less ambient light.

For every pixel, sample points in the hemisphere above its surface point are compared with the depth map. A sample point
behind the depth map counts as occluded (Mittring, "Finding next gen: CryEngine 2", 2007).
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from fadepth_core.common.jit import jit
from fadepth_core.rendering.raster import SKY_DEPTH

#: Number of sample points of a pixel.
_SAMPLES = 12


def ambient_occlusion(depth: np.ndarray, intrinsics: np.ndarray, radius: float) -> np.ndarray:
    """Share of the sample points that are not occluded, float32 [H, W] in 0..1; 1 for sky.

    Args:
        depth: [H, W] float32 metres along the optical axis, `SKY_DEPTH` for sky.
        intrinsics: K [3, 3], pixels.
        radius: distance in metres within which surfaces occlude a point.
    """
    rng = np.random.default_rng(0)
    offsets = rng.standard_normal((16, _SAMPLES, 3))
    offsets /= np.linalg.norm(offsets, axis=2, keepdims=True)
    lengths = radius * ((np.arange(_SAMPLES) + 1) / _SAMPLES) ** 1.5
    result = np.empty(depth.shape, np.float32)
    _occlude(np.ascontiguousarray(depth), np.asarray(intrinsics, np.float64), radius, offsets, lengths, result)
    return cv2.blur(result, (4, 4))


@jit
def _occlude(depth, k, radius, offsets, lengths, result):
    """Fill `result` [H, W].

    `offsets` [16, samples, 3] holds unit vectors for the pixels of a 4×4 pattern, `lengths` [samples] the distances of
    the sample points in metres, `k` the intrinsics K [3, 3].
    """
    height, width = depth.shape
    fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
    for row in range(height):
        for column in range(width):
            d = depth[row, column]
            if d >= SKY_DEPTH:
                result[row, column] = 1.0
                continue
            x, y = (column - cx) / fx * d, (row - cy) / fy * d
            # Normal from two neighbours. On each axis the neighbour with the smaller change of depth is taken, because
            # it probably lies on the same surface.
            left, right = max(0, column - 1), min(width - 1, column + 1)
            side = left if abs(depth[row, left] - d) < abs(depth[row, right] - d) and left != column else right
            if side == column:
                side = left
            up, down = max(0, row - 1), min(height - 1, row + 1)
            over = up if abs(depth[up, column] - d) < abs(depth[down, column] - d) and up != row else down
            if over == row:
                over = up
            ds, do = depth[row, side], depth[over, column]
            ax, ay, az = (side - cx) / fx * ds - x, (row - cy) / fy * ds - y, ds - d
            bx, by, bz = (column - cx) / fx * do - x, (over - cy) / fy * do - y, do - d
            nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
            norm = 1.0 / (math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12)
            if nx * x + ny * y + nz * d > 0:
                norm = -norm
            nx, ny, nz = nx * norm, ny * norm, nz * norm
            # Adding the normal to a random unit vector gives a direction in the hemisphere above the surface.
            pattern = 4 * (row & 3) + (column & 3)
            hidden, counted = 0.0, 0
            for s in range(offsets.shape[1]):
                ox, oy, oz = nx + offsets[pattern, s, 0], ny + offsets[pattern, s, 1], nz + offsets[pattern, s, 2]
                size = lengths[s] / (math.sqrt(ox * ox + oy * oy + oz * oz) + 1e-9)
                qx, qy, qz = x + size * ox, y + size * oy, d + size * oz
                if qz < 0.05:
                    continue
                u, v = int(qx / qz * fx + cx + 0.5), int(qy / qz * fy + cy + 0.5)
                if u < 0 or v < 0 or u >= width or v >= height:
                    continue
                counted += 1
                gap = qz - depth[v, u]
                if gap > 0.01 * d and gap < 2 * radius:
                    hidden += 1.0
            result[row, column] = 1.0 - hidden / max(counted, 1)
