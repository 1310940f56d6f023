"""Runs a compiled graph with fixed buffers. Used by the backends torch, inductor and TensorRT.

    numpy -> pinned host buffer -> [ upload -> DepthGraph -> download ] -> pinned host buffer -> numpy

On CUDA the part in brackets is captured once as a CUDA graph and then replayed by one call, without allocation, kernel
launches or tensor arithmetic in Python. On a CPU the graph is called with the same buffers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import Backend, BackendSpec, FrameInput, FrameOutput, OptionalOutputs

#: (image [B, H, W, 3] uint8, intrinsics [B, 3, 3], scale [B, 1], limits [B, 2]) -> depth [B, h, w], points [B, h, w,
#: 3] and, if the network has a confidence head, confidence [B, h, w], on one device. Called on the current stream; may
#: return the same tensors every time.
Compute = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]

#: How many numbers K, scale and limits of a frame have. Each kind starts at a multiple of 256 bytes, the alignment that TensorRT
#: requires of its inputs.
_PARAMETERS = (9, 1, 2)
_ALIGNMENT = 64  # floats
#: Runs before a graph is captured: libraries choose algorithms and allocate in the first ones.
_WARM_UP = 3


class InferenceBuffers:
    """Buffers and captured graphs for runs of `batch` frames, on a CUDA stream of their own.

    Args:
        compute: what to run. Buffers whose runs overlap need `compute`s that share no memory.
        framing: sizes of the frames and of the published depth.
        batch: frames in a run.
        device: "cuda" or "cpu".
        has_confidence: whether `compute` returns confidence.
    """

    def __init__(
        self, compute: Compute, framing: Framing, batch: int, device: torch.device, has_confidence: bool = False
    ):
        self._compute, self._cuda, self._batch = compute, device.type == "cuda", batch
        (height, width), (h, w) = framing.camera_size, framing.output_size

        def host(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=self._cuda)

        # One buffer for images and parameters, so that one upload is enough.
        split = 4 * _parameter_floats(batch)
        self._host_in = host(split + batch * height * width * 3, dtype=torch.uint8)
        self._host_out = (host(batch, h, w), host(batch, h, w, 3), *([host(batch, h, w)] if has_confidence else []))
        self._device_in = self._host_in.to(device)  # on a CPU, the same tensor

        def views(buffer: Tensor) -> tuple[Tensor, list[Tensor]]:
            images = buffer[split:].view(batch, height, width, 3)
            return images, _parameter_views(buffer[:split].view(torch.float32), batch)

        # Views of the buffers, which each run writes and reads.
        self._inputs = views(self._device_in)
        images, parameters = views(self._host_in)
        self._images = images.numpy()
        self._intrinsics, self._scales, self._limits = (x.numpy() for x in parameters)
        self._out = tuple(x.numpy() for x in self._host_out)
        # Which results a run downloads, and of how many frames.
        self._wanted, self._count = OptionalOutputs(False, False), batch
        # Valid values for the runs before the capture.
        self._intrinsics[:], self._scales[:], self._limits[:] = np.eye(3).ravel(), 1.0, (0.0, np.inf)
        if self._cuda:
            self.cuda_stream, self._done = torch.cuda.Stream(device), torch.cuda.Event()
            self._graphs = {
                wanted: self._captured(wanted)
                for wanted in (
                    OptionalOutputs(p, c) for p in (False, True) for c in (False, True)[: 1 + has_confidence]
                )
            }

    def submit(self, frames: Sequence[FrameInput]) -> None:
        """Copy up to `batch` frames and begin to compute them. A captured graph always runs `batch` frames; where there is no
        new frame, it computes the previous one again."""
        self._count = self._batch if self._cuda else len(frames)
        for i, (image, intrinsics, scale, limits, _) in enumerate(frames):
            self._images[i] = image
            if intrinsics is not None:
                self._intrinsics[i] = intrinsics.ravel()
            self._scales[i] = scale
            self._limits[i] = limits
        self._wanted = OptionalOutputs.of(*frames)
        if self._cuda:
            with torch.cuda.stream(self.cuda_stream):
                self._graphs[self._wanted].replay()
                self._done.record()
        else:
            with torch.inference_mode():
                self._run(self._wanted)

    def collect(self, frames: Sequence[FrameInput]) -> list[FrameOutput]:
        """Wait for the frames that were submitted; their results are views, valid until the next `submit`."""
        if self._cuda:
            self._done.synchronize()
        depth, points, *confidence = self._out
        return [
            FrameOutput(
                depth[i], None if f.intrinsics is None else points[i], confidence[0][i] if f.confidence else None
            )
            for i, f in enumerate(frames)
        ]

    def run(self, frames: Sequence[FrameInput]) -> list[FrameOutput]:
        """`submit` and `collect`."""
        self.submit(frames)
        return self.collect(frames)

    def _run(self, wanted: OptionalOutputs) -> None:
        self.upload()
        self.download(self.compute(), *wanted)

    # The three parts of a run; on CUDA they are enqueued on the current stream.

    def upload(self) -> None:
        if self._cuda:
            self._device_in.copy_(self._host_in, non_blocking=True)

    def compute(self) -> tuple[Tensor, ...]:
        images, parameters = self._inputs
        intrinsics, scales, limits = (x[: self._count] for x in parameters)
        return self._compute(images[: self._count], intrinsics.view(-1, 3, 3), scales, limits)

    def download(self, results: tuple[Tensor, ...], with_points: bool, with_confidence: bool = False) -> None:
        wanted = (True, with_points, with_confidence)[: len(results)]
        for on_host, on_device, copy in zip(self._host_out, results, wanted, strict=True):
            if copy:
                on_host[: self._count].copy_(on_device, non_blocking=self._cuda)

    @torch.inference_mode()
    def _captured(self, wanted: OptionalOutputs) -> torch.cuda.CUDAGraph:
        self.cuda_stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        # cuDNN tries its algorithms in the warm-up. TF32 is off: it is another precision than the requested one.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            with torch.cuda.stream(self.cuda_stream):
                for _ in range(_WARM_UP):
                    self._run(wanted)
            self.cuda_stream.synchronize()
            # thread_local, because another thread may use the device for the backend that serves during this build.
            with torch.cuda.graph(graph, stream=self.cuda_stream, capture_error_mode="thread_local"):
                self._run(wanted)
        return graph


def _parameter_floats(batch: int) -> int:
    return sum(_aligned(batch * count) for count in _PARAMETERS)


def _parameter_views(flat: Tensor, batch: int) -> list[Tensor]:
    """K, scale and limits in their common buffer, each [B, count]."""
    views, start = [], 0
    for count in _PARAMETERS:
        views.append(flat[start : start + batch * count].view(batch, count))
        start += _aligned(batch * count)
    return views


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


class StaticBackend(Backend):
    """A backend that computes with torch tensors.

    Args:
        make_compute: makes a `Compute` for a number of frames; called for each `InferenceBuffers`.
        spec: on a CPU frames come resized, whatever its framing. With a batch above one, several frames run together;
            on CUDA a run of fewer takes as long.
        device: where `Compute` runs.
        name: of the device, for logs; the GPU's name by default.
        has_confidence: whether the `Compute`s return confidence; by default, whether the checkpoint of `spec` has a head for it.
    """

    def __init__(
        self,
        make_compute: Callable[[int], Compute],
        spec: BackendSpec,
        device: torch.device,
        name: str = "",
        has_confidence: bool | None = None,
    ):
        cuda = device.type == "cuda"
        self.device = name or torch.cuda.get_device_name()
        # On a GPU the resize is cheaper after the upload.
        self.takes_network_size = not cuda
        self.supports_batch = spec.batch > 1
        framing = spec.framing if cuda else spec.framing.at_network()
        if has_confidence is None:
            has_confidence = spec.checkpoint.description.has_confidence
        self._make_buffers = lambda batch: InferenceBuffers(make_compute(batch), framing, batch, device, has_confidence)
        self.single = self._make_buffers(1)
        self._batch = spec.batch
        self._several = self._make_buffers(spec.batch) if self.supports_batch else None
        self._pair: list[InferenceBuffers] = []

    def infer(self, frame: FrameInput) -> FrameOutput:
        return self.single.run([frame])[0]

    def infer_batch(self, frames: Sequence[FrameInput]) -> list[FrameOutput]:
        if self._several is None:
            return super().infer_batch(frames)
        if len(frames) <= self._batch:
            return self._several.run(frames)
        parts = [frames[i : i + self._batch] for i in range(0, len(frames), self._batch)]
        return [output.copy() for part in parts for output in self._several.run(part)]

    def stream(self, frames: Iterable[FrameInput]) -> Iterator[FrameOutput]:
        """See `Backend`. Two frames are in flight at a time, so that copies overlap with computing."""
        # Buffers of their own, because the caller may call `infer`, which uses `single`, between two results.
        while len(self._pair) < 2:
            self._pair.append(self._make_buffers(1))
        free = deque(self._pair)
        in_flight: deque[tuple[InferenceBuffers, FrameInput]] = deque()
        try:
            for frame in frames:
                if not free:
                    yield _finish_oldest(in_flight, free)
                buffers = free.popleft()
                buffers.submit([frame])
                in_flight.append((buffers, frame))
            while in_flight:
                yield _finish_oldest(in_flight, free)
        finally:
            for buffers, frame in in_flight:  # the stream was closed before its end
                buffers.collect([frame])


def _finish_oldest(in_flight: deque[tuple[InferenceBuffers, FrameInput]], free: deque[InferenceBuffers]) -> FrameOutput:
    buffers, frame = in_flight.popleft()
    free.append(buffers)
    return buffers.collect([frame])[0].copy()
