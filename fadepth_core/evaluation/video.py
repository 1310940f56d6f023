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

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fadepth_core.common.color import to_picture
from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import Sample, evenly_spread
from fadepth_core.data.video import Clip, VideoDataset
from fadepth_core.evaluation.alignment import DepthPairs, fit_length, fit_motion
from fadepth_core.evaluation.metrics import depth_metrics
from fadepth_core.evaluation.protocols import SCALINGS, Predictor
from fadepth_core.geometry import reproject, sample
from fadepth_core.losses import Motions
from fadepth_core.losses.geometric import depth_difference
from fadepth_core.runtime.temporal import TemporalFilter


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
        abs_rel: mean relative error of the middle frame's depth; NaN if its true depth is not known.
    """

    name: str
    photometric: float
    temporal: float
    steps: tuple[float, float]
    abs_rel: float = math.nan


@dataclass(frozen=True)
class VideoFigures:
    """Figures of one clip, or their mean over clips; lower is better.

    Attributes:
        photometric, temporal: means over the clip's `FrameResult`s.
        jitter: standard deviation of their `steps`.
        abs_rel: mean over those with true depth; NaN if there are none.
    """

    photometric: float
    temporal: float
    jitter: float
    abs_rel: float


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
            _mean_of_known([frame.abs_rel for frame in frames]),
        )

    @property
    def figures(self) -> VideoFigures:
        """The mean over the clips; all clips have the same weight."""
        rows = [asdict(self.of_clip(clip)).values() for clip in self.clips]
        return VideoFigures(*(_mean_of_known(column) for column in zip(*rows, strict=True)))

    def to_dict(self) -> dict:
        """All results as numbers, strings, lists and dicts for JSON; null where unknown."""
        clips = {
            clip: {"figures": _values(self.of_clip(clip)), "frames": [_values(frame) for frame in frames]}
            for clip, frames in self.clips.items()
        }
        return {"figures": _values(self.figures), "clips": clips}


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


def evaluate_steady_video(
    predict: Predictor, mode: str, dataset: VideoDataset, chosen: Sequence[int], scaling: str = "median"
) -> VideoEvaluation:
    """Measure `predict` with the temporal filter of the node (`runtime.temporal`), which gets every frame of the clips.

    Args:
        mode: "scale" or "full".
        chosen: indices of the measured samples of the data set, ascending.
        scaling: see `measure`.

    Raises: as `evaluate_video`.
    """
    results: dict[str, list[FrameResult]] = {}
    places: dict[Clip, list[int]] = {}
    for index in chosen:
        places.setdefault(dataset.place(index)[0], []).append(index)
    for clip, indices in places.items():
        numbers = {index: clip.numbers(dataset.place(index)[1]) for index in indices}
        needed = {number for three in numbers.values() for number in three}
        steady, kept = TemporalFilter(mode), {}
        for number in tqdm(range(max(needed) + 1), f"{clip.name}, temporal {mode}", unit="frame"):
            image = np.ascontiguousarray(clip.source.frame(number))
            depth = _full_size(predict(image, clip.intrinsics), image.shape[:2])
            factor = steady.correction(image, depth, clip.intrinsics, float(clip.times[number]))
            if number in needed:
                kept[number] = torch.from_numpy(depth * factor)
        results[clip.name] = [
            measure(dataset[index], torch.stack([kept[number] for number in numbers[index]]), scaling)
            for index in indices
        ]
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
        _abs_rel(depths[1].numpy(), triplet.depth, scaling),
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
    return torch.from_numpy(_full_size(inverse_depth, (frame.shape[1], frame.shape[2])))


def _full_size(inverse_depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth at `size` (height, width) from inverse depth [h, w], in which planes are linear."""
    return 1 / cv2.resize(inverse_depth, size[::-1], interpolation=cv2.INTER_LINEAR)


def _abs_rel(depth: np.ndarray, truth: Tensor | None, scaling: str) -> float:
    """Mean relative error of depth [H, W] against true depth [h, w], 0 where unknown; NaN if it is nowhere known."""
    if truth is None or not (truth > 0).any():
        return math.nan
    known = truth.numpy() > 0
    predicted, true = _full_size(1 / depth, known.shape)[known], truth.numpy()[known]
    if scaling == "median":
        predicted = predicted * (np.median(true) / np.median(predicted))
    return depth_metrics(predicted, true).abs_rel


def _mean_of_known(values: Iterable[float]) -> float:
    """The mean of the numbers that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _values(result: FrameResult | VideoFigures) -> dict:
    """The attributes for JSON, which has no NaN."""
    values = asdict(result)
    return {name: None if value != value else value for name, value in values.items()}
