"""Fixed buffers around one fixed graph: how torch and TensorRT run a frame.

    numpy -> pinned host buffer -> [ upload -> DepthGraph -> download ] -> pinned host buffer -> numpy

What stands in brackets is captured once as a CUDA graph and from then on replayed by one call: no allocation, no launch of
single kernels, no tensor arithmetic in Python. On a CPU, where there is nothing to upload or to capture, the same buffers
are handed to the graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import BackendSpec, copied

#: (image [B, H, W, 3] uint8, intrinsics [B, 3, 3], scale [B, 1], limits [B, 2]) -> depth [B, h, w], points [B, h, w, 3], on
#: one device. Called on the current stream; what it returns may be the same tensors every time.
Compute = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

#: image [H, W, 3], K [3, 3] of the published depth or None, scale, (nearest, farthest): one frame as `Backend.infer` takes it.
FrameArguments = tuple[np.ndarray, np.ndarray | None, float, tuple[float, float]]

#: Numbers a frame has besides its pixels: K, scale and limits. They lie in one buffer, to be uploaded together, each kind
#: beginning at a multiple of 256 bytes, as TensorRT wants its inputs.
_PARAMETERS = (9, 1, 2)
_ALIGNMENT = 64  # floats
#: Runs before a graph is captured: libraries choose algorithms and allocate in the first ones.
_WARM_UP = 3


class Slot:
    """Buffers and captured graphs for `batch` frames at a time, on a stream of their own.

    Args:
        compute: what to run. A slot that is to overlap with another needs one that shares no memory with the other's.
        framing: sizes of the frames that come and of the depth that is published.
        batch: frames a run.
        device: "cuda" or "cpu".
    """

    def __init__(self, compute: Compute, framing: Framing, batch: int, device: torch.device):
        self._compute, self._cuda, self._batch = compute, device.type == "cuda", batch
        (height, width), (h, w) = framing.camera_size, framing.output_size

        def host(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=self._cuda)

        self._host_in = host(batch, height, width, 3, dtype=torch.uint8), host(_parameter_floats(batch))
        self._host_out = host(batch, h, w), host(batch, h, w, 3)
        self._device_in = tuple(x.to(device) for x in self._host_in)  # on a CPU, the same tensors
        # What is written and read in the steady state.
        self._images = self._host_in[0].numpy()
        self._intrinsics, self._scales, self._limits = (x.numpy() for x in _parameter_views(self._host_in[1], batch))
        self._out = tuple(x.numpy() for x in self._host_out)
        self._with_points, self._count = False, batch  # what a run is for
        # Something that can be computed, for the first runs.
        self._intrinsics[:], self._scales[:], self._limits[:] = np.eye(3).ravel(), 1.0, (0.0, np.inf)
        if self._cuda:
            self.stream, self._done = torch.cuda.Stream(device), torch.cuda.Event()
            self._graphs = {points: self._captured(points) for points in (False, True)}

    def submit(self, frames: Sequence[FrameArguments]) -> None:
        """Begin to compute up to `batch` frames. Their images are copied. On CUDA places that are left compute what was there."""
        self._with_points = False
        self._count = self._batch if self._cuda else len(frames)
        for i, (image, intrinsics, scale, limits) in enumerate(frames):
            self._images[i] = image
            if intrinsics is not None:
                self._intrinsics[i] = intrinsics.ravel()
                self._with_points = True
            self._scales[i] = scale
            self._limits[i] = limits
        if self._cuda:
            with torch.cuda.stream(self.stream):
                self._graphs[self._with_points].replay()
                self._done.record()
        else:
            with torch.inference_mode():
                self._run(self._with_points)

    def collect(self, frames: Sequence[FrameArguments]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Wait for what was submitted; depth and points of each frame, views that last until the next `submit`."""
        if self._cuda:
            self._done.synchronize()
        depth, points = self._out
        return [(depth[i], None if frame[1] is None else points[i]) for i, frame in enumerate(frames)]

    def _run(self, with_points: bool) -> None:
        self.upload()
        self.download(self.compute(), with_points)

    # The three parts of a run, on CUDA enqueued on the current stream.

    def upload(self) -> None:
        if self._cuda:
            for there, here in zip(self._device_in, self._host_in, strict=True):
                there.copy_(here, non_blocking=True)

    def compute(self) -> tuple[Tensor, Tensor]:
        image, parameters = self._device_in
        intrinsics, scales, limits = (x[: self._count] for x in _parameter_views(parameters, len(image)))
        return self._compute(image[: self._count], intrinsics.view(-1, 3, 3), scales, limits)

    def download(self, results: tuple[Tensor, Tensor], with_points: bool) -> None:
        for here, there in list(zip(self._host_out, results, strict=True))[: 2 if with_points else 1]:
            here[: self._count].copy_(there, non_blocking=self._cuda)

    @torch.inference_mode()
    def _captured(self, with_points: bool) -> torch.cuda.CUDAGraph:
        self.stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        # cuDNN tries its algorithms in the warm-up. Without TF32, which is another precision than the one asked for.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            with torch.cuda.stream(self.stream):
                for _ in range(_WARM_UP):
                    self._run(with_points)
            self.stream.synchronize()
            # thread_local: the engine that serves meanwhile may use the device from another thread.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._run(with_points)
        return graph


