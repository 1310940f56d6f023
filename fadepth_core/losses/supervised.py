"""Supervised losses for data with measured depth or speed. They are not in the paper.

Robots need depth in metres, but monocular video alone does not determine the scale of depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.geometry import disparity_to_depth


def depth_loss(
    disparities: Sequence[Tensor],
    truth: Tensor,
    min_depth: float,
    max_depth: float,
    error: Literal["relative", "log"] = "relative",
) -> Tensor:
    """Metric log-depth loss: mean over the pixels with known truth, averaged over the scales.

    With δ = log D - log D_true, the error of a pixel is

    * "log": |δ|. If a pixel may have several depths, their median minimises this error.
    * "relative": |δ| if the prediction is too near. If it is too far: the relative error e^δ - 1, continued with
      constant slope from δ = 1. If the depth is ambiguous (leaves or sky, a car or the road behind it), this error
      prefers the nearer one. Predicting near objects too far is the worst error for a robot and the largest one in
      AbsRel.

    Measured with "relative" instead of "log" (SmallDepth on rendered streets, 1200 steps): AbsRel 0.457 instead of
    0.519, δ1 0.482 instead of 0.481, ratio of true to predicted medians 0.99 instead of 0.79.

    A common factor on all depths is an error for this loss. All images count the same, regardless of the number of
    their known pixels; images without known pixels do not count. Truth outside the network's depth range is clamped to
    it.

    Args:
        disparities: x_j in (0, 1) at one or more scales, each [B, 1, h, w]. They are interpolated to the truth's size.
        truth: depth in metres [B, H, W], 0 where unknown.
        min_depth, max_depth: the network's depth range in metres.
        error: the error of a pixel, see above.

    Returns:
        The loss, [].
    """
    known = truth > 0
    total = truth.new_zeros(())
    for disparity in disparities:
        difference = log_error(disparity, truth, min_depth, max_depth)
        cost = difference.abs() if error == "log" else _asymmetric(difference)
        total = total + mean_of_images(cost, known)
    return total / len(disparities)


def shape_loss(disparity: Tensor, truth: Tensor, min_depth: float, max_depth: float, scales: int = 4) -> Tensor:
    """Scale-invariant depth loss that emphasises edges: a common factor on the depths of an image is no error.

    With δ = log D - log D_true, the loss has two parts. The first is the mean of |δ - mean δ| (Eigen et al. 2014, with
    the absolute value). The second is the gradient-matching term of MegaDepth (Li and Snavely 2018): the mean of
    |∂δ/∂x| + |∂δ/∂y| between known neighbours, summed over several resolutions.

    Args:
        disparity: x in (0, 1) [B, 1, h, w]. It is interpolated to the truth's size.
        truth, min_depth, max_depth: as for `depth_loss`.
        scales: number of resolutions. Each takes every second row and column of the one before.

    Returns:
        The loss, [].
    """
    known = truth > 0
    difference = log_error(disparity, truth, min_depth, max_depth) * known
    mean = difference.sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
    total = mean_of_images((difference - mean[:, None, None]).abs(), known)
    for scale in range(scales):
        d, m = (x[:, :: 2**scale, :: 2**scale] for x in (difference, known))
        for axis in (1, 2):
            n = d.shape[axis] - 1
            if n < 1:
                continue
            both = m.narrow(axis, 0, n) & m.narrow(axis, 1, n)
            total = total + mean_of_images((d.narrow(axis, 1, n) - d.narrow(axis, 0, n)).abs(), both)
    return total


def resized(x: Tensor, truth: Tensor) -> Tensor:
    """A map [B, 1, h, w], interpolated to the size of `truth` [B, H, W]."""
    return F.interpolate(x.to(truth.dtype), size=truth.shape[-2:], mode="bilinear", align_corners=False)


def log_error(disparity: Tensor, truth: Tensor, min_depth: float, max_depth: float) -> Tensor:
    """log D - log D_true [B, H, W] at the truth's size, from x in (0, 1) [B, 1, h, w]."""
    # As in the published evaluation protocols, disparity is interpolated, not depth.
    x = resized(disparity, truth)
    depth = disparity_to_depth(x, min_depth, max_depth).squeeze(1)
    return depth.log() - truth.clamp(min_depth, max_depth).log()


def mean_of_images(cost: Tensor, known: Tensor) -> Tensor:
    """Mean over the known pixels of each image, then over the images; images without known pixels do not count."""
    count = known.sum((1, 2))
    means = (cost * known).sum((1, 2)) / count.clamp(min=1)
    return means.sum() / (count > 0).sum().clamp(min=1)


def _asymmetric(difference: Tensor) -> Tensor:
    """The error "relative" of `depth_loss`: |δ| for δ < 0, e^δ - 1 for δ from 0 to 1, linear from δ = 1."""
    far = difference.clamp(0, 1)
    return torch.where(difference < 0, -difference, far.expm1() + math.e * (difference - far))


def speed_loss(translations: Tensor, speed: Tensor, interval: Tensor) -> Tensor:
    """Mean of |length of the predicted translation - speed · interval| in metres. The direction does not matter.

    Samples with unknown speed do not count.

    Args:
        translations: [B, N, 3] in metres, of N motions that each span one interval.
        speed: [B] in metres per second, NaN where unknown.
        interval: [B] in seconds.

    Returns:
        The loss, [].
    """
    known = speed.isfinite()
    travelled = torch.where(known, speed * interval, 0.0)[:, None]
    error = (translations.norm(dim=-1) - travelled).abs().mean(dim=1)
    return (error * known).sum() / known.sum().clamp(min=1)
