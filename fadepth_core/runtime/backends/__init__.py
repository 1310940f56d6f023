"""What runs the DepthGraph: one module a backend, imported only when that backend is asked for.

A backend module offers `unavailable_reason()`, why it cannot run on this machine (None when it can), `precisions()`, the ones it can
compute in here, its default first, `create(job)`, which returns a `Backend`, and `ANY_SIZE`: whether that is quick for
another size of frames. Where it is not, a compiler works for each. One that keeps what it has compiled also offers
`forget(job)`, for when that turns out to be wrong.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import threading
from dataclasses import dataclass, field
from types import ModuleType
from typing import Protocol

import numpy as np

from fadepth_core.common.framing import Framing
from fadepth_core.runtime.checkpoint import Checkpoint

_MODULES = {
    "tensorrt": "fadepth_core.runtime.backends.tensorrt",
    "inductor": "fadepth_core.runtime.backends.inductor",
    "openvino": "fadepth_core.runtime.backends.openvino",
    "torch": "fadepth_core.runtime.backends.torch",
}
NAMES = tuple(_MODULES)


@dataclass(frozen=True)
class BackendSpec:
    """What a backend is to run: which net, for which sizes, how.

    Attributes:
        precision: one of the backend's `precisions`.
        threads: CPU threads, 0 for the backend's default.
        batch: how many frames at most are handed over together (`Backend.infer_batch`).
        logger: gets what takes long, and what is done about damage.
        abandoned: set once nobody waits for the backend any more; what takes long looks at it.
    """

    checkpoint: Checkpoint
    framing: Framing
    precision: str
    threads: int = 0
    batch: int = 1
    logger: logging.Logger = field(default=logging.getLogger("fadepth"), compare=False)
    abandoned: threading.Event = field(default_factory=threading.Event, compare=False)


class Backend(Protocol):
    """A compiled DepthGraph.

    One that has a faster way than `infer` for frames that are all there already offers `stream(frames, points)` too: an
    iterable of `infer`'s arguments in, as many answers out, in order, in arrays of their own; `points` says whether the
    answers have them, which then are of no use where a frame came without intrinsics. One that runs several frames at once
    faster than one by one also has `infer_batch(frames)`: of a list of `infer`'s arguments, images of one size, the list of
    what it returns, all valid until the next call.

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


def copied(answer: tuple[np.ndarray, np.ndarray | None]) -> tuple[np.ndarray, np.ndarray | None]:
    """What a backend answers, in arrays that stay."""
    depth, points = answer
    return depth.copy(), None if points is None else points.copy()


def backend_module(name: str) -> ModuleType:
    """Import the module of the backend called `name`. Raises ValueError for an unknown name."""
    if name not in _MODULES:
        raise ValueError(f"unknown backend '{name}'; known backends: {', '.join(NAMES)}")
    return importlib.import_module(_MODULES[name])


def automatic_order() -> tuple[str, ...]:
    """Backends from the one that should be fastest on this machine to the slowest."""
    if has_nvidia_gpu() and _torch_reaches_cuda():
        return ("tensorrt", "inductor", "torch", "openvino")
    return ("openvino", "torch")


def _torch_reaches_cuda() -> bool:
    """Whether torch is there, built for CUDA, and gets along with the driver; torch for a CPU need not be imported."""
    if importlib.util.find_spec("torch") is None or _torch_is_for_cpu():
        return False
    import torch

    return torch.cuda.is_available()


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
