"""Results of long computations, kept in files, so that an interrupted command continues where it stopped."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fadepth_core.common.documents import read_json
from fadepth_core.common.errors import DataError
from fadepth_core.evaluation import write_values

log = logging.getLogger(__name__)

#: Raise it when the results of a stage change: those of another version of this program are computed again.
_FORMAT = 1


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        result: JSON values.
        seconds: time that it took when it was computed.
    """

    result: dict[str, Any]
    seconds: float


def run_stage(
    folder: Path,
    name: str,
    settings: dict[str, Any],
    compute: Callable[[], dict[str, Any]],
    outputs: Sequence[Path] = (),
) -> Stage:
    """The result of a stage: read from `folder`/`name`.json if it was computed with the same settings, else computed.

    Args:
        settings: JSON values on which the result depends, including those of earlier stages.
        compute: returns JSON values; may write further files into `folder`.
        outputs: files and folders that it writes. If one of their files is missing or has another size, it is removed and
            the stage is computed again.
    """
    path = folder / f"{name}.json"
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            stored = read_json(path)
            if stored["settings"] == settings and stored["format"] == _FORMAT:
                stage, sizes = Stage(stored["result"], stored["seconds"]), stored["files"]
                if not (damaged := _differing(folder, sizes, outputs)):
                    return stage
                log.info(
                    "%s: %d files of the stage '%s' are missing or damaged; it is repeated", folder, len(damaged), name
                )
                for file in damaged:  # what continues an interrupted computation would take it
                    file.unlink(missing_ok=True)
        except (DataError, KeyError, TypeError, AttributeError):  # damaged: computed again
            pass
        path.unlink()
    started = time.monotonic()
    result = compute()
    seconds = time.monotonic() - started
    folder.mkdir(parents=True, exist_ok=True)
    files = {os.path.relpath(file, folder): size for file, size in _sizes(outputs).items()}
    record = {"format": _FORMAT, "settings": settings, "seconds": seconds, "result": result, "files": files}
    write_values(record, path)
    return Stage(json.loads(json.dumps(result)), seconds)


def _differing(folder: Path, sizes: dict[str, int], outputs: Sequence[Path]) -> list[Path]:
    """Files that had these sizes, and are missing or have another one now."""
    now = {os.path.relpath(file, folder): size for file, size in _sizes(outputs).items()}
    return [folder / name for name, size in sizes.items() if now.get(name) != size]


def _sizes(outputs: Sequence[Path]) -> dict[Path, int]:
    """Bytes of each visible file that is one of the `outputs` or below one."""
    files = [file for path in outputs for file in (path.rglob("*") if path.is_dir() else [path])]
    return {file: file.stat().st_size for file in files if file.is_file() and not file.name.startswith(".")}
