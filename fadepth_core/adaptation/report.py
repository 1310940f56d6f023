"""The page that shows whether adaptation made the network better: one HTML file that needs no other file and no network.

Report -> pictures of each frame, the curve of teaching -> page.html (template) -> file
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jinja2 import Environment, StrictUndefined

from fadepth_core.common.files import write_atomically
from fadepth_core.evaluation.protocols import Comparison
from fadepth_core.evaluation.tiles import (
    DEPTH_COLORS,
    ERROR_COLORS,
    WORST_ERROR,
    depth_picture,
    depth_range,
    error_picture,
    map_from_above,
    map_range,
    photo,
    truth_picture,
)

#: Pixels of a picture and its JPEG quality. With these, 8 frames make a page of 2 to 3 MB.
_AREA = 420 * 280
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]
#: Width / height from which two pictures, not four, stand side by side.
_WIDE = 2.0
#: (width, height) of the curve and the space left of and below its axes, in units of its SVG.
_CURVE_SIZE = (480, 250)
_CURVE_MARGIN = (56, 44)


@dataclass(frozen=True)
class Table:
    """A table of texts. More than five columns do not fit on a phone, where the table is moved sideways.

    Attributes:
        title: heading above the table; may be empty.
        columns: heading of each column.
        rows: the cells, as many in each row as there are columns.
        note: text below the table; may be empty.

    Raises:
        ValueError: a row has another number of cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table '{self.title}': {len(row)} cells in a row, {len(self.columns)} columns")

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers only, possibly with units."""
        return [
            bool(self.rows) and all(row[i][:1] in set("0123456789-+.") for row in self.rows)
            for i in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Row:
    """One frame, predicted by the network before and after adaptation.

    Raises:
        ValueError: the two comparisons are of different frames.
    """

    before: Comparison
    after: Comparison

    def __post_init__(self) -> None:
        if self.before.image.name != self.after.image.name:
            raise ValueError(f"different frames in one row: {self.before.image.name}, {self.after.image.name}")


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        title: name of the recording.
        verdict: one sentence with the result.
        better: whether the adapted network is better; False shows a warning, and that the old checkpoint stays.
        truth: what the frames are measured against, e.g. "LiDAR".
        rows: the frames, about 8.
        tables: the figures before and after, which are shown above the pictures; then what was used, times, licences, which
            are shown below them.
        curve: (minutes, AbsRel of the validation frames) during teaching; may be empty. Points that are not finite are
            left out.
        notes: sentences on what was missing, each with its consequence.
        command: command that makes a robot use the result; empty: none is shown.
    """

    title: str
    verdict: str
    better: bool
    truth: str
    rows: tuple[Row, ...]
    tables: tuple[Table, ...]
    curve: tuple[tuple[float, float], ...]
    notes: tuple[str, ...]
    command: str


def write_report(report: Report, path: Path) -> None:
    """Write the page; an old file stays until the new one is complete.

    Raises:
        OSError: the file cannot be written.
    """
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        report=report,
        frames=[_frame(row) for row in report.rows],
        curve=_curve(report.curve),
        error_legend=_error_legend(),
    )
    # Names of files that are not UTF-8 contain characters that cannot be encoded.
    content = page.encode("utf-8", "replace")
    write_atomically(path, lambda part: Path(part).write_bytes(content))


# Frames ------------------------------------------------------------------------------------------------------------


class _Tick(NamedTuple):
    """A number beside an axis or a colour bar, at a place from 0 to 1."""

    place: float
    text: str


class _Legend(NamedTuple):
    bar: str
    ticks: list[_Tick]


class _Picture(NamedTuple):
    """`source` is a data URI."""

    caption: str
    figure: str
    source: str
    size: tuple[int, int]


class _Frame(NamedTuple):
    name: str
    before: float
    after: float
    wide: bool
    pictures: list[_Picture]
    legend: _Legend

    @property
    def change(self) -> str:
        """Change of AbsRel in words."""
        if f"{self.before:.3f}" == f"{self.after:.3f}":
            return "the same"
        direction = "worse" if self.after > self.before else "better"
        return f"{abs(100 * (self.after / self.before - 1)):.0f} % {direction}" if self.before else direction


def _frame(row: Row) -> _Frame:
    """The pictures in pairs: image and truth, then each kind before and after."""
    before, after = row.before, row.after
    labelled = before.image
    size = _picture_size(labelled.depth.shape)
    truth = labelled.depth[before.valid]
    limits = _common_range(before.depth, after.depth, truth)
    picture = photo(labelled.image, size)
    dark = _dark_grey(picture)
    shown = map_range(truth)
    figures = {"before": f"AbsRel {before.metrics.abs_rel:.3f}", "after": f"AbsRel {after.metrics.abs_rel:.3f}"}
    pictures = [
        _picture("Image", "", picture),
        _picture("Truth", "", truth_picture(before, limits, size, dark)),
        *(
            _picture(f"Depth {when}", figures[when], depth_picture(comparison.depth, limits, size))
            for when, comparison in (("before", before), ("after", after))
        ),
        *(
            _picture(f"Error {when}", figures[when], error_picture(comparison, size, dark))
            for when, comparison in (("before", before), ("after", after))
        ),
        *(
            _picture(
                f"From above {when}",
                "",
                map_from_above(labelled.image, comparison.depth, labelled.intrinsics, shown),
                lossless=True,  # single pixels
            )
            for when, comparison in (("before", before), ("after", after))
        ),
    ]
    return _Frame(
        labelled.name,
        before.metrics.abs_rel,
        after.metrics.abs_rel,
        size[1] >= _WIDE * size[0],
        pictures,
        _depth_legend(limits),
    )


