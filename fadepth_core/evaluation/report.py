"""Reports of an evaluation: a table with the paper's figures, a sheet of images, a JSON file."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path

import cv2
import numpy as np

from fadepth_core.common.files import write_atomically
from fadepth_core.common.folders import mark_output
from fadepth_core.common.sample import LabelledImage, evenly_spread
from fadepth_core.evaluation.metrics import DepthMetrics, mean_metrics
from fadepth_core.evaluation.protocols import Comparison, Evaluation, Predictor, Protocol, compare
from fadepth_core.evaluation.published import PublishedRow
from fadepth_core.evaluation.tiles import (
    depth_picture,
    depth_range,
    error_picture,
    expected_error_picture,
    map_from_above,
    photo,
)
from fadepth_core.evaluation.video import VideoEvaluation, VideoFigures
from fadepth_core.runtime.pictures import write_png

log = logging.getLogger(__name__)

_COLUMNS = ("AbsRel", "SqRel", "RMSE", "RMSElog", "d<1.25", "d<1.25^2", "d<1.25^3")

#: Pixels: width of an image in a row of the sheet, height of the text above it.
TILE_WIDTH = 416
CAPTION_HEIGHT = 20


def print_table(
    evaluation: Evaluation,
    rows: Sequence[PublishedRow] = (),
    label: str = "ours",
    groups: Sequence[str] = (),
    baselines: Mapping[str, Evaluation] | None = None,
) -> None:
    """Print the mean metrics below the paper's rows, and the scale ratios.

    Args:
        evaluation: the results.
        rows: the paper's rows, from `published_rows`.
        label: name of the results' row.
        groups: the group of every image; if there are several, each group and their mean have rows.
        baselines: other evaluations on the same images, by name.
    """
    protocol = evaluation.protocol
    lines = [(f"{row.label} {row.size[0]}x{row.size[1]}", row.metrics) for row in rows]
    for name, measured in {**(baselines or {}), label: evaluation}.items():
        lines.append((name, measured.metrics))
        if len(set(groups)) > 1:
            parts = measured.by_group(groups)
            lines.append(("  mean of groups", mean_metrics([part.metrics for part in parts.values()])))
            if measured is evaluation:
                lines += [(f"  {group} ({len(part.images)})", part.metrics) for group, part in parts.items()]
    width = max(len(name) for name, _ in lines)
    truth = "" if protocol.max_truth is None else f" (truth: {protocol.max_truth:g} m)"
    print(
        f"{protocol.name}: {len(evaluation.images)} images, {protocol.crop or 'no'} crop, "
        f"up to {protocol.max_depth:g} m{truth}, scaling: {protocol.scaling}"
    )
    print(" " * width + "".join(f"{column:>10}" for column in _COLUMNS))
    for name, metrics in lines:
        print(f"{name:<{width}}" + _cells(metrics))
    print(f"truth / prediction: median {evaluation.ratio_median:.3f}, std / median {evaluation.ratio_spread:.3f}")


def _cells(metrics: DepthMetrics | VideoFigures, width: int = 10) -> str:
    return "".join(f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.3f}" for value in astuple(metrics))


def print_video_table(evaluations: Mapping[str, VideoEvaluation], scaling: str) -> None:
    """Print the figures of several predictors (by name) on the same clips: the mean over the clips, then each clip."""
    lines = []
    for name, evaluation in evaluations.items():
        lines.append((name, evaluation.figures))
        if len(evaluation.clips) > 1:
            lines += [
                (f"  {clip} ({len(frames)})", evaluation.of_clip(clip)) for clip, frames in evaluation.clips.items()
            ]
    width = max(len(name) for name, _ in lines)
    clips = next(iter(evaluations.values())).clips
    print(f"video: {len(clips)} clips, {sum(map(len, clips.values()))} frames, scaling: {scaling}")
    print(" " * width + "".join(f"{field.name:>12}" for field in fields(VideoFigures)))
    for name, figures in lines:
        print(f"{name:<{width}}" + _cells(figures, 12))


def write_json(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Write `Evaluation.to_dict` to a file.

    Raises:
        OSError: the file cannot be written.
    """
    write_values(evaluation.to_dict(), path)


