"""Metrics compared with values calculated by hand."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from fadepth_core.evaluation import DepthMetrics, depth_metrics, mean_metrics


def test_metrics_by_hand():
    """Errors of 1, 0, -1 and 6 m; ratios of 1.5, 1, 2 and 1.6."""
    metrics = depth_metrics(np.array([3.0, 4.0, 1.0, 16.0]), np.array([2.0, 4.0, 2.0, 10.0]))
    assert metrics.abs_rel == pytest.approx((1 / 2 + 0 + 1 / 2 + 6 / 10) / 4)
    assert metrics.sq_rel == pytest.approx((1 / 2 + 0 + 1 / 2 + 36 / 10) / 4)
    assert metrics.rmse == pytest.approx(math.sqrt((1 + 0 + 1 + 36) / 4))
    logs = math.log(1.5) ** 2 + 0 + math.log(2) ** 2 + math.log(1.6) ** 2
    assert metrics.rmse_log == pytest.approx(math.sqrt(logs / 4))
    assert (metrics.d1, metrics.d2, metrics.d3) == (1 / 4, 2 / 4, 3 / 4)  # limits 1.25, 1.5625, 1.953125


def test_a_ratio_equal_to_the_limit_is_not_below_it():
    assert depth_metrics(np.array([5.0, 4.0]), np.array([4.0, 5.0])).d1 == 0


def test_means_over_many_float32_pixels_are_exact():
    """A million float32 pixels, each 10 % too far, have a mean error of 10 %."""
    truth = np.full(1_000_000, 10.0, np.float32)
    assert depth_metrics(truth * np.float32(1.1), truth).abs_rel == pytest.approx(0.1, rel=1e-6)


def test_the_mean_is_over_images():
    mean = mean_metrics([DepthMetrics(0.1, 1, 2, 0.2, 0.9, 0.95, 1), DepthMetrics(0.3, 3, 6, 0.4, 0.7, 0.85, 1)])
    assert astuple(mean) == pytest.approx((0.2, 2, 4, 0.3, 0.8, 0.9, 1))
    assert type(mean.abs_rel) is float


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([], [], "arrays of depths"),
        ([1.0, 2.0], [1.0], "equally long"),
        ([[1.0]], [[1.0]], "arrays of depths"),
        ([1.0, np.inf], [1.0, 2.0], "some predicted depths"),
        ([1.0, 2.0], [1.0, 0.0], "some true depths"),
    ],
)
def test_invalid_depths_are_refused(prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        depth_metrics(np.array(prediction), np.array(truth))


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no metrics"):
        mean_metrics([])
