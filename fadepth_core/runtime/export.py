"""Exports a network to the two files that are deployed: the checkpoint and its ONNX graph."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import torch

from fadepth_core.models.depth_network import DeployedNetwork
from fadepth_core.runtime.checkpoint import (
    Checkpoint,
    Description,
    checkpoint_bytes,
    save_checkpoint,
    tensor_places,
    write_atomically,
)
from fadepth_core.runtime.graph import DepthGraph, ShapeCarriedGraph
from fadepth_core.runtime.network import load_network

#: Version of `write_onnx`, part of the cache key: increase it with every change of what it writes.
EXPORTER = 3
#: (height, width) of the golden frame: small, because every checkpoint contains it, and not square, so that exchanged axes
#: are noticed.
GOLDEN_SIZE = (64, 96)


def export_checkpoint(network: DeployedNetwork, description: Description, path: str | os.PathLike) -> None:
    """Write `path` (half-precision weights, golden input and output, description) and its ONNX file beside it.

    Args:
        network: fused network. Its parameters are rounded to half precision in place, so that the stored weights, the
            golden output and the exported graph agree exactly.
    """
    path = Path(path)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
    onnx_path = path.with_suffix(".onnx")
    weights = {name: value.half().numpy() for name, value in network.state_dict().items()}
    golden = golden_frame(network)
    # An existing int8 graph has the old weights; `quantize_checkpoint` makes a new one.
    options = {name: value for name, value in description.options.items() if name != "confidence"}
    if network.confidence is not None:
        options["confidence"] = True
    description = replace(description, form="deploy", options=options, onnx_weights=path.name, int8_sha256="")
    write_onnx(network, onnx_path, path.name, tensor_places(checkpoint_bytes(weights, description, golden)))
    digest = hashlib.sha256(onnx_path.read_bytes()).hexdigest()
    save_checkpoint(path, weights, replace(description, onnx_sha256=digest), golden)
    onnx.checker.check_model(onnx_path)  # by path, so that the external weights are checked, too


def ensure_onnx(checkpoint: Checkpoint, directory: Path) -> Path:
    """The ONNX file beside a checkpoint if it can be used, else one exported into the cache folder `directory`, named
    by the digest of its cache key."""
    if checkpoint.onnx_problem() is None:
        return checkpoint.onnx_path
    source = f"{EXPORTER} {checkpoint.weights_sha256} {checkpoint.description.to_json()}"
    path = directory / f"{checkpoint.description.model}-{hashlib.sha256(source.encode()).hexdigest()[:32]}.onnx"
    if not path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        write_onnx(load_network(checkpoint), path)
    return path


def golden_frame(network: DeployedNetwork) -> dict[str, np.ndarray]:
    """A smooth coloured frame [H, W, 3] uint8 with its depth and, if `network` has a confidence head, its confidence
    [H, W], computed by `network` in float32 PyTorch."""
    h, w = GOLDEN_SIZE
    v, u = np.mgrid[0:h, 0:w]
    waves = [np.sin(u / 9 + phase) * np.cos(v / 7 - phase) + 0.5 * np.sin((u * v) / 211) for phase in (0.0, 1.3, 2.6)]
    image = np.clip(127 + 80 * np.stack(waves, -1), 0, 255).astype(np.uint8)
    with torch.inference_mode():
        depth, _, *confidence = DepthGraph(network)(
            torch.from_numpy(image), torch.eye(3), torch.ones(1), torch.tensor([0.0, torch.inf])
        )
    golden = {"image": image, "depth": depth.numpy()}
    if confidence:
        golden["confidence"] = confidence[0].numpy()
    return golden


def write_onnx(
    network: DeployedNetwork,
    path: Path,
    weights_file: str = "",
    places: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> None:
    """Export `ShapeCarriedGraph` with dynamic sizes. Weights are stored in half precision; arithmetic is float32.

    Args:
        weights_file: name of a file in the same folder that holds the weights in half precision already.
        places: (offset, length) in bytes of the network's tensors in that file, by name. The ONNX file refers to them
            (external data). Tensors without a place are stored in the ONNX file.
    """
    h, w = GOLDEN_SIZE
    outputs = ["depth", "points"] + (["confidence"] if network.confidence is not None else [])
    inputs = (
        torch.zeros(h, w, 3, dtype=torch.uint8),
        torch.eye(3),
        torch.ones(1),
        torch.tensor([0.1, 100.0]),
        torch.zeros(2 * h, 2 * w, dtype=torch.uint8),
    )
    with warnings.catch_warnings():
        # The tracing exporter (dynamo=False) keeps the sizes of the skip connections symbolic. The newer one cannot
        # prove that ceil(ceil(h/2)/2) in the encoder equals the interpolation target for every h.
        warnings.simplefilter("ignore")
        write_atomically(
            path,
            lambda part: torch.onnx.export(
                ShapeCarriedGraph(network).eval(),
                inputs,
                part,
                dynamo=False,
                opset_version=18,
                input_names=["image", "intrinsics", "scale", "limits", "output_grid"],
                output_names=outputs,
                dynamic_axes={
                    "image": {0: "height", 1: "width"},
                    "output_grid": {0: "output_height", 1: "output_width"},
                    **{name: {0: "output_height", 1: "output_width"} for name in outputs},
                },
            ),
        )
    model = _with_half_weights(onnx.load(path), weights_file, places)
    write_atomically(path, lambda part: onnx.save(model, part))


def _with_half_weights(
    model: onnx.ModelProto, weights_file: str, places: Mapping[str, tuple[int, int]]
) -> onnx.ModelProto:
    """Store large float32 initializers as float16 and a Cast, or refer to their float16 values in `weights_file`.

    Results do not change: only values that float16 holds exactly are replaced."""
    casts = []
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype != np.float32 or value.size < 64 or not np.array_equal(value.astype(np.float16), value):
            continue
        name = tensor.name
        half = onnx.numpy_helper.from_array(value.astype(np.float16), f"{name}.half")
        offset, length = places.get(name.removeprefix("network."), (0, 0))
        if length == value.size * 2:
            onnx.external_data_helper.set_external_data(half, weights_file, offset, length)
            half.ClearField("raw_data")
        tensor.CopyFrom(half)
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = casts + list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