def write_values(values: dict, path: str | os.PathLike) -> None:
    """Write figures to a JSON file; the old file stays until the new one is complete.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(values, indent=1) + "\n"
    write_atomically(path, lambda part: Path(part).write_text(text, encoding="utf-8"))


def compare_evenly(
    predict: Predictor, images: Sequence[LabelledImage], protocol: Protocol, count: int = 8
) -> list[Comparison]:
    """Up to `count` comparisons for `picture_sheet`, spread evenly from the first to the last image of a test set.

    Raises: as `compare`.
    """
    return [compare(predict, images[index], protocol) for index in evenly_spread(len(images), count)]


def picture_sheet(
    comparisons: Sequence[Comparison], path: str | os.PathLike, expected_error: Predictor | None = None
) -> None:
    """Write a PNG with one row per comparison: image, predicted depth, error, and predicted points from above.

    Near depth is bright (log scale, with a range for each image). The error is |d - d*| / d*, from blue (0) to red (0.5
    and more); pixels without valid ground truth are black. For the points see `map_from_above`. The name and AbsRel are
    above each row.

    Args:
        expected_error: relative error that the network expects, as map [h, w]; drawn beside the error in the same colours.

    Raises:
        ValueError: there is nothing to show.
        OSError: the file cannot be written.
    """
    if not comparisons:
        raise ValueError("a picture sheet needs at least one comparison")
    write_png(path, np.concatenate([_row(comparison, expected_error) for comparison in comparisons]))


def write_sheet(path: Path, write: Callable[[], object]) -> None:
    """Call `write`, which writes a sheet of pictures to `path`, after the figures are written.

    A failure is logged as a warning: pictures are for people to look at, and must not lose the figures.
    """
    try:
        write()
        mark_output(path.parent, [path.name])
    except (OSError, ValueError, RuntimeError, MemoryError, cv2.error) as error:
        log.warning("%s: cannot be written: %s", path, error)


def prediction_sheet(
    predict: Predictor, images: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | os.PathLike
) -> None:
    """`picture_sheet` without ground truth: image, predicted depth, and predicted points from above.

    Args:
        images: RGB uint8 [H, W, 3] and K [3, 3], by name.

    Raises: as `picture_sheet`.
    """
    if not images:
        raise ValueError("a picture sheet needs at least one image")
    rows = []
    for name, (image, intrinsics) in images.items():
        # Inverse depth is interpolated, as in `compare`.
        depth = 1 / cv2.resize(predict(image, intrinsics), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        size = _tile_size(image)
        tiles = [photo(image, size), depth_picture(depth, depth_range(depth), size)]
        rows.append(_captioned(name, [*tiles, map_from_above(image, depth, intrinsics)]))
    write_png(path, np.concatenate(rows))


def _row(comparison: Comparison, expected_error: Predictor | None) -> np.ndarray:
    """One row of the sheet, BGR uint8 [h, n * TILE_WIDTH + MAP_SIZE[1], 3]."""
    size = _tile_size(comparison.depth)
    tiles = [
        photo(comparison.image.image, size),
        depth_picture(comparison.depth, depth_range(comparison.depth), size),
        error_picture(comparison, size),
    ]
    image = comparison.image
    if expected_error is not None:
        tiles.append(expected_error_picture(expected_error(image.image, image.intrinsics), size))
    tiles.append(map_from_above(image.image, comparison.depth, image.intrinsics))
    return _captioned(f"{comparison.image.name}   AbsRel {comparison.metrics.abs_rel:.3f}", tiles)


def _tile_size(picture: np.ndarray) -> tuple[int, int]:
    return round(TILE_WIDTH * picture.shape[0] / picture.shape[1]), TILE_WIDTH


def _captioned(text: str, tiles: Sequence[np.ndarray]) -> np.ndarray:
    height = max(len(tile) for tile in tiles)
    row = np.concatenate([np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0))) for tile in tiles], axis=1)
    caption = np.zeros((CAPTION_HEIGHT, row.shape[1], 3), np.uint8)
    baseline = (4, CAPTION_HEIGHT - 6)
    # OpenCV's fonts have ASCII only.
    text = text.encode("ascii", "replace").decode()
    cv2.putText(caption, text, baseline, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([caption, row])
