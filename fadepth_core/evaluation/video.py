"""Video without true depth: does a depth map explain the frames beside it, and does it agree with theirs?

    clips -> three frames -> Predictor -> motion: known, or fitted -> unexplained error, disagreement -> mean per clip

What the figures say, and what not:

- The photometric figure ranks depth only where the camera moves enough past things. On a motorway most of the picture is
  road, sky and a far horizon, which any smooth depth explains about as well; figures are then close to each other.
- A fitted motion is bent to help the depth it is fitted to, so wrong depth looks better than with the true motion; a
  constant depth most of all. Scale is free, and metres are not measured (with poses and scaling "none" they are).
- Things that move, reflections and changes of light are explained by no depth; 0 is out of reach, for true depth as well.
- Agreement says nothing about being right: a constant depth agrees with itself but for the way driven. Read it beside the
  photometric figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import Sample, evenly_spread
from fadepth_core.evaluation.alignment import DepthPairs, fit_length, fit_motion
from fadepth_core.evaluation.protocols import SCALINGS, Predictor
from fadepth_core.geometry import reproject, sample
from fadepth_core.losses import Motions
from fadepth_core.losses.geometric import depth_difference


@dataclass(frozen=True)
class FrameResult:
    """What an evaluation keeps of three frames; the middle one is compared with both others.

    Attributes:
        name: `Sample.name`.
        photometric: share of the unmoved photometric error that depth and motion leave (`DepthPairs.unexplained`).
        temporal: mean of δ_D = |D^c - D^s| / (D^c + D^s) between the middle frame's depth, moved, and the others', sampled.
        steps: ln of the ratio by which the scale of depth changes from the first frame to the middle one and on to the
            last: medians of depth, after warping.
    """

    name: str
    photometric: float
    temporal: float
    steps: tuple[float, float]


@dataclass(frozen=True)
class VideoFigures:
    """Of one clip, or the mean over clips; lower is better.

    Attributes:
        photometric, temporal: means of the `FrameResult`s'.
        jitter: standard deviation of their `steps`.
    """

    photometric: float
    temporal: float
    jitter: float


@dataclass(frozen=True)
class VideoEvaluation:
    """One predictor on some clips: the results of every clip's frames."""

    clips: dict[str, tuple[FrameResult, ...]]

    def of_clip(self, clip: str) -> VideoFigures:
        frames = self.clips[clip]
        return VideoFigures(
            float(np.mean([frame.photometric for frame in frames])),
            float(np.mean([frame.temporal for frame in frames])),
            float(np.std([frame.steps for frame in frames])),
        )

    @property
    def figures(self) -> VideoFigures:
        """The mean over the clips: each counts alike."""
        rows = [list(asdict(self.of_clip(clip)).values()) for clip in self.clips]
        return VideoFigures(*np.mean(rows, axis=0).tolist())

    def to_dict(self) -> dict:
        """Everything as plain numbers, strings, lists and dicts, ready for JSON."""
        clips = {
            clip: {"figures": asdict(self.of_clip(clip)), "frames": [asdict(frame) for frame in frames]}
            for clip, frames in self.clips.items()
        }
        return {"figures": asdict(self.figures), "clips": clips}


def evaluate_video(
    predict: Predictor, samples: Iterable[Sample], clips: Sequence[str], scaling: str = "median"
) -> VideoEvaluation:
    """Measure `predict` on the frames of clips.

    Args:
        samples: of a `VideoDataset`; one is in memory at a time.
        clips: the clip that each is of.
        scaling: see `measure`.

    Raises:
        DataError: there are no samples, or as `measure`.
    """
    results: dict[str, list[FrameResult]] = {}
    for clip, three in zip(clips, samples, strict=True):
        depths = torch.stack([_depth(predict, frame, three.intrinsics) for frame in three.frames])
        results.setdefault(clip, []).append(measure(three, depths, scaling))
    if not results:
        raise DataError("no frames to evaluate 'video' on")
    return VideoEvaluation({clip: tuple(frames) for clip, frames in results.items()})


def measure(three: Sample, depths: Tensor, scaling: str = "median") -> FrameResult:
    """How well depths [3, H, W] of the three frames explain the middle one and agree with each other.

    Args:
        scaling: "median" leaves the scale of depth open; the motion is fitted (`fit_motion`), or its length where the
            sample has poses (`fit_length`). "none" takes the poses' metres as they are.

    Raises:
        DataError: scaling "none" without poses, or no pixel stays in the picture.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"unknown scaling '{scaling}'; known scalings: {', '.join(SCALINGS)}")
    pairs = DepthPairs.of(three.frames, depths[1], three.intrinsics)
    if three.poses is None:
        if scaling == "none":
            raise DataError(f"{three.name}: no camera poses, so metres cannot be measured on it")
        motions = fit_motion(pairs)
    else:
        known = Motions.from_poses(three.poses[None])
        motions = torch.cat([known.to_previous, known.to_next])
        if scaling == "median":
            motions = fit_length(pairs, motions)
    view = reproject(pairs.depth, motions, pairs.images.intrinsics)
    sampled = sample(depths[[0, 2], None], view.pixels)
    differences, ratios = [], []
    for moved, seen, valid in zip(view.depth, sampled, view.valid, strict=True):
        if not valid.any():
            raise DataError(f"{three.name}: the whole picture leaves the view, so its depth cannot be compared")
        differences.append(float(depth_difference(moved[valid], seen[valid]).mean()))
        ratios.append(float((seen[valid].median() / moved[valid].median()).log()))
    return FrameResult(
        three.name, float(pairs.unexplained(motions).mean()), float(np.mean(differences)), (-ratios[0], ratios[1])
    )


def choose_evenly(clips: Sequence[str], count: int) -> list[int]:
    """Up to `count` indices of each clip, spread evenly from its first sample to its last."""
    places: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        places.setdefault(clip, []).append(index)
    return [indices[pick] for indices in places.values() for pick in evenly_spread(len(indices), count)]


def rgb(frame: Tensor) -> np.ndarray:
    """A sample's frame [3, H, W] in [0, 1] as the picture it came from, uint8 [H, W, 3]."""
    return (frame.permute(1, 2, 0) * 255).round().byte().numpy()


def _depth(predict: Predictor, frame: Tensor, intrinsics: Tensor) -> Tensor:
    """[H, W] at the frame's size."""
    inverse_depth = predict(rgb(frame), intrinsics.double().numpy())
    size = frame.shape[:0:-1]
    return 1 / torch.from_numpy(cv2.resize(inverse_depth, size, interpolation=cv2.INTER_LINEAR))
