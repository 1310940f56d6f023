"""Evaluation on video without ground-truth depth: photometric and temporal consistency with the neighbouring frames.

    clips -> three frames -> Predictor -> motion (known or fitted) -> remaining error, depth difference -> mean per clip

How to read the figures:

- The photometric figure ranks depth maps only if the camera moves enough relative to near objects. On a motorway most
  of the image is road, sky and a far horizon. Any smooth depth explains these about equally well, so all figures are
  close together.
- A fitted motion partly compensates for wrong depth. So wrong depth, above all a constant depth, has a smaller error than
  with the true motion. The scale of depth is not measured, except with poses and scaling "none".
- Moving objects, reflections and changes of light cannot be explained by depth, so even true depth does not reach 0.
- Temporal consistency is not accuracy: a constant depth is consistent except for the distance travelled. Read it
  together with the photometric figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fadepth_core.common.color import to_picture
from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import Sample, evenly_spread
from fadepth_core.evaluation.alignment import DepthPairs, fit_length, fit_motion
from fadepth_core.evaluation.protocols import SCALINGS, Predictor
from fadepth_core.geometry import reproject, sample
from fadepth_core.losses import Motions
from fadepth_core.losses.geometric import depth_difference


@dataclass(frozen=True)
class FrameResult:
    """Result of three frames; the middle one is compared with both others.

    Attributes:
        name: `Sample.name`.
        photometric: photometric error after warping, relative to that without warping (`DepthPairs.unexplained`).
        temporal: mean of δ_D = |D^c - D^s| / (D^c + D^s) between the middle frame's depth transformed to the other
            frames (c) and their own depth sampled there (s).
        steps: ln of the change of depth scale from the first to the middle frame and from the middle to the last, as
            the ratio of median depths after warping.
    """

    name: str
    photometric: float
    temporal: float
    steps: tuple[float, float]


@dataclass(frozen=True)
class VideoFigures:
    """Figures of one clip, or their mean over clips; lower is better.

    Attributes:
        photometric, temporal: means over the clip's `FrameResult`s.
        jitter: standard deviation of their `steps`.
    """

    photometric: float
    temporal: float
    jitter: float


@dataclass(frozen=True)
class VideoEvaluation:
    """Results of one predictor: those of all evaluated frames, by clip."""

    clips: dict[str, tuple[FrameResult, ...]]

    def of_clip(self, clip: str) -> VideoFigures:
        """The figures of one clip."""
        frames = self.clips[clip]
        return VideoFigures(
            float(np.mean([frame.photometric for frame in frames])),
            float(np.mean([frame.temporal for frame in frames])),
            float(np.std([frame.steps for frame in frames])),
        )

    @property
    def figures(self) -> VideoFigures:
        """The mean over the clips; all clips have the same weight."""
        rows = [list(asdict(self.of_clip(clip)).values()) for clip in self.clips]
        return VideoFigures(*np.mean(rows, axis=0).tolist())

    def to_dict(self) -> dict:
        """All results as numbers, strings, lists and dicts for JSON."""
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
        samples: samples of a `VideoDataset`; only one is in memory at a time.
        clips: the name of each sample's clip.
        scaling: see `measure`.

    Raises:
        DataError: there are no samples, or as `measure`.
    """
    results: dict[str, list[FrameResult]] = {}
    for clip, triplet in zip(clips, samples, strict=True):
        depths = torch.stack([_depth(predict, frame, triplet.intrinsics) for frame in triplet.frames])
        results.setdefault(clip, []).append(measure(triplet, depths, scaling))
    if not results:
        raise DataError("no frames to evaluate 'video' on")
    return VideoEvaluation({clip: tuple(frames) for clip, frames in results.items()})


def measure(triplet: Sample, depths: Tensor, scaling: str = "median") -> FrameResult:
    """Photometric and temporal consistency of the depths of three frames.

    Args:
        triplet: an unbatched sample of three frames.
        depths: depth of each frame [3, H, W].
        scaling: "median" for depth of unknown scale: the motion is fitted (`fit_motion`), or only its length if the
            sample has poses (`fit_length`). "none" uses the poses as they are, so that depth must be in metres.

    Raises:
        DataError: scaling "none" without poses, or no pixel is visible in the other frame.
        ValueError: unknown scaling.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"unknown scaling '{scaling}'; known scalings: {', '.join(SCALINGS)}")
    pairs = DepthPairs.of(triplet.frames, depths[1], triplet.intrinsics)
    if triplet.poses is None:
        if scaling == "none":
            raise DataError(f"{triplet.name}: no camera poses, which are needed to measure metric depth")
        motions = fit_motion(pairs)
    else:
        known = Motions.from_poses(triplet.poses[None])
        motions = torch.cat([known.to_previous, known.to_next])
        if scaling == "median":
            motions = fit_length(pairs, motions)
    view = reproject(pairs.depth, motions, pairs.images.intrinsics)
    sampled = sample(depths[[0, 2], None], view.pixels)
    differences, ratios = [], []
    for expected, predicted, valid in zip(view.depth, sampled, view.valid, strict=True):
        if not valid.any():
            raise DataError(f"{triplet.name}: no pixel is visible in the other frame, so its depth cannot be compared")
        differences.append(float(depth_difference(expected[valid], predicted[valid]).mean()))
        ratios.append(float((predicted[valid].median() / expected[valid].median()).log()))
    return FrameResult(
        str(triplet.name),
        float(pairs.unexplained(motions).mean()),
        float(np.mean(differences)),
        (-ratios[0], ratios[1]),
    )


def choose_evenly(clips: Sequence[str], count: int) -> list[int]:
    """Indices of up to `count` samples of each clip, spread evenly from its first to its last."""
    places: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        places.setdefault(clip, []).append(index)
    return [indices[pick] for indices in places.values() for pick in evenly_spread(len(indices), count)]


def _depth(predict: Predictor, frame: Tensor, intrinsics: Tensor) -> Tensor:
    """Predicted depth [H, W] at the frame's size."""
    inverse_depth = predict(to_picture(frame), intrinsics.double().numpy())
    size = frame.shape[:0:-1]
    return 1 / torch.from_numpy(cv2.resize(inverse_depth, size, interpolation=cv2.INTER_LINEAR))
