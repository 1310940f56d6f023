"""Conversion between a depth network's output, the disparity x in (0, 1), and depth in metres (docs/method.md, section
1.6).
"""

from __future__ import annotations

from torch import Tensor

#: Default depth range of the networks, metres. The node limits the depths it publishes separately.
MIN_DEPTH = 0.1
MAX_DEPTH = 100.0


def disparity_to_depth(x: Tensor, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH) -> Tensor:
    """Depth in metres from disparity x in (0, 1) of any shape: 1 / (a·x + b), a = 1/d_min - 1/d_max, b = 1/d_max."""
    return 1.0 / ((1.0 / min_depth - 1.0 / max_depth) * x + 1.0 / max_depth)


def depth_to_disparity(
    depth: Tensor | float, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH
) -> Tensor | float:
    """Disparity x in (0, 1) from depth in metres of any shape: the inverse of `disparity_to_depth`."""
    return (1 / depth - 1 / max_depth) / (1 / min_depth - 1 / max_depth)
