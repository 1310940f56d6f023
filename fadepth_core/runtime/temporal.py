"""Removes jitter of depth between consecutive frames of one camera (the node's parameter `temporal`).

    frame, depth -> optical flow to the frame before -> camera motion -> depth that is expected from the frame before
                 -> log ratio of depth to that -> correction of this frame's depth

A network estimates every frame alone, so its depth changes from frame to frame by a few percent where nothing has moved.
What the camera's own motion changes must stay. So depth is compared with the depth of the frame before after it was moved
with the camera: r = log(depth / expected depth).

- "scale": one factor for the whole frame. The sum s of the medians of r is smoothed by a second-order filter with fading
  memory (Morrison, "Tracking Filter Engineering", 2013); the correction is the smoothed minus the present value. A steady
  rate of change is followed without lag.
- "full": also a factor for each cell of a coarse grid, moved along with the flow: a leaky sum of what r of the cell differs
  from the median. It is at most 5 %, and 0 where the picture or depth disagrees with the frame before (uncovered
  background), so moving objects are hardly delayed. Depth edges are always those of the present frame, because only a
  smooth factor is carried over.

No frame is delayed, and no error accumulates: both corrections fade within seconds. Does not import torch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from fadepth_core.runtime.engine import DepthResult

MODES = ("off", "scale", "full")

#: Changes faster than this are removed, seconds. Longer ones removed little more jitter in a street and two rooms, and they keep
#: an error of scale longer after the view has changed.
_TIME_CONSTANT = 0.7
#: Longest time between two frames that are compared, seconds.
_MAX_INTERVAL = 1.0
#: Approximate number of cells of the grid, on which all but the final product is computed. Four times as many took three times
#: as long and removed no more.
_CELLS = 3_300
#: Smallest side of the grid, cells: optical flow needs a few patches of 8 pixels.
_MIN_SIDE = 24
#: A cell shows the same surface as the one that the flow leads to if brightness differs by at most this share of the picture's
#: standard deviation, or by the noise of a dark picture (8 bits).
_SAME, _NOISE = 0.2, 4.0
#: If a smaller share of the cells does, the frames do not show the same scene. 99 % of the consecutive frames of four clips have
#: 0.34 or more, and random pairs of frames 0.15 to 0.29 in the median (0.7 on a motorway, where all frames are alike).
_MIN_SHARE = 0.3
#: Number of cells from which motion and scale are estimated.
_SAMPLES = 400
#: Change of log scale that is not jitter. The largest one in four clips was 0.34.
_MAX_STEP = 0.5
#: Largest correction of a cell relative to the frame's, in log depth.
_MAX_OWN = 0.05
#: Deviation of r from the median at which a cell has no correction of its own.
_TOLERANCE = 0.3
#: Brightness difference at which a cell has no correction of its own (8 bits).
_PICTURE_TOLERANCE = 20.0
#: Side of the box by which the cells' corrections are smoothed before they are applied, cells.
_SMOOTHING = 5
#: Changes of K up to this share of its values are focus breathing, not another camera.
_SAME_CAMERA = 0.02


class _View(NamedTuple):
    """One frame on the grid.

    Attributes:
        grey: uint8 [h, w].
        inverse_depth: float32 [h, w], in 1/metres before the factor `scale`; 0 where unknown.
        intrinsics: K [3, 3] of the depth image.
        size: (height, width) of the depth image.
        time: seconds.
    """

    grey: np.ndarray
    inverse_depth: np.ndarray
    intrinsics: np.ndarray
    size: tuple[int, int]
    time: float

    def follows(self, other: _View) -> bool:
        """Whether this can be the next frame of the same camera."""
        return (
            self.size == other.size
            and 0 < self.time - other.time <= _MAX_INTERVAL
            and np.allclose(self.intrinsics, other.intrinsics, rtol=_SAME_CAMERA, atol=1.0)
        )


class _Comparison(NamedTuple):
    """A frame compared with the one before, on the grid.

    Attributes:
        step: median of `ratio` over the cells that move with the camera.
        ratio: log(depth / expected depth), float32 [h, w].
        difference: brightness difference, float32 [h, w]; infinite where the frame before has no depth to compare with.
        source: the place in the frame before that shows each cell: u and v, float32 [h, w], in cells.
    """

    step: float
    ratio: np.ndarray
    difference: np.ndarray
    source: tuple[np.ndarray, np.ndarray]


class TemporalFilter:
    """Corrects the depth of the frames of one camera, in their order.

    It starts again, with uncorrected depth, after a scene cut, a gap of more than a second, a stamp that is not later than
    the last one, and with another size or camera.

    Args:
        mode: one of `MODES`.

    Raises:
        ValueError: unknown mode.
    """

    def __init__(self, mode: str = "off"):
        self.mode = "off"
        self._conditions: tuple = ()
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._flow.setFinestScale(0)  # the grid is small
        self._last: _View | None = None
        self._start_again()
        self.configure(mode)

    def configure(self, mode: str, *conditions: object) -> None:
        """Set the mode. The filter starts again when it changes, or one of the other conditions of depth, e.g. the engine.

        Raises:
            ValueError: unknown mode.
        """
        if mode not in MODES:
            raise ValueError(f"unknown temporal filter '{mode}'; known: {', '.join(MODES)}")
        if (mode, conditions) != (self.mode, self._conditions):
            self.mode, self._conditions, self._last = mode, conditions, None
            self._start_again()

    def _start_again(self) -> None:
        self._scale = 0.0  # correction of log depth of the whole frame
        self._rate = 0.0  # at which the smoothed log scale changes, per second
        self._own: np.ndarray | None = None  # correction of each cell relative to it, float32 [h, w]; None: 0

    def apply(self, result: DepthResult, image: np.ndarray, time: float, scale: float = 1.0) -> DepthResult:
        """The result with corrected depth and points, in new arrays.

        Args:
            result: computed without limits, because depth that is cut off cannot be compared.
            image: [H, W, 3] uint8 RGB of any size, of which depth was computed (`Framing.cropped`).
            time: of the frame, seconds.
            scale: factor that depth was multiplied with (`FrameRequest.scale`); changes of it are no jitter.
        """
        if self.mode == "off":
            return result
        factor = self.correction(image, result.depth, result.intrinsics, time, scale)
        points = None if result.points is None else result.points * factor[..., None]
        return replace(result, depth=result.depth * factor, points=points)

    def correction(
        self, image: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray | None, time: float, scale: float = 1.0
    ) -> np.ndarray:
        """The factor on the depth of the next frame, float32: [], or [h, w] in the mode "full".

        Args:
            image, time, scale: as for `apply`.
            depth: [h, w] float32, metres; not finite where unknown.
            intrinsics: K [3, 3] of `depth`, pixels; None if unknown.
        """
        if self.mode == "off":
            return np.ones((), np.float32)
        view, last = _view(image, depth, intrinsics, time, scale), self._last
        self._last = view
        comparison = None if last is None or not view.follows(last) else _compare(view, last, self._flow)
        if last is None or comparison is None:
            self._start_again()
        else:
            interval = view.time - last.time
            kept = math.exp(-interval / _TIME_CONSTANT)
            innovation = comparison.step - self._scale - interval * self._rate
            self._scale = -(kept**2) * innovation
            self._rate += (1 - kept) ** 2 / interval * innovation
            if self.mode == "full":
                self._own = self._next_own(comparison, kept)
        log_factor = np.asarray(self._scale, np.float32)
        if self.mode == "full":
            own = np.zeros_like(view.inverse_depth) if self._own is None else self._own
            smooth = cv2.blur(own, (_SMOOTHING, _SMOOTHING))
            log_factor = log_factor + cv2.resize(smooth, view.size[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(np.exp(log_factor))  # numpy makes a scalar of []

    def _next_own(self, comparison: _Comparison, kept: float) -> np.ndarray:
        """The correction of each cell relative to the frame's, from that of the place which the flow leads to."""
        own = comparison.ratio - np.float32(comparison.step)
        weight = _falling(np.abs(own), _TOLERANCE) * _falling(comparison.difference, _PICTURE_TOLERANCE)
        before = np.float32(0) if self._own is None else _at(self._own, comparison.source)
        return weight * np.clip(np.float32(kept) * (before - own), -_MAX_OWN, _MAX_OWN)


