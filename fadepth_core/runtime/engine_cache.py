"""Cache of compiled engines on disk, so that the next start takes seconds.

Each engine is one file, named by the digest of its cache key. The key contains everything that the engine depends on
(network, size, precision, GPU, library versions), so a stale engine is never found. The file's header holds the key and
a checksum. Does not import torch.
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

from fadepth_core.common.documents import parse_json
from fadepth_core.common.files import write_atomically

_HEADER_KEY = "fadepth_engine"
_TENSOR = "engine"


class EngineCache:
    """Engines in a folder. `identity` is the cache key of an engine: strings by name."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, identity: Mapping[str, str]) -> Path:
        """The file of an engine, whether it exists or not."""
        digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.safetensors"

    def get(self, identity: Mapping[str, str], logger: logging.Logger) -> bytes | None:
        """The engine; None if there is none, or if it is damaged, which is logged."""
        path = self.path(identity)
        try:
            with safe_open(path, framework="np") as file:
                header = parse_json((file.metadata() or {})[_HEADER_KEY], _HEADER_KEY)
                engine = file.get_tensor(_TENSOR).tobytes()
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: a damaged engine, it will be built again (%s)", path, error)
            return None
        if header != {"identity": dict(identity), "sha256": hashlib.sha256(engine).hexdigest()}:
            logger.warning("%s: a damaged engine, it will be built again (it differs from its header)", path)
            return None
        return engine

    def remove(self, identity: Mapping[str, str]) -> None:
        """Delete an engine, if it is there."""
        self.path(identity).unlink(missing_ok=True)

    def put(self, identity: Mapping[str, str], engine: bytes, logger: logging.Logger) -> None:
        """Store an engine. If it cannot be written, e.g. on a full disk, a warning is logged."""
        path = self.path(identity)
        header = {"identity": dict(identity), "sha256": hashlib.sha256(engine).hexdigest()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {_TENSOR: np.frombuffer(engine, np.uint8)}
            write_atomically(path, lambda part: save_file(tensors, part, {_HEADER_KEY: json.dumps(header)}))
        except (SafetensorError, OSError) as error:
            logger.warning(
                "%s: the engine cannot be stored and will be built again at the next start (%s)", path, error
            )
