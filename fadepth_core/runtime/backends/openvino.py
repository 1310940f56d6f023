"""OpenVINO: the default on a CPU. Needs no torch: the graph comes as the ONNX file beside the checkpoint.

OpenVINO is chosen for its depthwise and 1×1 kernels, which are what SmallDepth is made of.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from fadepth_core.runtime.backends import Job, default_threads
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.engine_cache import user_cache

ANY_SIZE = True
_HINTS = {"fp32": "f32", "bf16": "bf16"}


def missing() -> str | None:
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed: pip install 'fadepth_ros[cpu]'"
    return None


def precisions() -> tuple[str, ...]:
    return ("fp32", "bf16")


def create(job: Job) -> OpenVINOBackend:
    return OpenVINOBackend(job)


class OpenVINOBackend:
    """See `Backend`. Two graphs are compiled, with and without points, so that points nobody wants cost nothing."""

    takes_network_size = True

    def __init__(self, job: Job):
        import openvino as ov

        core = ov.Core()
        if job.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeError("this processor has no bfloat16 arithmetic")
        (h, w), output_size = job.framing.network_size, job.framing.output_size
        model = core.read_model(onnx_file(job.checkpoint))
        model.reshape(
            {"image": [h, w, 3], "intrinsics": [3, 3], "scale": [1], "limits": [2], "output_grid": list(output_size)}
        )
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[job.precision],
            "INFERENCE_NUM_THREADS": job.threads or default_threads(),
        }
        depth_only = ov.Model([model.output("depth").get_node().input_value(0)], model.get_parameters())
        self._with_points = core.compile_model(model, "CPU", properties).create_infer_request()
        self._depth_only = core.compile_model(depth_only, "CPU", properties).create_infer_request()
        self.device = core.get_property("CPU", "FULL_DEVICE_NAME").strip()

        # Inputs live in arrays that both requests read in place.
        self._inputs = {
            "image": np.zeros((h, w, 3), np.uint8),
            "intrinsics": np.eye(3, dtype=np.float32),
            "scale": np.ones(1, np.float32),
            "limits": np.zeros(2, np.float32),
            "output_grid": np.zeros(output_size, np.uint8),
        }
        for request in (self._with_points, self._depth_only):
            for name, array in self._inputs.items():
                request.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def infer(self, image, intrinsics, scale, limits):
        self._inputs["image"][:] = image
        self._inputs["scale"][0] = scale
        self._inputs["limits"][:] = limits
        if intrinsics is None:
            self._depth_only.infer()
            return self._depth_only.get_output_tensor(0).data, None
        self._inputs["intrinsics"][:] = intrinsics
        self._with_points.infer()
        return self._with_points.get_output_tensor(0).data, self._with_points.get_output_tensor(1).data


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
            f"{problem}; make it with 'python training/run.py export {checkpoint.path}' where torch and onnx are installed"
        )
    from fadepth_core.runtime.export import ensure_onnx

    return ensure_onnx(checkpoint, user_cache())