def _view(image: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray | None, time: float, scale: float) -> _View:
    height, width = depth.shape
    factor = max(1.0, min(math.sqrt(height * width / _CELLS), min(height, width) / _MIN_SIDE))
    size = (round(width / factor), round(height / factor))
    grey = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    step = max(1, int(factor / 2))  # at the camera's size, every cell has many more pixels than are needed
    some = depth[step // 2 :: step, step // 2 :: step]
    inverse = np.zeros(some.shape, np.float32)
    np.divide(np.float32(scale), some, out=inverse, where=np.isfinite(some) & (some > 0))
    if intrinsics is None:
        # Those of a usual lens: depth after a forward motion does not depend on the focal length.
        intrinsics = np.array([[width, 0, (width - 1) / 2], [0, width, (height - 1) / 2], [0, 0, 1]], np.float64)
    return _View(grey, cv2.resize(inverse, size, interpolation=cv2.INTER_AREA), intrinsics, (height, width), time)


def _compare(view: _View, last: _View, finder: cv2.DISOpticalFlow) -> _Comparison | None:
    """Compare a frame with the one before; None if they do not show the same scene."""
    h, w = view.grey.shape
    flow = finder.calc(view.grey, last.grey, None)  # type: ignore[call-overload]  # None: no array to reuse
    v, u = np.mgrid[0:h, 0:w].astype(np.float32)
    source = u + flow[..., 0], v + flow[..., 1]
    inside = (source[0] >= 0) & (source[0] <= w - 1) & (source[1] >= 0) & (source[1] <= h - 1)
    before = _at(last.inverse_depth, source)
    usable = inside & (before > 0) & (view.inverse_depth > 0)
    if not usable.any():
        return None
    difference = _at(last.grey, source).astype(np.float32) - view.grey
    difference = np.abs(difference - np.median(difference[usable]))  # without a change of exposure
    difference[~usable] = np.inf
    same = np.flatnonzero(difference < max(_NOISE, _SAME * float(view.grey.std())))
    if len(same) < max(6, _MIN_SHARE * h * w):
        return None
    # Slopes of the viewing rays in the frame before, and how far they move to the present one.
    scale_x, scale_y = view.size[1] / w, view.size[0] / h
    fx, fy, cx, cy = (float(last.intrinsics[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    x = (scale_x * (source[0] + 0.5) - 0.5 - cx) / fx
    y = (scale_y * (source[1] + 0.5) - 0.5 - cy) / fy
    inverse = before / np.median(before.flat[same])  # translations are then in units of the median depth
    chosen = same[:: max(1, len(same) // _SAMPLES)]
    maps = (x, y, (-scale_x / fx) * flow[..., 0], (-scale_y / fy) * flow[..., 1], inverse)
    rays = np.stack([values.flat[chosen] for values in maps]).astype(np.float64)
    motion, static = _camera_motion(rays, scale_x / fx)
    # Z' = Z + t_z + (ω × X)_z, relative to Z. The bound excludes points that the motion moves behind the camera.
    growth = np.maximum(1 + motion[3] * y - motion[4] * x + motion[2] * inverse, 0.2)
    ratio = np.log(np.where(usable, before, 1) / np.where(usable, view.inverse_depth * growth, 1))
    step = float(np.median(ratio.flat[chosen[static]]))
    return None if abs(step) > _MAX_STEP else _Comparison(step, ratio, difference, source)


def _camera_motion(rays: np.ndarray, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """The camera's motion that explains the image motion of points with known depth, and the points that it explains.

    A small rigid motion X' = X + ω × X + t moves the slopes (x, y) of a point at depth Z by

        dx = (t_x - x t_z) / Z - x y ω_x + (1 + x²) ω_y - y ω_z
        dy = (t_y - y t_z) / Z - (1 + y²) ω_x + x y ω_y + x ω_z

    (Longuet-Higgins and Prazdny, 1980). It is found by least squares with Cauchy weights.

    Args:
        rays: x, y, dx, dy and 1/Z of N points, [5, N].
        pixel: one cell of the grid as a slope.

    Returns:
        (t, ω) float32 [6], bool [N].
    """
    x, y, dx, dy, inverse = rays
    zero = np.zeros_like(x)
    matrix = np.concatenate(
        [
            np.stack([inverse, zero, -x * inverse, -x * y, 1 + x * x, -y], axis=1),
            np.stack([zero, inverse, -y * inverse, -(1 + y * y), x * y, x], axis=1),
        ]
    )
    measured = np.concatenate([dx, dy])
    ridge = 1e-9 * len(x) * np.eye(6)  # for points that do not determine all of it
    weights = np.ones(len(x))
    for _ in range(3):
        weighted = matrix * np.tile(weights, 2)[:, None]
        motion = np.linalg.solve(weighted.T @ matrix + ridge, weighted.T @ measured)
        error = np.hypot(*(measured - matrix @ motion).reshape(2, -1))
        spread = 1.4826 * np.median(error) + 0.1 * pixel
        weights = 1 / (1 + (error / spread) ** 2)
    return motion.astype(np.float32), error < 3 * spread


def _at(values: np.ndarray, places: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """`values` [h, w] at the places (u, v), bilinear; outside the image those of its border."""
    return cv2.remap(values, *places, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _falling(values: np.ndarray, zero: float) -> np.ndarray:
    """1 for 0, linearly to 0 for `zero` and more."""
    return np.maximum(np.float32(1) - values / np.float32(zero), np.float32(0))
