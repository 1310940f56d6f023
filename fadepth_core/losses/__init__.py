"""Losses: the base loss of one pyramid level (eq. 21), the pyramid (eq. 20), APX (eq. 28) and supervised losses."""

from fadepth_core.losses.apx import ApxLoss, ApxOptions, ApxWeights, Signals
from fadepth_core.losses.base import BaseLoss, BaseWeights, Motions, Views, base_loss
from fadepth_core.losses.confidence import error_likelihood
from fadepth_core.losses.pyramid import (
    PAPER_LEVELS,
    LevelReport,
    LevelWeights,
    PyramidLoss,
    PyramidReport,
    predict_motions,
)
from fadepth_core.losses.supervised import depth_loss, speed_loss

__all__ = [
    "PAPER_LEVELS",
    "ApxLoss",
    "ApxOptions",
    "ApxWeights",
    "BaseLoss",
    "BaseWeights",
    "LevelReport",
    "LevelWeights",
    "Motions",
    "PyramidLoss",
    "PyramidReport",
    "Signals",
    "Views",
    "base_loss",
    "depth_loss",
    "error_likelihood",
    "predict_motions",
    "speed_loss",
]
