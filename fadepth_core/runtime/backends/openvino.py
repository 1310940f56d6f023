"""OpenVINO: the default on a CPU. Needs no torch: the graph comes as the ONNX file beside the checkpoint.

OpenVINO is chosen for its depthwise and 1×1 kernels, which are what SmallDepth is made of.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fadepth_core.common.files import user_cache
from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import BackendSpec, default_threads
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError

ANY_SIZE = True
#: What is computed in float: everything, or what the int8 graph leaves of it.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def unavailable_reason() -> str | None:
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed: pip install 'fadepth_ros[cpu]'"
    return None


def precisions() -> tuple[str, ...]:
    return ("fp32", "bf16", "int8")


def create(job: BackendSpec) -> OpenVINOBackend:
    return OpenVINOBackend(job)


class OpenVINOBackend:
    """See `Backend`. Two graphs are compiled, with and without points, so that points nobody wants cost nothing."""

    takes_network_size = True

    def __init__(self, job: BackendSpec):
        import openvino as ov

        self._ov, self._core, self._job = ov, ov.Core(), job
        if job.precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeError("this processor has no bfloat16 arithmetic")
        self._graph_file = int8_file(job.checkpoint) if job.precision == "int8" else onnx_file(job.checkpoint)
        self._with_points, self._depth_only = (
            _Request(self._compile(points, "LATENCY"), job.framing) for points in (True, False)
        )
        self._pools: dict[bool, list[_Request]] = {}
        self.device = self._core.get_property("CPU", "FULL_DEVICE_NAME").strip()

    def _compile(self, points: bool, hint: str):
        (h, w), output_size = self._job.framing.network_size, self._job.framing.output_size
        model = self._core.read_model(self._graph_file)
        model.reshape(
            {"image": [h, w, 3], "intrinsics": [3, 3], "scale": [1], "limits": [2], "output_grid": list(output_size)}
        )
        if not points:
            depth = model.output("depth").get_node().input_value(0)
            model = self._ov.Model([depth], model.get_parameters())
        properties = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_PRECISION_HINT": _HINTS[self._job.precision],
            "INFERENCE_NUM_THREADS": self._job.threads or default_threads(),
        }
        # OpenVINO gives the compiling thread a signal stack of its own and frees it with the graph. Graphs that are freed in
        # the order they were made leave the thread with a freed one, and the next signal, be it Ctrl-C, ends the process.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._core.compile_model, model, "CPU", properties).result()

    def infer(self, image, intrinsics, scale, limits):
        request = self._depth_only if intrinsics is None else self._with_points
        request.fill(image, intrinsics, scale, limits)
        request.infer()
        return request.outputs()

    def stream(self, frames: Iterable[tuple], points: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """See `Backend`. Several frames are computed at a time, each by few threads, which wait for each other less."""
        if points not in self._pools:
            compiled = self._compile(points, "THROUGHPUT")
            # One that computes and one that is full and waits, for each that OpenVINO would run at a time.
            count = 2 * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._pools[points] = [_Request(compiled, self._job.framing) for _ in range(count)]
        free, busy = deque(self._pools[points]), deque()

        def oldest() -> tuple[np.ndarray, np.ndarray | None]:
            request = busy.popleft()
            free.append(request)
            request.wait()
            depth, cloud = request.outputs()
            return depth.copy(), None if cloud is None else cloud.copy()

        try:
            for frame in frames:
                if not free:
                    yield oldest()
                request = free.popleft()
                request.fill(*frame)
                request.start()
                busy.append(request)
            while busy:
                yield oldest()
        finally:
            for request in busy:  # where nobody wanted the rest
                request.wait()


class _Request:
    """An inference request of a compiled graph, with the arrays it reads its inputs from."""

    def __init__(self, compiled, framing: Framing):
        import openvino as ov

        self._request = compiled.create_infer_request()
        self._inputs = {
            "image": np.zeros((*framing.network_size, 3), np.uint8),
            "intrinsics": np.eye(3, dtype=np.float32),
            "scale": np.ones(1, np.float32),
            "limits": np.zeros(2, np.float32),
            "output_grid": np.zeros(framing.output_size, np.uint8),
        }
        for name, array in self._inputs.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._has_points = len(compiled.outputs) == 2
        self.infer, self.start, self.wait = self._request.infer, self._request.start_async, self._request.wait

    def fill(self, image, intrinsics, scale, limits) -> None:
        self._inputs["image"][:] = image
        self._inputs["scale"][0] = scale
        self._inputs["limits"][:] = limits
        if intrinsics is not None:
            self._inputs["intrinsics"][:] = intrinsics

    def outputs(self) -> tuple[np.ndarray, np.ndarray | None]:
        depth = self._request.get_output_tensor(0).data
        return depth, self._request.get_output_tensor(1).data if self._has_points else None


def int8_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint's int8 graph.

    Raises:
        CheckpointError: there is none that can be used; nothing is made here, since that takes frames.
    """
    if problem := checkpoint.int8_problem():
        raise CheckpointError(
            f"{problem}; make one with 'fadepth export {checkpoint.path} --int8 FRAMES', FRAMES being a "
            "clip or a folder of pictures like the camera's"
        )
    return checkpoint.int8_path


def onnx_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint's ONNX file; a missing or stale one is exported anew where torch is installed.

    Raises:
        CheckpointError: it cannot be used and torch is not there to make another.
    """
    problem = checkpoint.onnx_problem()
    if problem is None:
        return checkpoint.onnx_path
    if any(importlib.util.find_spec(name) is None for name in ("torch", "onnx")):
        raise CheckpointError(
            f"{problem}; make it with 'fadepth export {checkpoint.path}' where torch and onnx are installed"
        )
    from fadepth_core.runtime.export import ensure_onnx

    return ensure_onnx(checkpoint, user_cache())
