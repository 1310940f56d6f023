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
from fadepth_core.common.pinhole import unproject
from fadepth_core.common.sample import LabelledImage, evenly_spread
from fadepth_core.evaluation.metrics import DepthMetrics, mean_metrics
from fadepth_core.evaluation.protocols import Comparison, Evaluation, Predictor, Protocol, compare
from fadepth_core.evaluation.published import PublishedRow
from fadepth_core.evaluation.video import VideoEvaluation, VideoFigures
from fadepth_core.runtime.pictures import write_png

log = logging.getLogger(__name__)

_COLUMNS = ("AbsRel", "SqRel", "RMSE", "RMSElog", "d<1.25", "d<1.25^2", "d<1.25^3")

#: Pixels: width of an image in a row of the sheet, (height, width) of the map at its end, height of the text above it.
TILE_WIDTH = 416
MAP_SIZE = (240, 320)
CAPTION_HEIGHT = 20
#: Length of a map and spacing of its grid lines, metres. The first pair is used whose map shows at least `_MAP_SHARE` of the
#: points.
_MAP_RANGES = ((6, 1), (60, 10))
_MAP_SHARE = 0.9
#: Relative error of the last colour.
_WORST_ERROR = 0.5
#: If a smaller share of the pixels has ground truth, each of these pixels is drawn enlarged.
_SPARSE = 0.5
#: Grey of the grid lines of a map.
_GRID = 70


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


def picture_sheet(comparisons: Sequence[Comparison], path: str | os.PathLike) -> None:
    """Write a PNG with one row per comparison: image, predicted depth, error, and predicted points from above.

    Near depth is bright (log scale, with a range for each image). The error is |d - d*| / d*, from blue (0) to red (0.5
    and more); pixels without valid ground truth are black. For the points see `map_from_above`. The name and AbsRel are
    above each row.

    Raises:
        ValueError: there is nothing to show.
        OSError: the file cannot be written.
    """
    if not comparisons:
        raise ValueError("a picture sheet needs at least one comparison")
    write_png(path, np.concatenate([_row(comparison) for comparison in comparisons]))


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
        tiles = [_photo(image, size), cv2.resize(_depth_picture(depth), size[::-1], interpolation=cv2.INTER_AREA)]
        rows.append(_captioned(name, [*tiles, map_from_above(image, depth, intrinsics)]))
    write_png(path, np.concatenate(rows))


def map_from_above(image: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """The points of a depth image seen from above, in the colours of their pixels: BGR uint8 [*MAP_SIZE, 3].

    The camera is at the middle of the lower edge; x points right, z up, at the same scale. The map ends 60 m ahead,
    with grid lines every 10 m, or 6 m ahead with lines every metre if nearly all points are that near. Farther points
    are left out. Of several points in one place the highest is drawn.

    Shapes: RGB uint8 [H, W, 3], depth [H, W] in metres, K [3, 3].
    """
    height, width = MAP_SIZE
    known = depth[depth < _MAP_RANGES[-1][0]]
    fitting = (pair for pair in _MAP_RANGES if known.size and (known < pair[0]).mean() >= _MAP_SHARE)
    reach, spacing = next(fitting, _MAP_RANGES[-1])
    scale = height / reach
    x, y, _ = np.moveaxis(unproject(depth, intrinsics), -1, 0)
    picture = np.zeros((height, width, 3), np.uint8)
    middle = width // 2
    for metres in range(0, reach, spacing):
        at = round(scale * metres)
        picture[height - 1 - at] = _GRID
        picture[:, [middle - at, middle + at] if at < middle else []] = _GRID
    row, column = height - 1 - scale * depth, middle + scale * x
    inside = (row > -0.5) & (np.abs(column - (width - 1) / 2) < width / 2)
    highest_last = np.argsort(-y[inside], kind="stable")
    rows, columns = (np.rint(places[inside][highest_last]).astype(int) for places in (row, column))
    picture[rows, columns] = image[inside][highest_last][:, ::-1]
    for metres in range(spacing, reach, spacing):
        at = round(scale * metres)
        _write_label(picture, f"{metres} m", (2, height - 3 - at))
        if at < middle - 20:
            for sign in (-1, 1):
                _write_label(picture, str(sign * metres), (middle + sign * at + 2, height - 4))
    return picture


def _write_label(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.3, (200, 200, 200), 1, cv2.LINE_AA)


def _row(comparison: Comparison) -> np.ndarray:
    """One row of the sheet, BGR uint8 [h, 3 * TILE_WIDTH + MAP_SIZE[1], 3]."""
    size = _tile_size(comparison.depth)
    tiles = [
        _photo(comparison.image.image, size),
        cv2.resize(_depth_picture(comparison.depth), size[::-1], interpolation=cv2.INTER_AREA),
        _error_picture(comparison, size),
        map_from_above(comparison.image.image, comparison.depth, comparison.image.intrinsics),
    ]
    return _captioned(f"{comparison.image.name}   AbsRel {comparison.metrics.abs_rel:.3f}", tiles)


def _tile_size(picture: np.ndarray) -> tuple[int, int]:
    return round(TILE_WIDTH * picture.shape[0] / picture.shape[1]), TILE_WIDTH


def _photo(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.cvtColor(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)


def _captioned(text: str, tiles: Sequence[np.ndarray]) -> np.ndarray:
    height = max(len(tile) for tile in tiles)
    row = np.concatenate([np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0))) for tile in tiles], axis=1)
    caption = np.zeros((CAPTION_HEIGHT, row.shape[1], 3), np.uint8)
    baseline = (4, CAPTION_HEIGHT - 6)
    # OpenCV's fonts have ASCII only.
    text = text.encode("ascii", "replace").decode()
    cv2.putText(caption, text, baseline, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([caption, row])


def _depth_picture(depth: np.ndarray) -> np.ndarray:
    """Depth [H, W] in metres -> BGR uint8 [H, W, 3]."""
    nearness = -np.log(depth)
    low, high = np.percentile(nearness, (2, 98))
    level = ((nearness - low) / max(high - low, 1e-6)).clip(0, 1)
    return cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_MAGMA)


def _error_picture(comparison: Comparison, size: tuple[int, int]) -> np.ndarray:
    """Relative error -> BGR uint8 [h, w, 3] of the given (height, width)."""
    rows, columns = np.nonzero(comparison.valid)
    truth = comparison.image.depth[rows, columns]
    error = np.abs(comparison.depth[rows, columns] - truth) / truth
    # Several pixels may fall into one of the tile; the largest error is drawn.
    height, width = comparison.depth.shape
    rows_shown, columns_shown = min(size[0], height), min(size[1], width)
    tile = np.full((rows_shown, columns_shown), -1, np.float32)
    np.maximum.at(tile, (rows * rows_shown // height, columns * columns_shown // width), error)
    if comparison.valid.mean() < _SPARSE:
        tile = cv2.dilate(tile, np.ones((3, 3), np.uint8))  # LiDAR points are single pixels and hard to see
    tile = cv2.resize(tile, size[::-1], interpolation=cv2.INTER_NEAREST)
    level = (255 * (tile / _WORST_ERROR).clip(0, 1)).astype(np.uint8)
    picture = cv2.applyColorMap(level, cv2.COLORMAP_TURBO)
    picture[tile < 0] = 0
    return picture
