"""Depth labels of a clip by the best source that it has: its own depth sensors, a stereo pair, or multi-view stereo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fadepth_core.common.errors import DataError
from fadepth_core.data.video import Clip
from fadepth_core.labels.folder import LabelFolder
from fadepth_core.labels.nearest import nearest_depth
from fadepth_core.labels.stereo_pair import write_pair_depth

Source = Literal["measured", "pair", "stereo"]

#: A source with depth of less than this share of the frames gives way to the next one.
_ENOUGH_FRAMES = 0.5
#: Measured depth is sparse: a LiDAR with 16 beams that looks over a part of the image.
_MIN_MEASURED = 0.002
_NAMES = {"measured": "measured depth", "pair": "stereo pairs", "stereo": "multi-view stereo"}


@dataclass(frozen=True)
class Labels:
    """Depth labels that were written.

    Attributes:
        source: what they come from.
        count: number of frames with a label.
        left_out: number of frames for which labels were asked, but too little depth is known.
        notes: plain sentences for the report.
    """

    source: Source
    count: int
    left_out: int
    notes: tuple[str, ...]


def write_labels(
    clip: Clip,
    folder: Path,
    numbers: Sequence[int],
    method: Literal["auto", "measured", "pair", "stereo"] = "auto",
    nearest: float | None = None,
    first: int = 0,
    threads: int = 1,
) -> Labels:
    """Write depth labels of a clip's frames: 16-bit PNGs, metres * 256, 0 where unknown, at the clip's size for training.

    "auto" takes the first of these that has depth of at least half of the frames, else the one that has most:

    1. "measured": depth of a LiDAR or a depth camera (`clip.depths`);
    2. "pair": stereo pairs (`clip.right`);
    3. "stereo": multi-view stereo (`clip.poses`).

    Args:
        clip: the clip.
        folder: where to write. Labels of an interrupted run with the same settings are kept.
        numbers: the frames.
        method: the source.
        nearest: least depth of multi-view stereo, metres; None: by `nearest_depth`.
        first: first frame that multi-view stereo may use.
        threads: number of frames that are measured at the same time.

    Raises:
        DataError: the clip has none of the sources, or not the one that is asked for, no frame has a label, or a file
            cannot be written.
    """
    wanted = sorted(set(numbers))
    if not wanted:
        raise DataError(f"{clip.path}: no frame is named for which labels are needed")
    source: Source
    notes: list[str] = []
    if method == "auto":
        source, notes = _best_source(clip, wanted)
    else:
        source = method
    if source == "measured":
        count, problems = _write_measured(clip, folder, wanted)
        notes += problems
    elif source == "pair":
        count = write_pair_depth(clip, folder, wanted)
    else:
        # Imported here, because it needs numba, which the other sources do without.
        from fadepth_core.labels.stereo import write_stereo

        if nearest is None:
            nearest = nearest_depth(clip)
            notes.append(f"The nearest depth of multi-view stereo is {nearest:.2g} m, by tracked points.")
        count = write_stereo(clip, folder, nearest, first, numbers=wanted, threads=threads)
    if not count:
        raise DataError(f"{clip.path}: {_NAMES[source]} gave no frame enough depth for a label")
    left_out = len(wanted) - count
    if left_out:
        notes.append(
            f"{left_out} of {len(wanted)} frames have no label: {_NAMES[source]} gave them no depth or too little."
        )
    return Labels(source, count, left_out, tuple(notes))


def _best_source(clip: Clip, numbers: Sequence[int]) -> tuple[Source, list[str]]:
    """The source for "auto", and notes about better ones that have depth of too few frames."""
    frames: dict[Source, int] = {
        "measured": sum(number in (clip.depths or ()) for number in numbers),
        "pair": sum(number in (clip.right or ()) for number in numbers),
        "stereo": 0 if clip.poses is None else len(numbers),
    }
    if not any(frames.values()):
        raise DataError(
            f"{clip.camera}: has no depth, no right pictures and no poses of the frames, one of which is needed for labels"
        )
    enough = [source for source, count in frames.items() if count >= _ENOUGH_FRAMES * len(numbers)]
    chosen = enough[0] if enough else max(frames, key=lambda source: frames[source])
    better = list(frames)[: list(frames).index(chosen)]
    return chosen, [
        f"Only {frames[source]} of {len(numbers)} frames have {_NAMES[source]}; labels are by {_NAMES[chosen]}."
        for source in better
        if frames[source]
    ]


def _write_measured(clip: Clip, folder: Path, numbers: Sequence[int]) -> tuple[int, list[str]]:
    """Write the depth that the clip has; returns the number of labels, and notes about files that cannot be used."""
    if clip.depths is None:
        raise DataError(f"{clip.camera}: has no depth that was measured")
    found = [number for number in numbers if number in clip.depths]
    settings = {"method": "measured", "folder": str(next(iter(clip.depths.values())).parent), "size": list(clip.size)}
    labels = LabelFolder(folder, settings, _MIN_MEASURED)
    problems = []
    for number in labels.missing(found):
        try:
            depth = clip.depth(number)
        except DataError as error:
            problems.append(str(error))
            continue
        labels.write(number, depth)
    notes = [f"{len(problems)} depth files cannot be used; the first: {problems[0]}."] if problems else []
    return len(labels.kept(found)), notes