def _parameter_floats(batch: int) -> int:
    return sum(_aligned(batch * count) for count in _PARAMETERS)


def _parameter_views(flat: Tensor, batch: int) -> list[Tensor]:
    """The three kinds of numbers in their buffer, each [B, count]."""
    views, start = [], 0
    for count in _PARAMETERS:
        views.append(flat[start : start + batch * count].view(batch, count))
        start += _aligned(batch * count)
    return views


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def static_backend(
    make_compute: Callable[[int], Compute], job: BackendSpec, device: torch.device, name: str = ""
) -> StaticBackend:
    """A backend that computes with torch tensors.

    Args:
        make_compute: makes a `Compute` for a number of frames at a time; called once for every slot.
        job: its framing, on a CPU that of frames already at the network's size, and its batch: how many frames go together
            where several wait. On CUDA a run of fewer takes as long.
        device: where `Compute` runs.
        name: of the device, for people; the GPU's by default.
    """
    return (_BatchingBackend if job.batch > 1 else StaticBackend)(make_compute, job, device, name)


class StaticBackend:
    """See `Backend`; made by `static_backend`."""

    def __init__(self, make_compute: Callable[[int], Compute], job: BackendSpec, device: torch.device, name: str):
        cuda = device.type == "cuda"
        self.device = name or torch.cuda.get_device_name()
        # On a GPU the resize is cheaper behind the upload.
        self.takes_network_size = not cuda
        framing = job.framing if cuda else job.framing.at_network()
        self._slot = lambda batch: Slot(make_compute(batch), framing, batch, device)
        self.single = self._slot(1)
        self._pair: list[Slot] = []

    def infer(self, image, intrinsics, scale, limits):
        return _run(self.single, [(image, intrinsics, scale, limits)])[0]

    def stream(self, frames: Iterable[FrameArguments], points: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """See `Backend`. Two frames are under way at a time, so that copies overlap with computing."""
        # Slots of its own: whoever reads the stream may ask `infer` for something between two frames.
        while len(self._pair) < 2:
            self._pair.append(self._slot(1))
        free, under_way = deque(self._pair), deque()
        try:
            for frame in frames:
                if not free:
                    yield _finish(under_way, free)
                slot = free.popleft()
                if not points:
                    frame = (frame[0], None, *frame[2:])
                slot.submit([frame])
                under_way.append((slot, frame))
            while under_way:
                yield _finish(under_way, free)
        finally:
            for slot, frame in under_way:  # where nobody wanted the rest
                slot.collect([frame])


class _BatchingBackend(StaticBackend):
    def __init__(self, make_compute: Callable[[int], Compute], job: BackendSpec, device: torch.device, name: str):
        super().__init__(make_compute, job, device, name)
        self._batch, self._several = job.batch, self._slot(job.batch)

    def infer_batch(self, frames: Sequence[FrameArguments]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Several frames, of several cameras, together. The arrays last until the next call."""
        if len(frames) <= self._batch:
            return _run(self._several, frames)
        parts = [frames[i : i + self._batch] for i in range(0, len(frames), self._batch)]
        return [copied(answer) for part in parts for answer in _run(self._several, part)]


def _run(slot: Slot, frames: Sequence[FrameArguments]):
    slot.submit(frames)
    return slot.collect(frames)


def _finish(under_way: deque[tuple[Slot, FrameArguments]], free: deque[Slot]) -> Any:
    slot, frame = under_way.popleft()
    free.append(slot)
    return copied(slot.collect([frame])[0])
