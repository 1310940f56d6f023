"""What runs the DepthGraph: one module a backend, imported only when that backend is asked for.

A backend module offers `missing()`, why it cannot run on this machine (None when it can), `PRECISIONS`, the ones it can
compute in, its default first, and `create(job)`, which returns a `Backend`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np

from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.framing import Framing

_MODULES = {
    "openvino": "fadepth_core.runtime.backends.openvino",
    "torch": "fadepth_core.runtime.backends.torch",
}
NAMES = tuple(_MODULES)


@dataclass(frozen=True)
class Job:
    """What a backend is to run: which net, for which sizes, how.

    Attributes:
        precision: one of the backend's `PRECISIONS`.
        threads: CPU threads, 0 for the backend's default.
    """

    checkpoint: Checkpoint
    framing: Framing
    precision: str
    threads: int = 0


class Backend(Protocol):
    """A compiled DepthGraph.

    One that runs several frames at once faster than one by one also has `infer_batch(frames)`: of a list of (image,
    intrinsics, scale, limits), images of one size, the list of what `infer` returns, all valid until the next call.

    Attributes:
        device: where it runs, for people.
        takes_network_size: frames should come already resized (`Framing.to_network`); else at the camera's size.
    """

    device: str
    takes_network_size: bool

    def infer(
        self, image: np.ndarray, intrinsics: np.ndarray | None, scale: float, limits: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Run one frame; see `DepthGraph.forward`. Without intrinsics no points are computed and None stands for them.

        The arrays may be views of the backend's own memory, valid until the next call.
        """
        ...


def backend_module(name: str) -> ModuleType:
    """Import the module of the backend called `name`. Raises ValueError for an unknown name."""
    if name not in _MODULES:
        raise ValueError(f"unknown backend '{name}'; known backends: {', '.join(NAMES)}")
    return importlib.import_module(_MODULES[name])


def automatic_order() -> tuple[str, ...]:
    """Backends from the one that should be fastest on this machine to the slowest."""
    return ("torch", "openvino") if has_nvidia_gpu() and not _torch_is_for_cpu() else ("openvino", "torch")


def _torch_is_for_cpu() -> bool:
    """Whether the installed torch was built without CUDA, found without importing it."""
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is loaded (desktop or Jetson), found without importing anything."""
    return any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu"))


def default_threads() -> int:
    """CPU threads for one small network: every processor this process may use, but no more than four; beyond that
    waiting for each other costs more than the work, and a robot has other work to do."""
    return min(4, len(os.sched_getaffinity(0)))
