"""What networks cost: learnable parameters and multiply-accumulates, and the operations of the paper's complexity table.

The table counts multiply-accumulates of convolutions + one per bias addition + two per BatchNorm output + one per ReLU
output (a ResNet-18 depth net counted so gives the printed 1.93 + 1.55 G).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fadepth_core.models.layers.context import SelfAttention
from fadepth_core.models.layers.etm import ETMConv2d


@dataclass(frozen=True)
class Complexity:
    """Of one forward pass.

    Attributes:
        parameters: learnable ones.
        multiply_accumulates: of convolutions, linear maps and the two matrix products of attention.
        operations: the paper's count.
    """

    parameters: int
    multiply_accumulates: int
    operations: int


def parameter_count(modules: Iterable[nn.Module]) -> int:
    """Number of distinct learnable parameters in `modules`."""
    return sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters()}.values())


@torch.no_grad()
def complexity(model: nn.Module, input_shape: tuple[int, ...], parts: Iterable[nn.Module] | None = None) -> Complexity:
    """Count `model` on an input of `input_shape` ([1, 3, H, W]); with `parts`, only what runs inside those modules."""
    parts = [model] if parts is None else list(parts)
    multiply_accumulates = operations = 0

    def hook(module, inputs, output):
        nonlocal multiply_accumulates, operations
        products = 0
        if isinstance(module, (nn.Conv1d, nn.Conv2d, ETMConv2d)):
            products = output.numel() * math.prod(module.kernel_size) * module.in_channels // module.groups
            operations += products + (output.numel() if module.bias is not None else 0)
        elif isinstance(module, nn.Linear):
            products = output.numel() * module.in_features
        elif isinstance(module, SelfAttention):
            batch, tokens, width = inputs[0].shape
            products = 2 * batch * tokens**2 * width
        elif isinstance(module, nn.BatchNorm2d):
            operations += 2 * output.numel()
        elif isinstance(module, nn.ReLU):
            operations += output.numel()
        multiply_accumulates += products

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
    return Complexity(parameter_count(parts), multiply_accumulates, operations)
