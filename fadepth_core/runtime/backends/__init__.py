"""Backends: each module here runs the same `DepthGraph` with one library and declares how in its `BACKEND`.

A backend's module is imported only when that backend is tried, so its library need not be installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fadepth_core.common.cpus import usable_cpus
from fadepth_core.common.framing import Framing
from fadepth_core.runtime.checkpoint import Checkpoint

_MODULES = {
    "tensorrt": "fadepth_core.runtime.backends.tensorrt",
    "inductor": "fadepth_core.runtime.backends.inductor",
    "openvino": "fadepth_core.runtime.backends.openvino",
    "torch": "fadepth_core.runtime.backends.torch",
}
NAMES = tuple(_MODULES)


class FrameInput(NamedTuple):
    """The inputs of the graph for one frame, see `DepthGraph.forward`.

    Attributes:
        image: [H, W, 3] uint8 RGB, at the size given by `Backend.takes_network_size`.
        intrinsics: [3, 3] K of the published depth, pixels; None computes no points.
        scale: factor on depth.
        limits: nearest and farthest depth that count as measured, metres.
        confidence: whether to compute confidence; only for a network with a confidence head.
    """

    image: np.ndarray
    intrinsics: np.ndarray | None = None
    scale: float = 1.0
    limits: tuple[float, float] = (0.0, np.inf)
    confidence: bool = False


class OptionalOutputs(NamedTuple):
    """Which results are computed besides depth."""

    points: bool
    confidence: bool

    @classmethod
    def of(cls, *frames: FrameInput) -> OptionalOutputs:
        """Those that at least one of the frames needs."""
        return cls(any(f.intrinsics is not None for f in frames), any(f.confidence for f in frames))


class FrameOutput(NamedTuple):
    """Depth [h, w] and points [h, w, 3] in metres, and confidence [h, w] in (0, 1) of one frame, float32. Points are None
    when the input has no intrinsics, confidence is None when it does not ask for it."""

    depth: np.ndarray
    points: np.ndarray | None
    confidence: np.ndarray | None = None

    def copy(self) -> FrameOutput:
        """The same result in arrays of its own."""
        return FrameOutput(*(None if array is None else array.copy() for array in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class BackendSpec:
    """The settings that a backend is built with.

    Attributes:
        checkpoint: the network.
        framing: sizes of frames, network input and published depth.
        precision: one of the backend's `BackendType.precisions`.
        threads: CPU threads, 0 for the backend's default.
        batch: largest number of frames passed to `Backend.infer_batch` for one run.
        logger: receives progress of slow steps and damage of cached files.
        cancelled: set when the engine that needs the backend is released; slow builds poll it and stop.
    """

    checkpoint: Checkpoint
    framing: Framing
    precision: str
    threads: int = 0
    batch: int = 1
    logger: logging.Logger = field(default=logging.getLogger("fadepth"), compare=False)
    cancelled: threading.Event = field(default_factory=threading.Event, compare=False)


class Backend(ABC):
    """A `DepthGraph` compiled for one `BackendSpec`.

    Attributes:
        device: name of the device, for logs and diagnostics.
        takes_network_size: whether frames must already be resized (`Framing.to_network`); else they come at the
            camera's size.
        supports_batch: whether `infer_batch` runs several frames in one run, faster than one after the other.
    """

    device: str
    takes_network_size: bool
    supports_batch: bool = False

    def prepare(self) -> None:  # noqa: B027  # most backends have nothing to do
        """Do what would delay the first frame of each kind, with and without points. Called before the backend serves, and not
        where it is only checked."""

    @abstractmethod
    def infer(self, frame: FrameInput) -> FrameOutput:
        """Run one frame. The arrays may be views of the backend's memory, valid until the next call."""

    def infer_batch(self, frames: Sequence[FrameInput]) -> list[FrameOutput]:
        """Run several frames. All results are valid until the next call."""
        return [self.infer(frame).copy() for frame in frames]

    def stream(self, frames: Iterable[FrameInput]) -> Iterator[FrameOutput]:
        """Run many frames for throughput, not latency: frames may be read ahead. Results come in order, in arrays of
        their own."""
        for frame in frames:
            yield self.infer(frame).copy()


def _discard_nothing(spec: BackendSpec) -> None:
    """For backends that store nothing on disk."""


@dataclass(frozen=True)
class BackendType:
    """Functions and properties of a backend that `BackendChain` needs to start it.

    Attributes:
        unavailable_reason: returns why the backend cannot run on this machine, None when it can.
        precisions: returns the precisions it supports on this machine, its default first.
        create: builds the backend for a spec.
        compiled_per_size: whether `create` compiles for the frame size, which takes a minute or more. Other backends
            start within seconds at any size.
        discard: deletes the files that `create` stored for a spec, called when the results computed with them are
            wrong.
    """

    unavailable_reason: Callable[[], str | None]
    precisions: Callable[[], tuple[str, ...]]
    create: Callable[[BackendSpec], Backend]
    compiled_per_size: bool
    discard: Callable[[BackendSpec], None] = _discard_nothing


def backend_type(name: str) -> BackendType:
    """The backend called `name`; imports its module. Raises ValueError for an unknown name."""
    if name not in _MODULES:
        raise ValueError(f"unknown backend '{name}'; known backends: {', '.join(NAMES)}")
    return importlib.import_module(_MODULES[name]).BACKEND


def automatic_order() -> tuple[str, ...]:
    """Backends from the one expected to be fastest on this machine to the slowest."""
    if has_nvidia_gpu() and _torch_can_use_cuda():
        return ("tensorrt", "inductor", "torch", "openvino")
    return ("openvino", "torch")


def _torch_can_use_cuda() -> bool:
    """Whether torch is installed, built for CUDA, and works with the driver. A torch built for CPUs is not imported."""
    if importlib.util.find_spec("torch") is None or _torch_is_for_cpu():
        return False
    import torch

    return torch.cuda.is_available()


def _torch_is_for_cpu() -> bool:
    """Whether the installed torch was built without CUDA, from its version string: importing torch takes seconds."""
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is loaded (desktop or Jetson), without importing anything."""
    return any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu"))


def default_threads() -> int:
    """CPU threads for one small network: every processor this process may use, at most four. With more, synchronisation
    costs more than it gains, and a robot needs its processors for other work."""
    return min(4, usable_cpus())
