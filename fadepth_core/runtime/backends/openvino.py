"""Backend "openvino": the default on a CPU. It reads the ONNX file beside the checkpoint and does not need torch.

OpenVINO has fast depthwise and 1×1 convolutions, of which SmallDepth consists.
"""

from __future__ import annotations

import importlib.util
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from fadepth_core.common.files import user_cache
from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import (
    Backend,
    BackendSpec,
    BackendType,
    FrameInput,
    FrameOutput,
    OptionalOutputs,
    default_threads,
)
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError

#: Precision of OpenVINO's floating-point operations; in the int8 graph, those that are not quantized.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def unavailable_reason() -> str | None:
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed: pip install 'fadepth_ros[cpu]'"
    return None


def precisions() -> tuple[str, ...]:
    return ("fp32", "bf16", "int8")


def create(spec: BackendSpec) -> OpenVINOBackend:
    return OpenVINOBackend(spec)


class OpenVINOBackend(Backend):
    """See `Backend`. A graph is compiled for each combination of outputs, so that a frame without points takes less time, when a
    frame first needs it; those without confidence before the backend serves."""

    takes_network_size = True

    def __init__(self, spec: BackendSpec):
        import openvino as ov

        self._ov, self._core, self._spec = ov, ov.Core(), spec
        capabilities, name = _in_own_thread(
            lambda: [self._core.get_property("CPU", key) for key in ("OPTIMIZATION_CAPABILITIES", "FULL_DEVICE_NAME")]
        )
        if spec.precision == "bf16" and "BF16" not in capabilities:
            raise RuntimeError("this processor has no bfloat16 arithmetic")
        self._graph_file = int8_file(spec.checkpoint) if spec.precision == "int8" else onnx_file(spec.checkpoint)
        self._requests: dict[OptionalOutputs, _InferRequest] = {}
        #: Requests for streams; made when a stream first needs them.
        self._pools: dict[OptionalOutputs, list[_InferRequest]] = {}
        self.device = name.strip()

    def prepare(self) -> None:
        for points in (True, False):
            self._request(OptionalOutputs(points, False))

    def _request(self, outputs: OptionalOutputs) -> _InferRequest:
        if outputs not in self._requests:
            self._requests[outputs] = _InferRequest(self._compile(outputs, "LATENCY"), self._spec.framing, outputs)
        return self._requests[outputs]

    def _compile(self, outputs: OptionalOutputs, hint: str) -> Any:
        (h, w), output_size = self._spec.framing.network_size, self._spec.framing.output_size
        model = self._core.read_model(self._graph_file)
        model.reshape(
            {"image": [h, w, 3], "intrinsics": [3, 3], "scale": [1], "limits": [2], "output_grid": list(output_size)}
        )
        _remove_identity_resizes(model)
        # OpenVINO removes the operations that only the other outputs need.
        results = [model.output(name).get_node().input_value(0) for name in _names(outputs)]
        if len(results) < len(model.outputs):
            model = self._ov.Model(results, model.get_parameters())
        properties = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_PRECISION_HINT": _HINTS[self._spec.precision],
            "INFERENCE_NUM_THREADS": self._spec.threads or default_threads(),
        }
        return _in_own_thread(lambda: self._core.compile_model(model, "CPU", properties))

    def infer(self, frame: FrameInput) -> FrameOutput:
        request = self._request(OptionalOutputs.of(frame))
        request.fill(frame)
        request.infer()
        return request.output()

    def stream(self, frames: Iterable[FrameInput]) -> Iterator[FrameOutput]:
        """See `Backend`. Several frames are computed at a time, each by a few threads, so that threads wait less."""
        free = {outputs: deque(pool) for outputs, pool in self._pools.items()}
        in_flight: deque[tuple[OptionalOutputs, _InferRequest]] = deque()

        def finish_oldest() -> FrameOutput:
            outputs, request = in_flight.popleft()
            free[outputs].append(request)
            request.wait()
            return request.output().copy()

        try:
            for frame in frames:
                outputs = OptionalOutputs.of(frame)
                if outputs not in free:
                    free[outputs] = deque(self._pool(outputs))
                while not free[outputs]:
                    yield finish_oldest()
                request = free[outputs].popleft()
                request.fill(frame)
                request.start()
                in_flight.append((outputs, request))
            while in_flight:
                yield finish_oldest()
        finally:
            for _, request in in_flight:  # the stream was closed before its end
                request.wait()

    def _pool(self, outputs: OptionalOutputs) -> list[_InferRequest]:
        if outputs not in self._pools:
            compiled = self._compile(outputs, "THROUGHPUT")
            # Twice as many as OpenVINO computes at a time, so that the next frames are copied meanwhile.
            count = 2 * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._pools[outputs] = [_InferRequest(compiled, self._spec.framing, outputs) for _ in range(count)]
        return self._pools[outputs]


