"""Plane sweep, semi-global matching and the check of consistency of multi-view stereo, compiled with numba.

A plane sweep (Collins 1996) over inverse depth compares a frame with several source frames by normalised
cross-correlation. Semi-global matching (Hirschmüller 2008) fills surfaces with little texture.

The loops follow the processor's cache. For one plane at a time each source is warped row by row, and the sums of the
correlation windows are kept for the last rows only. Loops over a row use few arrays each, so that they are vectorised.
All arrays are float32, and the code is free of infinity and NaN, because it is compiled with `fastmath`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fadepth_core.common.jit import jit

#: Number of planes of the sweep.
PLANES = 80
#: Depth beyond this multiple of the nearest plane's depth is left out, because the baselines are too short to measure
#: it.
MAX_DEPTH_RATIO = 30.0

#: Half of the side of the correlation windows, pixels.
_RADIUS = 2
_SIDE = 2 * _RADIUS + 1
_PER_WINDOW = np.float32(1 / _SIDE**2)
#: Variance of grey values (0 to 1) in a window without texture. It is added to each variance, so that the correlation
#: of two such windows is low.
_NOISE = np.float32(2e-5)
#: Semi-global matching, in units of the cost of a window without any match: penalty P1 for a change by one plane,
#: penalty P2 for a larger change, and how strongly an image gradient reduces P2.
_P1, _P2, _P2_GRADIENT = np.float32(0.06), np.float32(0.5), np.float32(25.0)
#: Smallest P2.
_LEAST_P2 = np.float32(1.2 * 0.06)
#: Largest difference of consistent inverse depths, as a share of the inverse depth. It is at least `_MIN_TOLERANCE`
#: times the inverse depth of the nearest plane.
_TOLERANCE, _MIN_TOLERANCE = 0.08, 0.01
#: A point is behind a source if its depth there is less than this share of its depth in the reference view.
_FRONT = 0.1

_0, _1, _HALF, _WORST = np.float32(0), np.float32(1), np.float32(0.5), np.float32(8)


class PlaneSweep:
    """Inverse depth of a reference view from source views with known motion.

    Args:
        intrinsics: K [3, 3] of all views, pixels.
        nearest: depth of the nearest plane, metres; the farthest is at infinity.
    """

    def __init__(self, intrinsics: np.ndarray, nearest: float):
        self._intrinsics, self._nearest = np.asarray(intrinsics, np.float64), nearest

    def __call__(
        self, reference: np.ndarray, sources: Sequence[np.ndarray], motions: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measure the inverse depth of the reference view. The interpreter is not locked meanwhile (`nogil`).

        Args:
            reference: grey image [H, W] float32 in [0, 1].
            sources: N grey images [H, W] float32 in [0, 1].
            motions: T_{reference→source} [4, 4] of each, metres.

        Returns:
            Inverse depth [H, W] float32 in 1/m, and the cost of its match [H, W], from 0 (perfect) to 1 (no match).
        """
        rotations, shifts = _pixel_motions(motions, self._intrinsics)
        costs = _costs(reference, np.stack([s.ravel() for s in sources]), rotations, shifts / self._nearest)
        inverse, cost = _cheapest(costs, _semi_global(costs, reference))
        return inverse * np.float32(1 / (self._nearest * (PLANES - 1))), cost


def consistent_inverse(
    inverse: np.ndarray,
    others: Sequence[np.ndarray],
    motions: Sequence[np.ndarray],
    intrinsics: np.ndarray,
    nearest: float,
) -> np.ndarray:
    """Inverse depth of the pixels of a view that are confirmed by two or more other views and by half or more of those
    that see them, as the mean over the view and those that confirm it.

    Args:
        inverse: inverse depth of the view, [H, W] float32 in 1/m.
        others: inverse depths of the other views.
        motions: T_{view→other} [4, 4] for each of them, metres.
        intrinsics: K [3, 3] of all views, pixels.
        nearest: depth of the nearest plane, metres.

    Returns:
        [H, W] float32 in 1/m, 0 where it is not confirmed.
    """
    if len(others) < 2:
        return np.zeros_like(inverse)
    rotations, shifts = _pixel_motions(motions, intrinsics)
    return _confirmed(inverse, np.stack(others), rotations, shifts, nearest)


