"""Removes uncertain pixels from depth and points (parameter `min_confidence`), and counts them for /diagnostics."""

from __future__ import annotations

import numpy as np

from fadepth_core.runtime.engine import DepthResult

#: Weight of one frame in the exponential smoothing of the share.
_SMOOTHING = 0.1


class ConfidenceFilter:
    """The filter of one camera.

    Attributes:
        share: share of the pixels with confidence below the limit, smoothed over about ten frames; None as long as no frame
            has been filtered.
    """

    def __init__(self) -> None:
        self.share: float | None = None

    def apply(self, result: DepthResult, least: float) -> DepthResult:
        """The result with depth and points NaN where confidence is below `least`. 0 removes nothing."""
        if not least or result.confidence is None:
            self.share = None
            return result
        share = np.count_nonzero(result.confidence < np.float32(least)) / result.confidence.size
        self.share = share if self.share is None else self.share + _SMOOTHING * (share - self.share)
        return result.confident(least)