def _in_own_thread(function: Callable[[], Any]) -> Any:
    """The result of `function`, run in a thread that ends with it.

    OpenVINO sets a signal stack for the thread that first uses a device, to compile or to ask for a property, and frees it
    with the last graph. When graphs are freed in the order of their creation, the thread is left with a freed signal stack,
    and the next signal, e.g. Ctrl-C, crashes the process. So that thread ends before. A thread pool would refuse work while
    the interpreter waits for a build before it ends.
    """
    result: Future = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="starting OpenVINO")
    thread.start()
    thread.join()
    return result.result()


class _InferRequest:
    """An inference request of a compiled graph, with the arrays it reads its inputs from."""

    def __init__(self, compiled: Any, framing: Framing, outputs: OptionalOutputs):
        import openvino as ov

        self._request = compiled.create_infer_request()
        self._inputs: dict[str, np.ndarray] = {
            "image": np.zeros((*framing.network_size, 3), np.uint8),
            "intrinsics": np.eye(3, dtype=np.float32),
            "scale": np.ones(1, np.float32),
            "limits": np.zeros(2, np.float32),
            "output_grid": np.zeros(framing.output_size, np.uint8),
        }
        for name, array in self._inputs.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._outputs = outputs
        self.infer, self.start, self.wait = self._request.infer, self._request.start_async, self._request.wait

    def fill(self, frame: FrameInput) -> None:
        self._inputs["image"][:] = frame.image
        self._inputs["scale"][0] = frame.scale
        self._inputs["limits"][:] = frame.limits
        if frame.intrinsics is not None:
            self._inputs["intrinsics"][:] = frame.intrinsics

    def output(self) -> FrameOutput:
        """Views of the request's memory."""
        maps = {name: self._request.get_output_tensor(i).data for i, name in enumerate(_names(self._outputs))}
        return FrameOutput(maps["depth"], maps.get("points"), maps.get("confidence"))


def _names(outputs: OptionalOutputs) -> list[str]:
    """Names of the ONNX file's outputs."""
    return ["depth", *(["points"] if outputs.points else []), *(["confidence"] if outputs.confidence else [])]


def _remove_identity_resizes(model: Any) -> None:
    """Remove interpolations to the size that a map has already: OpenVINO would compute them. Measured: 5.5 % of the
    time of a frame of 128x416, with the same depth."""
    for operation in model.get_ops():
        if operation.get_type_name() != "Interpolate":
            continue
        before, after = operation.input(0).get_partial_shape(), operation.output(0).get_partial_shape()
        if after.is_static and before == after:
            operation.output(0).replace(operation.input_value(0))


def int8_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint's int8 graph.

    Raises:
        CheckpointError: it has none that can be used. None can be made here, since calibration needs frames.
    """
    if problem := checkpoint.int8_problem():
        raise CheckpointError(
            f"{problem}; make one with 'fadepth export {checkpoint.path} --int8 FRAMES', FRAMES being a "
            "clip or a folder of pictures like the camera's"
        )
    return checkpoint.int8_path


def onnx_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint's ONNX file. A missing or stale one is exported again if torch is installed.

    Raises:
        CheckpointError: it cannot be used, and torch is not installed to export another.
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


BACKEND = BackendType(unavailable_reason, precisions, create, compiled_per_size=False)
