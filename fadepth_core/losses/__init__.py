"""What the networks learn from: the base loss of one view of a sample (eq. 21) and the pyramid over several (eq. 20)."""

from fadepth_core.losses.apx import ApxLoss, ApxReading, ApxWeights, Signals
from fadepth_core.losses.base import BaseLoss, BaseWeights, Motions, Views, base_loss
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
    "ApxReading",
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
    "predict_motions",
    "speed_loss",
]
