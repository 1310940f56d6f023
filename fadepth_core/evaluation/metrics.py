"""The seven metrics of monocular depth (Eigen et al. 2014) that the paper's tables have. Used by `protocols.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np


@dataclass(frozen=True)
class DepthMetrics:
    """Errors (lower is better) and accuracies (higher is better) of predicted depth d against ground truth d*.

    Attributes:
        abs_rel: mean of |d - d*| / d*.
        sq_rel: mean of (d - d*)² / d*, metres.
        rmse: root of the mean of (d - d*)², metres.
        rmse_log: root of the mean of (ln d - ln d*)².
        d1, d2, d3: share of pixels with max(d / d*, d* / d) below 1.25, 1.25², 1.25³.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    d1: float
    d2: float
    d3: float


def depth_metrics(prediction: np.ndarray, truth: np.ndarray) -> DepthMetrics:
    """Metrics of predicted against ground-truth depth, both [N], metres.

    Raises:
        ValueError: the shapes differ or are not [N], there is no pixel, or a depth is not positive and finite.
    """
    if prediction.shape != truth.shape or truth.ndim != 1 or truth.size == 0:
        raise ValueError(f"metrics need two equally long arrays of depths, got {prediction.shape} and {truth.shape}")
    d, d_true = prediction.astype(np.float64), truth.astype(np.float64)
    for values, name in ((d, "predicted"), (d_true, "true")):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"metrics need positive, finite depths; some {name} depths are not")
    difference = d - d_true
    ratio = np.maximum(d / d_true, d_true / d)
    return DepthMetrics(
        abs_rel=float(np.mean(np.abs(difference) / d_true)),
        sq_rel=float(np.mean(difference**2 / d_true)),
        rmse=float(np.sqrt(np.mean(difference**2))),
        rmse_log=float(np.sqrt(np.mean(np.log(d / d_true) ** 2))),
        d1=float(np.mean(ratio < 1.25)),
        d2=float(np.mean(ratio < 1.25**2)),
        d3=float(np.mean(ratio < 1.25**3)),
    )


def mean_metrics(metrics: Sequence[DepthMetrics]) -> DepthMetrics:
    """Mean over images; every image has the same weight, whatever its number of valid pixels.

    Raises:
        ValueError: there is nothing to average.
    """
    if not metrics:
        raise ValueError("no metrics to average")
    return DepthMetrics(*np.mean([astuple(m) for m in metrics], axis=0).tolist())
