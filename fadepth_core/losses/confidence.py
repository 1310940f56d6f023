"""Likelihood of a depth network's errors, with which its confidence head is trained. It is not in the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from fadepth_core.losses.supervised import log_error, mean_of_images, resized


def error_likelihood(
    log_uncertainty: Tensor, disparity: Tensor, truth: Tensor, min_depth: float, max_depth: float, scaled: bool = False
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the errors |δ| = |ln D - ln D_true| under an exponential distribution of mean u = e^s.

    A pixel costs |δ| / u + ln u (Kendall and Gal 2017, with the absolute error, up to a constant). For a pixel of
    which many errors are seen, the cost is least where u is their mean, whatever their distribution: u is the expected
    relative error (of the logarithm, which for small errors is the same).

    Args:
        log_uncertainty: s [B, 1, h, w], interpolated to the truth's size.
        disparity: x in (0, 1) [B, 1, h, w]. No gradient flows into it.
        truth: depth in metres [B, H, W], 0 where unknown.
        min_depth, max_depth: the network's depth range in metres.
        scaled: subtract the median of δ of each image, for networks without metric scale.

    Returns:
        the loss [], and the mean |δ| of the known pixels [].
    """
    known = truth > 0
    with torch.no_grad():
        difference = log_error(disparity, truth, min_depth, max_depth)
        if scaled:
            medians = torch.where(known, difference, torch.nan).flatten(1).nanmedian(dim=1).values
            difference = difference - medians.nan_to_num()[:, None, None]  # NaN: no known pixel
        error = difference.abs()
    s = resized(log_uncertainty, truth).squeeze(1)
    return mean_of_images(error * torch.exp(-s) + s, known), mean_of_images(error, known)
