"""Helpers for the tests of the depth networks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import openvino as ov
import torch

from fadepth_core.geometry import disparity_to_depth
from fadepth_core.runtime.graph import ShapeCarriedGraph


def as_trained(network: torch.nn.Module, batches: Iterable[torch.Tensor]) -> torch.nn.Module:
    """The network in evaluation mode, with BatchNorm statistics of `batches` and random BatchNorm weights and biases."""
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


def as_trained_on_noise(
    network: torch.nn.Module, dtype: torch.dtype = torch.float32, batches: int = 4
) -> torch.nn.Module:
    """`as_trained` on `batches` batches of noise, in precision `dtype`."""
    torch.manual_seed(1)
    return as_trained(network.to(dtype), (torch.randn(2, 3, 64, 96, dtype=dtype) for _ in range(batches)))


def relative_depth_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest relative difference of the depths of two disparity maps."""
    return (1 - disparity_to_depth(b) / disparity_to_depth(a)).abs().max().item()


def assert_start_depth(network: torch.nn.Module, images: torch.Tensor) -> None:
    """After `set_start_depth(8.0)` an untrained network predicts about 8 m at every scale."""
    network.set_start_depth(8.0)
    with torch.no_grad():
        disparities = network(images).disparities
    for x in disparities:
        depth = disparity_to_depth(x).log().mean().exp().item()
        assert 8 / 3 < depth < 8 * 3, "random features change it, but not to 0.2 m, the middle of the disparity range"


def exported_depths(fused: torch.nn.Module, onnx: Path, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H, W] of an image, uint8 [H, W, 3]: from PyTorch, and from the exported graph in OpenVINO."""
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
