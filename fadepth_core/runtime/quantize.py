"""Makes the int8 graph of a checkpoint: post-training quantization of its ONNX file by NNCF with real frames.

Calibration measures the range of each activation, which gives the scale of its 8 bits; weights have one scale for each
channel. The result is an ONNX file with dynamic sizes (QuantizeLinear and DequantizeLinear pairs, int8 weights), which
OpenVINO runs with its 8-bit kernels. Only this module needs NNCF, which calibrates in ONNX Runtime.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from fadepth_core.common.files import write_atomically
from fadepth_core.common.framing import Framing
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from fadepth_core.runtime.verification import CHECK_BOUNDS

# Disables NNCF's telemetry; must be set before it is imported.
os.environ.setdefault("NNCF_CI", "1")
try:
    import nncf
    import onnxruntime
except ImportError as error:
    raise ImportError(
        f"int8 graphs are made by NNCF and ONNX Runtime ({error}): pip install 'fadepth_ros[quantize]'"
    ) from error

nncf.set_log_level(logging.WARNING)  # at INFO it logs every node that stays in float

#: Default number of frames. With 200, depth differs from float32 as much as with 64.
FRAMES = 64
MIN_FRAMES = 24
#: Nodes that stay in float: preprocessing, disparity to depth and points, and the network's heads. Depth is steepest
#: where disparity is small: the median error is 3.5 % with the head in 8 bits, 1.8 % with it in float. The first
#: convolution is quantized: in float it takes 6 % more time and reduces the error by 0.1 %.
_FLOAT = [r"/(?!network/).*", r"/network/(.*/)?(heads?|confidence)[./].*"]


def quantize_checkpoint(path: str | os.PathLike, images: Sequence[np.ndarray]) -> tuple[float, float]:
    """Write the int8 graph of a deployment checkpoint beside it, and its digest into the checkpoint.

    Args:
        path: the checkpoint, with its ONNX file.
        images: RGB uint8 [H, W, 3], at least `MIN_FRAMES`, of any sizes, similar to the camera's frames.

    Returns:
        (median, 99th percentile) of the relative difference of depth to the float graph's, on these frames.

    Raises:
        CheckpointError: the checkpoint's ONNX file cannot be used, there are too few frames, or the int8 graph would
            not pass the verification of `DepthEngine`.
    """
    checkpoint = Checkpoint(path)
    if problem := checkpoint.onnx_problem():
        raise CheckpointError(problem)
    if len(images) < MIN_FRAMES:
        raise CheckpointError(f"{checkpoint.path}: {len(images)} frames; an int8 graph needs at least {MIN_FRAMES}")
    pixels = int(np.prod(checkpoint.description.network_size))
    framings = [Framing.plan(image.shape[:2], pixels=pixels) for image in images]
    frames = [framing.to_network(image) for framing, image in zip(framings, images, strict=True)]
    exact = onnx.load(checkpoint.onnx_path).SerializeToString()  # includes the weights, which are in the checkpoint
    # Engines are verified with the golden frame, which differs from a camera's frames. So calibration uses it, too: once, or,
    # if that is not enough, as often as all frames together. For the shipped checkpoint and 27 frames of the demo clip, the
    # second changes the golden frame's error (99th percentile) from 56 % to 21 %, and the frames' median error from 1.2 % to
    # 1.3 %.
    golden, bounds = checkpoint.golden, CHECK_BOUNDS["int8"]
    for repeats in (1, len(frames)):
        quantized = quantize_graph(exact, [*frames, *[golden["image"]] * repeats])
        error = _difference(exact, quantized, [golden["image"]])
        passes = error[0] <= bounds[0] and error[1] <= bounds[1]
        if passes:
            break
    if not passes:  # `DepthEngine` would reject the graph at every start.
        raise CheckpointError(
            f"{checkpoint.path}: in int8 its depth of the golden frame is off by {error[0]:.1e} in the median, "
            f"{error[1]:.1e} in the 99th percentile; allowed are {bounds[0]:.0e} and {bounds[1]:.0e}"
        )
    write_atomically(checkpoint.int8_path, lambda part: Path(part).write_bytes(quantized))
    description = replace(checkpoint.description, int8_sha256=hashlib.sha256(quantized).hexdigest())
    save_checkpoint(checkpoint.path, checkpoint.weights, description, golden)
    return _difference(exact, quantized, frames)


def quantize_graph(graph: bytes, frames: Sequence[np.ndarray]) -> bytes:
    """Quantize a serialized ONNX graph written by `write_onnx`.

    Args:
        frames: for calibration, RGB uint8 [h, w, 3] at the network's size.
    """
    model = _with_float_weights(onnx.load_from_string(graph))
    quantized = nncf.quantize(
        model,
        nncf.Dataset(frames, _inputs),
        # Activations after a ReLU are positive and use all 8 bits; the others get a zero point.
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(frames),
        ignored_scope=nncf.IgnoredScope(patterns=_FLOAT),
    )
    return quantized.SerializeToString()


def _inputs(frame: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "image": frame,
        "intrinsics": np.eye(3, dtype=np.float32),
        "scale": np.ones(1, np.float32),
        "limits": np.array([0.0, np.inf], np.float32),
        "output_grid": np.zeros(frame.shape[:2], np.uint8),
    }


def _difference(exact: bytes, other: bytes, frames: Sequence[np.ndarray]) -> tuple[float, float]:
    """(median, 99th percentile) of the relative difference of two graphs' depths."""
    options = onnxruntime.SessionOptions()
    # Not optimized: ONNX Runtime's fused 8-bit kernels overflow on processors without VNNI instructions.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = [onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"]) for graph in (exact, other)]
    differences = []
    for frame in frames:
        a, b = (session.run(["depth"], _inputs(frame))[0] for session in sessions)
        differences.append((np.abs(b - a) / a).ravel())
    median, tail = np.quantile(np.concatenate(differences), (0.5, 0.99))
    return float(median), float(tail)


def _with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undo the exporter's half-precision storage: NNCF expects a convolution's weights directly at its input."""
    halves = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in halves]
    for node in casts:
        value = onnx.numpy_helper.to_array(halves[node.input[0]]).astype(np.float32)
        halves[node.input[0]].CopyFrom(onnx.numpy_helper.from_array(value, node.output[0]))
        model.graph.node.remove(node)
    return model
