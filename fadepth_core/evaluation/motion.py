"""Errors of a pose network's camera motion against known poses. `training.fit` reports them for a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fadepth_core.common.color import normalise
from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import SampleDataset, collate, evenly_spread
from fadepth_core.geometry import area_average, rotation_error, translation_direction_error
from fadepth_core.losses import Motions, predict_motions

#: Pairs of frames with a shorter translation are left out, metres: its direction is mostly noise.
_MIN_TRANSLATION = 0.02


@dataclass(frozen=True)
class MotionErrors:
    """Medians over pairs of consecutive frames.

    Attributes:
        rotation: angle between predicted and true rotation, degrees.
        direction: angle between predicted and true translation, degrees.
        scale: true length / predicted length of the translation; 1 for metric motion.
        rotation_of_none: rotation error of the baseline "no rotation", degrees.
        direction_of_forward: direction error of the baseline "straight ahead", degrees.
    """

    rotation: float
    direction: float
    scale: float
    rotation_of_none: float
    direction_of_forward: float


@torch.no_grad()
def motion_errors(pose_net: nn.Module, dataset: SampleDataset, size: tuple[int, int], count: int) -> MotionErrors:
    """Measure a pose network on up to `count` samples, spread evenly over a data set with poses.

    Args:
        pose_net: in evaluation mode.
        size: height and width of the network's input, pixels; the samples may be larger.

    Raises:
        DataError: a sample has no poses, or the camera never moves.
    """
    device = next(pose_net.parameters()).device
    rows = []
    for index in evenly_spread(len(dataset), count):
        sample = collate([dataset[index]])
        if sample.poses is None:
            raise DataError(f"{sample.name[0]}: no camera poses, which are needed to measure predicted motion")
        frames = area_average(sample.frames[0], size)
        learned = predict_motions(pose_net, normalise(frames[None].to(device)))
        true = Motions.from_poses(sample.poses)
        forward = torch.eye(4)[None]
        for estimate, truth, ahead in (
            (learned.to_previous.cpu(), true.to_previous, 1.0),
            (learned.to_next.cpu(), true.to_next, -1.0),
        ):
            length = truth[:, :3, 3].norm()
            if length < _MIN_TRANSLATION:
                continue
            forward[:, 2, 3] = ahead  # points come towards a camera that moves forward
            rows.append(
                [
                    float(rotation_error(estimate, truth)),
                    float(translation_direction_error(estimate, truth)),
                    float(length / estimate[:, :3, 3].norm().clamp(min=1e-9)),
                    float(rotation_error(torch.eye(4)[None], truth)),
                    float(translation_direction_error(forward, truth)),
                ]
            )
    if not rows:
        raise DataError(
            f"the camera moves less than {_MIN_TRANSLATION} m between frames, so its direction cannot be measured"
        )
    return MotionErrors(*np.nanmedian(rows, axis=0).tolist())
