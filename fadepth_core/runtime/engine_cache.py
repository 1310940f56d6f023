"""Compiled engines on disk, so that the next start is a matter of seconds.

One file an engine, named by the digest of all that it follows from. Another network, size, precision, graphics card or
library is another file, and a stale engine is never found. Each file says in its header what it was made from and carries
a checksum. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fadepth_core.common.files import write_atomically

_HEADER_KEY = "fadepth_engine"
_TENSOR = "engine"


class EngineCache:
    """Engines in a folder, by what they follow from: any strings by name, the same for `get` and `put`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, identity: Mapping[str, str]) -> Path:
        """The file of an engine."""
        digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.safetensors"

    def get(self, identity: Mapping[str, str], logger: logging.Logger) -> bytes | None:
        """The engine, or None where there is none; a damaged one is reported, and counts as none."""
        path = self.path(identity)
        try:
            with safe_open(path, framework="np") as file:
                header = json.loads((file.metadata() or {})[_HEADER_KEY])
                engine = file.get_tensor(_TENSOR).tobytes()
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("%s: a damaged engine, made anew (%s)", path, error)
            return None
        if header.get("identity") != dict(identity) or header.get("sha256") != hashlib.sha256(engine).hexdigest():
            logger.warning("%s: a damaged engine, made anew (it is not what its header says)", path)
            return None
        return engine

    def remove(self, identity: Mapping[str, str]) -> None:
        """Forget an engine, if it is there."""
        self.path(identity).unlink(missing_ok=True)

    def put(self, identity: Mapping[str, str], engine: bytes, logger: logging.Logger) -> None:
        """Keep an engine. One that cannot be kept, for want of space or rights, costs time at the next start and nothing
        else: a warning."""
        path = self.path(identity)
        header = {"identity": dict(identity), "sha256": hashlib.sha256(engine).hexdigest()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {_TENSOR: np.frombuffer(engine, np.uint8)}
            write_atomically(path, lambda part: save_file(tensors, part, {_HEADER_KEY: json.dumps(header)}))
        except (SafetensorError, OSError) as error:
            logger.warning("%s: the engine cannot be kept and will be made anew at the next start (%s)", path, error)
