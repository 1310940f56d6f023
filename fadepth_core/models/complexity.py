"""Counts as the paper's complexity table makes them: convolution multiply-accumulates + one per bias addition + two per
BatchNorm output + one per ReLU output (a ResNet-18 depth net counted so gives the printed 1.93 + 1.55 G)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fadepth_core.models.layers.etm import ETMConv2d


@dataclass(frozen=True)
class Complexity:
    """Learnable parameters and operations of one forward pass."""

    parameters: int
    operations: int


def parameter_count(modules: Iterable[nn.Module]) -> int:
    """Number of distinct learnable parameters in `modules`."""
    return sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters()}.values())


@torch.no_grad()
def complexity(model: nn.Module, input_shape: tuple[int, ...], parts: Iterable[nn.Module] | None = None) -> Complexity:
    """Count `model` on an input of `input_shape` ([1, 3, H, W]); with `parts`, only what runs inside those modules."""
    parts = [model] if parts is None else list(parts)
    operations = 0

    def hook(module, _inputs, output):
        nonlocal operations
        if isinstance(module, (nn.Conv2d, ETMConv2d)):
            kh, kw = module.kernel_size
            operations += output.numel() * kh * kw * module.in_channels // module.groups
            operations += output.numel() if module.bias is not None else 0
        elif isinstance(module, nn.BatchNorm2d):
            operations += 2 * output.numel()
        elif isinstance(module, nn.ReLU):
            operations += output.numel()

    leaves = {leaf for part in parts for leaf in part.modules()}
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    was_training = model.training
    try:
        parameter = next(model.parameters())
        model.eval()(torch.zeros(input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return Complexity(parameter_count(parts), operations)
