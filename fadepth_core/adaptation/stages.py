"""Results of long computations, kept in files, so that an interrupted command continues where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fadepth_core.common.documents import read_json
from fadepth_core.common.errors import DataError
from fadepth_core.evaluation import write_values


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        result: JSON values.
        seconds: time that it took when it was computed.
    """

    result: dict[str, Any]
    seconds: float


def run_stage(folder: Path, name: str, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> Stage:
    """The result of a stage: read from `folder`/`name`.json if it was computed with the same settings, else computed.

    Args:
        settings: JSON values on which the result depends, including those of earlier stages.
        compute: returns JSON values; may write further files into `folder`.
    """
    path = folder / f"{name}.json"
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            stored = read_json(path)
            if stored["settings"] == settings:
                return Stage(stored["result"], stored["seconds"])
        except (DataError, KeyError, TypeError):  # damaged: computed again
            pass
        path.unlink()
    started = time.monotonic()
    result = compute()
    seconds = time.monotonic() - started
    folder.mkdir(parents=True, exist_ok=True)
    write_values({"settings": settings, "seconds": seconds, "result": result}, path)
    return Stage(json.loads(json.dumps(result)), seconds)