def _picture_size(shape: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the pictures of a frame of this (height, width): never enlarged."""
    scale = min(1.0, math.sqrt(_AREA / (shape[0] * shape[1])))
    return max(1, round(scale * shape[0])), max(1, round(scale * shape[1]))


def _common_range(*depths: np.ndarray) -> tuple[float, float]:
    """One range of colours for several depths, metres."""
    ranges = [depth_range(depth) for depth in depths]
    near = min(limits[0] for limits in ranges)
    return near, max(1.01 * near, *(limits[1] for limits in ranges))


def _dark_grey(picture: np.ndarray) -> np.ndarray:
    """A background on which colours are easy to see, BGR uint8 [h, w, 3]."""
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    return cv2.cvtColor((40 + 0.4 * grey).astype(np.uint8), cv2.COLOR_GRAY2BGR)


def _picture(caption: str, figure: str, picture: np.ndarray, lossless: bool = False) -> _Picture:
    if lossless:
        source = _data_uri("png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    else:
        source = _data_uri("jpeg", picture, _JPEG)
    return _Picture(caption, figure, source, picture.shape[:2])


def _data_uri(kind: str, picture: np.ndarray, options: Sequence[int]) -> str:
    encoded = cv2.imencode(f".{kind}", picture, options)[1]
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"


# Legends -----------------------------------------------------------------------------------------------------------


def _bar(levels: np.ndarray, colors: int) -> str:
    """A horizontal bar of the colours of `levels` [N] in 0 to 1."""
    return _data_uri("png", cv2.applyColorMap((255 * levels[None]).astype(np.uint8), colors), [])


def _depth_legend(limits: tuple[float, float]) -> _Legend:
    near, far = limits
    ticks = _round_numbers(near, far, (1, 2, 5))
    if len(ticks) < 3:
        ticks = _round_numbers(near, far, (1, 1.5, 2, 3, 4, 5, 7))
    if len(ticks) < 2:
        ticks = [_Tick(0, f"{near:.3g}"), _Tick(1, f"{far:.3g}")]
    return _Legend(_bar(np.linspace(1, 0, 256), DEPTH_COLORS), ticks)


def _round_numbers(near: float, far: float, mantissas: Sequence[float]) -> list[_Tick]:
    """The numbers from near to far with these mantissas, on a log scale."""
    exponents = range(math.floor(math.log10(near)), math.ceil(math.log10(far)) + 1)
    numbers = (mantissa * 10.0**exponent for exponent in exponents for mantissa in mantissas)
    return [
        _Tick(math.log(number / near) / math.log(far / near), f"{number:g}")
        for number in numbers
        if near <= number <= far
    ]


def _error_legend() -> _Legend:
    percent = range(0, round(100 * WORST_ERROR) + 1, 10)
    return _Legend(
        _bar(np.linspace(0, 1, 256), ERROR_COLORS),
        [_Tick(value / percent[-1], str(value)) for value in percent],
    )


# The curve ---------------------------------------------------------------------------------------------------------


class _Curve(NamedTuple):
    """Places in units of the SVG."""

    size: tuple[int, int]
    origin: tuple[float, float]
    points: list[tuple[float, float]]
    best: tuple[float, float]
    best_text: str
    x_ticks: list[_Tick]
    y_ticks: list[_Tick]


def _curve(values: Sequence[tuple[float, float]]) -> _Curve | None:
    """None if there is no point to draw."""
    values = [(minutes, error) for minutes, error in values if math.isfinite(minutes) and math.isfinite(error)]
    if not values:
        return None
    width, height = _CURVE_SIZE
    left, bottom = _CURVE_MARGIN
    x_ticks, y_ticks = (_ticks(max(value[axis] for value in values)) for axis in range(2))

    def place(minutes: float, error: float) -> tuple[float, float]:
        x = left + (width - left - 16) * minutes / x_ticks[-1]
        y = (height - bottom) - (height - bottom - 16) * error / y_ticks[-1]
        return round(x, 1), round(y, 1)

    best = min(values, key=lambda value: value[1])
    return _Curve(
        _CURVE_SIZE,
        place(0, 0),
        [place(*value) for value in values],
        place(*best),
        f"{best[1]:.3f} after {best[0]:.1f} min",
        [_Tick(place(value, 0)[0], f"{value:g}") for value in x_ticks],
        [_Tick(place(0, value)[1], f"{value:g}") for value in y_ticks],
    )


def _ticks(largest: float) -> list[float]:
    """Round numbers from 0 to at least `largest`, 2 to 6 of them."""
    largest = max(largest, 1e-3)
    power = 10.0 ** math.floor(math.log10(largest / 5))
    step = next(mantissa * power for mantissa in (1, 2, 5, 10) if mantissa * power * 5 >= largest * (1 - 1e-9))
    return [round(index * step, 12) for index in range(math.ceil(largest / step - 1e-9) + 1)]