def _pixel_motions(motions: Sequence[np.ndarray], intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Motions in homogeneous pixels: K·R·K⁻¹ [N, 3, 3] and K·t [N, 3]."""
    motion = np.stack(motions).astype(np.float64)
    return intrinsics @ motion[:, :3, :3] @ np.linalg.inv(intrinsics), motion[:, :3, 3] @ intrinsics.T


@jit
def _costs(reference: np.ndarray, sources: np.ndarray, rotations: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Matching cost of each pixel on each plane, [H, planes, W].

    Of the sources that see a point, only the half with the lower costs is averaged, because the point may be occluded in
    the others.

    Args:
        reference: [H, W].
        sources: [N, H·W].
        rotations, shifts: `_pixel_motions`, in units of the nearest depth.
    """
    height, width = reference.shape
    padded, mean, scale = _reference_windows(reference)
    costs = np.empty((height, PLANES, width), np.float32)
    count = np.empty((height, width), np.float32)
    lowest = np.empty(((len(sources) + 1) // 2, height, width), np.float32)
    sums = np.empty((_SIDE, 3, width), np.float32)  # of the last rows
    seen = np.empty((_SIDE, width), np.float32)
    window = np.empty((3, width), np.float32)
    warped = np.empty(width + 2 * _RADIUS, np.float32)
    at = np.empty((2, width), np.float32)
    for plane in range(PLANES):
        inverse = plane / (PLANES - 1)
        count[:] = _0
        lowest[:] = _WORST
        for n in range(len(sources)):
            rotation, shift = rotations[n], shifts[n] * inverse
            for y in range(height + _RADIUS):
                if y < height:
                    slot = y % _SIDE
                    _project_row(rotation, shift, y, height, at, seen[slot])
                    _sample_row(sources[n], height, at, warped)
                    _row_sums(warped, padded[y], sums[slot])
                out = y - _RADIUS
                if out >= 0:
                    _add_rows(sums, out, height, window)
                    _correlate(window, mean[out], scale[out])
                    _hide_unseen(window[2], seen[out % _SIDE], count[out])
                    for k in range(len(lowest)):
                        _insert(window[2], lowest[k, out])
        for y in range(height):
            _average_lowest(lowest[:, y], count[y], costs[y, plane])
    return costs


@jit
def _reference_windows(reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference view with its edges repeated to the sides [H, W + 2·radius], and mean and 1 / deviation of its
    windows [H, W]."""
    height, width = reference.shape
    padded = np.empty((height, width + 2 * _RADIUS), np.float32)
    mean = np.empty((height, width), np.float32)
    scale = np.empty((height, width), np.float32)
    for y in range(height):
        padded[y, _RADIUS : _RADIUS + width] = reference[y]
        padded[y, :_RADIUS] = reference[y, 0]
        padded[y, _RADIUS + width :] = reference[y, width - 1]
    for y in range(height):
        for x in range(width):
            total = squares = _0
            for dy in range(-_RADIUS, _RADIUS + 1):
                row = min(max(y + dy, 0), height - 1)
                for k in range(_SIDE):
                    value = padded[row, x + k]
                    total += value
                    squares += value * value
            average = total * _PER_WINDOW
            mean[y, x] = average
            scale[y, x] = _1 / np.sqrt(max(squares * _PER_WINDOW - average * average, _0) + _NOISE)
    return padded, mean, scale


@jit
def _project_row(
    rotation: np.ndarray, shift: np.ndarray, y: int, height: int, at: np.ndarray, seen: np.ndarray
) -> None:
    """Pixels `at` [2, W] of a source for row `y` of the reference, and whether they are inside it, `seen` [W] 0 or 1.

    The point at inverse depth d is R·ray / d + t. It is multiplied by d, which does not change its pixel and is also
    valid for d = 0 (infinity).
    """
    width = len(seen)
    x0 = np.float32(rotation[0, 1] * y + rotation[0, 2] + shift[0])
    y0 = np.float32(rotation[1, 1] * y + rotation[1, 2] + shift[1])
    z0 = np.float32(rotation[2, 1] * y + rotation[2, 2] + shift[2])
    dx, dy, dz = np.float32(rotation[0, 0]), np.float32(rotation[1, 0]), np.float32(rotation[2, 0])
    right, bottom, front = np.float32(width - 1), np.float32(height - 1), np.float32(_FRONT)
    for u in range(width):
        column = np.float32(u)
        z = z0 + dz * column
        scale = _1 / max(z, front)
        px, py = (x0 + dx * column) * scale, (y0 + dy * column) * scale
        inside = (z > front) & (px >= _0) & (px <= right) & (py >= _0) & (py <= bottom)
        seen[u] = _1 if inside else _0
        at[0, u] = min(max(px, _0), right)
        at[1, u] = min(max(py, _0), bottom)


@jit
def _sample_row(source: np.ndarray, height: int, at: np.ndarray, out: np.ndarray) -> None:
    """Bilinear samples of a source [H·W] at the pixels `at` [2, W], with the first and the last repeated to the sides."""
    width = at.shape[1]
    columns, last_column, last_row = np.uint32(width), np.int32(width - 2), np.int32(height - 2)
    for u in range(width):
        x, y = at[0, u], at[1, u]
        column, row = min(np.int32(x), last_column), min(np.int32(y), last_row)
        fx, fy = x - np.float32(column), y - np.float32(row)
        # Unsigned indices: numba would count negative ones from the end, which prevents vector instructions.
        first = np.uint32(row) * columns + np.uint32(column)
        a, b = source[first], source[first + np.uint32(1)]
        c, d = source[first + columns], source[first + columns + np.uint32(1)]
        top, below = a + fx * (b - a), c + fx * (d - c)
        out[u + _RADIUS] = top + fy * (below - top)
    for k in range(_RADIUS):
        out[k] = out[_RADIUS]
        out[width + _RADIUS + k] = out[width + _RADIUS - 1]


@jit
def _row_sums(warped: np.ndarray, reference: np.ndarray, sums: np.ndarray) -> None:
    """Sums over the windows' rows of the warped values, their squares, and their products with the reference, [3, W]."""
    for u in range(sums.shape[1]):
        total = squares = products = _0
        for k in range(_SIDE):
            value = warped[u + k]
            total += value
            squares += value * value
            products += value * reference[u + k]
        sums[0, u], sums[1, u], sums[2, u] = total, squares, products


@jit
def _add_rows(sums: np.ndarray, y: int, height: int, window: np.ndarray) -> None:
    """Means over the windows around row `y` [3, W], from the sums of the last rows; the image's edges are repeated."""
    first = sums[max(y - 2, 0) % _SIDE]
    second = sums[max(y - 1, 0) % _SIDE]
    third = sums[y % _SIDE]
    fourth = sums[min(y + 1, height - 1) % _SIDE]
    fifth = sums[min(y + 2, height - 1) % _SIDE]
    for k in range(3):
        _mean_of_five(first[k], second[k], third[k], fourth[k], fifth[k], window[k])


@jit
def _mean_of_five(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, e: np.ndarray, out: np.ndarray) -> None:
    for u in range(len(out)):
        out[u] = (a[u] + b[u] + c[u] + d[u] + e[u]) * _PER_WINDOW


@jit
def _correlate(window: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> None:
    """Replace the means of the products by the cost of a match: 1 - normalised cross-correlation, at most 1."""
    for u in range(len(mean)):
        average = window[0, u]
        variance = max(window[1, u] - average * average, _0) + _NOISE
        correlation = (window[2, u] - average * mean[u]) * scale[u] / np.sqrt(variance)
        window[2, u] = min(max(_1 - correlation, _0), _1)


@jit
def _hide_unseen(cost: np.ndarray, seen: np.ndarray, count: np.ndarray) -> None:
    """Raise the cost of pixels that a source does not see above all others, and count the sources that see a pixel."""
    for u in range(len(cost)):
        count[u] += seen[u]
        cost[u] += (_1 - seen[u]) * _WORST


@jit
def _insert(cost: np.ndarray, lowest: np.ndarray) -> None:
    """Keep the lower of two costs in `lowest`, and the higher in `cost`."""
    for u in range(len(cost)):
        kept, new = lowest[u], cost[u]
        lowest[u], cost[u] = min(kept, new), max(kept, new)


@jit
def _average_lowest(lowest: np.ndarray, count: np.ndarray, out: np.ndarray) -> None:
    """Mean of the (count + 1) // 2 lowest costs [K, W], 1 where the count is 0."""
    for u in range(len(out)):
        out[u] = lowest[0, u] if count[u] > _0 else _1
    for k in range(1, len(lowest)):
        for u in range(len(out)):
            out[u] += lowest[k, u] if count[u] > np.float32(2 * k) else _0
    for u in range(len(out)):
        out[u] /= max(np.floor((count[u] + _1) * _HALF), _1)


@jit
def _semi_global(costs: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Costs aggregated along paths from the left, right, top and bottom, and added (Hirschmüller 2008, eq. 13).

    Shapes: costs [H, planes, W], grey reference view [H, W] -> [H, W, planes].
    """
    height, planes, width = costs.shape
    total = np.zeros((height, width, planes), np.float32)
    line = np.empty((width, planes), np.float32)
    vertical = np.empty((width, planes + 2), np.float32)
    # One more plane at either end, which is never chosen, spares the loops over planes an exception.
    before = np.full(planes + 2, _WORST, np.float32)
    path = np.full(planes + 2, _WORST, np.float32)
    vertical[:] = _WORST
    for y in range(height):
        _transpose(costs[y], line)
        for x in range(width):
            if y == 0:
                vertical[x, 1 : planes + 1] = line[x]
            else:
                _extend_path(line[x], vertical[x], _penalty(view[y, x], view[y - 1, x]), path)
                vertical[x] = path
            _add(vertical[x], total[y, x])
        for first, last, step in ((0, width, 1), (width - 1, -1, -1)):
            before[1 : planes + 1] = line[first]
            _add(before, total[y, first])
            for x in range(first + step, last, step):
                _extend_path(line[x], before, _penalty(view[y, x], view[y, x - step]), path)
                _add(path, total[y, x])
                before, path = path, before
    for y in range(height - 1, -1, -1):
        _transpose(costs[y], line)
        for x in range(width):
            if y == height - 1:
                vertical[x, 1 : planes + 1] = line[x]
            else:
                _extend_path(line[x], vertical[x], _penalty(view[y, x], view[y + 1, x]), path)
                vertical[x] = path
            _add(vertical[x], total[y, x])
    return total


@jit
def _extend_path(cost: np.ndarray, before: np.ndarray, penalty: np.float32, path: np.ndarray) -> None:
    """The path's costs [planes + 2] at a pixel from its costs [planes] and the path's costs at the pixel before."""
    planes = len(cost)
    lowest = before[1]
    for p in range(1, planes + 1):
        lowest = min(lowest, before[p])
    jump = lowest + penalty
    for p in range(planes):
        step = min(before[p + 1], min(before[p], before[p + 2]) + _P1)
        path[p + 1] = cost[p] + (min(step, jump) - lowest)


@jit
def _penalty(value: np.float32, before: np.float32) -> np.float32:
    """P2, which is lower at an edge of the image."""
    return max(_P2 / (_1 + _P2_GRADIENT * abs(value - before)), _LEAST_P2)


@jit
def _add(path: np.ndarray, total: np.ndarray) -> None:
    for p in range(len(total)):
        total[p] += path[p + 1]


@jit
def _transpose(values: np.ndarray, out: np.ndarray) -> None:
    """[M, N] -> [N, M], in blocks that stay in the cache."""
    rows, columns = values.shape
    for start in range(0, columns, 16):
        for row in range(rows):
            for column in range(start, min(start + 16, columns)):
                out[column, row] = values[row, column]


@jit
def _cheapest(costs: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest plane of each pixel [H, W], refined by a parabola through its neighbours, and its cost [H, W].

    Shapes: costs [H, planes, W], aggregated costs [H, W, planes].
    """
    height, planes, width = costs.shape
    refined, cost = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            values = total[y, x]
            best = 0
            for p in range(1, planes):
                if values[p] < values[best]:
                    best = p
            shift = _0
            if 0 < best < planes - 1:
                curvature = values[best - 1] - np.float32(2) * values[best] + values[best + 1]
                if curvature > np.float32(4e-6):
                    shift = min(max(_HALF * (values[best - 1] - values[best + 1]) / curvature, -_HALF), _HALF)
            refined[y, x] = np.float32(best) + shift
            cost[y, x] = costs[y, best, x]
    return refined, cost


@jit
def _confirmed(
    inverse: np.ndarray, others: np.ndarray, rotations: np.ndarray, shifts: np.ndarray, nearest: float
) -> np.ndarray:
    """`consistent_inverse` with `_pixel_motions`."""
    height, width = inverse.shape
    confirmed = np.zeros((height, width), np.float32)
    least = 0.2 / (MAX_DEPTH_RATIO * nearest)
    for y in range(height):
        for x in range(width):
            depth = 1 / max(inverse[y, x], least)
            agreeing = seeing = 0
            total = 1.0  # of the ratios of measured and expected inverse depth, with that of the view itself
            for n in range(len(others)):
                rotation, shift = rotations[n], shifts[n]
                z = (rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2]) * depth + shift[2]
                if z <= _FRONT * depth:
                    continue
                u = ((rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2]) * depth + shift[0]) / z
                v = ((rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2]) * depth + shift[1]) / z
                if not (-0.5 <= u < width - 0.5 and -0.5 <= v < height - 0.5):
                    continue
                # Depth of the nearest pixel, because depth must not be interpolated across edges.
                measured = others[n, int(v + 0.5), int(u + 0.5)]
                seeing += 1
                if abs(measured - 1 / z) < max(_TOLERANCE / z, _MIN_TOLERANCE / nearest):
                    agreeing += 1
                    total += measured * z
            if agreeing >= 2 and 2 * agreeing >= seeing:
                confirmed[y, x] = inverse[y, x] * (total / (1 + agreeing))
    return confirmed
