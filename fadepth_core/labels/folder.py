"""A folder of depth labels that is filled frame by frame, and continued after an interruption.

The labels are 16-bit PNGs, metres * 256, 0 where unknown, named by frame number, as `data.video` reads them. The file
`labels.json` beside them says how they were made and of which frames they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fadepth_core.common.documents import read_json
from fadepth_core.common.errors import DataError
from fadepth_core.common.files import write_atomically
from fadepth_core.data.images import encode_depth

#: The file that says how the labels were made.
RECORD = "labels.json"
#: Depth that is known in a smaller share of the pixels teaches nothing, and is mostly wrong matches.
MIN_COVERAGE = 0.02


class LabelFolder:
    """Depth labels of a clip's frames.

    Args:
        folder: made if it does not exist.
        settings: how the labels are made. Labels that were made with other settings are replaced.
        min_coverage: depth that is known in a smaller share of the pixels is not written.

    Raises:
        DataError: the folder cannot be made.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], min_coverage: float = MIN_COVERAGE):
        self._folder, self._settings, self._min_coverage = folder, dict(settings), min_coverage
        self._written: set[int] = set()
        self._left_out: set[int] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be made: {error.strerror}") from error
        self._read()

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """The frames of `numbers` that were not measured yet."""
        return [n for n in numbers if n not in self._written and n not in self._left_out]

    def kept(self, numbers: Sequence[int]) -> list[int]:
        """The frames of `numbers` whose depth is in the folder."""
        return [n for n in numbers if n in self._written]

    def write(self, number: int, depth: np.ndarray) -> bool:
        """Write the depth [h, w] of a frame in metres, 0 where unknown; returns whether enough of it is known.

        Raises:
            DataError: the file cannot be written.
        """
        path = self._path(number)
        enough = bool((depth > 0).mean() >= self._min_coverage)
        try:
            if enough:
                data = encode_depth(depth)
                write_atomically(path, lambda part: Path(part).write_bytes(data))
            else:
                path.unlink(missing_ok=True)
            (self._written if enough else self._left_out).add(number)
            path = self._folder / RECORD
            record = {"settings": self._settings, "frames": sorted(self._written), "left_out": sorted(self._left_out)}
            write_atomically(path, lambda part: Path(part).write_text(json.dumps(record), encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror}") from error
        return enough

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.png"

    def _read(self) -> None:
        """Take over the labels of an earlier run with the same settings."""
        try:
            record = read_json(self._folder / RECORD)
        except DataError:  # there is none, or it is damaged: all frames are measured
            return
        if not isinstance(record, dict) or record.get("settings") != json.loads(json.dumps(self._settings)):
            return
        frames, left_out = record.get("frames"), record.get("left_out")
        if isinstance(frames, list) and isinstance(left_out, list):
            self._written = {n for n in frames if isinstance(n, int) and self._path(n).is_file()}
            self._left_out = {n for n in left_out if isinstance(n, int)}
