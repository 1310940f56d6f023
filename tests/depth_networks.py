"""What is checked of every depth network, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import openvino as ov
import torch

from fadepth_core.models.layers.head import disparity_to_depth
from fadepth_core.runtime.graph import ShapeCarriedGraph


def as_trained(network: torch.nn.Module, batches: Iterable[torch.Tensor]) -> torch.nn.Module:
    """In evaluation mode, with BatchNorm statistics of `batches` and affine parameters that are not those of the start."""
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        for images in batches:
            network(images)
    return network.eval()


def assert_answers_about_8_metres(network: torch.nn.Module, images: torch.Tensor) -> None:
    """An untrained network after `set_start_depth(8.0)`, at every scale."""
    network.set_start_depth(8.0)
    with torch.no_grad():
        disparities = network(images).disparities
    for x in disparities:
        depth = disparity_to_depth(x).log().mean().exp().item()
        assert 8 / 3 < depth < 8 * 3, "random features move it, but not to the 0.2 m of the range's middle"


def exported_depths(fused: torch.nn.Module, onnx: Path, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H, W] of an image, uint8 [H, W, 3]: by PyTorch, and by the exported graph in OpenVINO."""
    size = image.shape[:2]
    inputs = {
        "image": image,
        "intrinsics": np.eye(3, dtype=np.float32),
        "scale": np.ones(1, np.float32),
        "limits": np.array([0, np.inf], np.float32),
        "output_grid": np.zeros(size, np.uint8),
    }
    with torch.no_grad():
        expected = ShapeCarriedGraph(fused)(*(torch.from_numpy(value) for value in inputs.values()))[0].numpy()
    model = ov.Core().read_model(onnx)
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    compiled = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return expected, compiled(inputs)["depth"]
