"""Complexity of networks: parameters, multiply-accumulates, and the counts of the paper's Table IV.

Table IV counts as torchstat (github.com/Swall0w/torchstat) does:

* Operations ("FLOPs"): the multiply-accumulates of convolutions and linear layers, plus one per bias addition, two per
  BatchNorm output, one per input of a pooling and one per output of a ReLU or ELU.
* Memory access ("MAC(M)"): 4 bytes for each value that such a module reads, stores as a parameter, or writes.

A module that is called several times counts once. Other modules (hard swish, sigmoid, padding, interpolation,
attention) do not count. The decoder includes all three heads. With these rules the counts of the networks in
`baselines.py` equal the printed ones in every digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fadepth_core.models.layers.context import SelfAttention
from fadepth_core.models.layers.etm import ETMConv2d

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.PReLU, nn.ELU, nn.LeakyReLU)
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d)
_COUNTED = (nn.Conv2d, ETMConv2d, nn.Linear, nn.BatchNorm2d, *_ACTIVATIONS, *_POOLINGS)


@dataclass(frozen=True)
class Complexity:
    """Cost of one forward pass.

    Attributes:
        parameters: number of learnable parameters.
        multiply_accumulates: of convolutions, linear layers and the two matrix products of attention; every call
            counts.
        operations: counted by the rules of Table IV, see above.
        memory_access: bytes, counted by the rules of Table IV, see above.
    """

    parameters: int
    multiply_accumulates: int
    operations: int
    memory_access: int


@dataclass(frozen=True)
class PrintedComplexity:
    """The printed figures of one network at 128×416, as text. Encoder and decoder: Table IV; totals: Table I."""

    blocks: str = ""
    parameters: tuple[str, str] = ("", "")  # M, encoder and decoder
    operations: tuple[str, str] = ("", "")  # G
    memory_access: tuple[str, str] = ("", "")  # MB
    total_parameters: str = ""  # M
    total_operations: str = ""  # G


#: The paper's figures, by the names of `MODELS`.
PRINTED = {
    "smalldepth": PrintedComplexity("6", ("2.07", "0.28"), ("0.25", "0.17"), ("39.07", "54.5"), "2.35", "0.42"),
    "hqdecv2": PrintedComplexity(total_parameters="24.65", total_operations="3.90"),
    "resnet18": PrintedComplexity("8", ("11.18", "3.15"), ("1.93", "1.55"), ("103.07", "59.700")),
    "mobilenetv3": PrintedComplexity("15", ("2.82", "1.87"), ("0.23", "1.09"), ("105.477", "50.708")),
}


def parameter_count(modules: Iterable[nn.Module]) -> int:
    """Number of learnable parameters in `modules`. A parameter shared by several modules counts once."""
    return sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters()}.values())


@torch.no_grad()
def complexity(model: nn.Module, input_shape: tuple[int, ...], parts: Iterable[nn.Module] | None = None) -> Complexity:
    """Measure the cost of one forward pass of `model` in evaluation mode.

    Args:
        model: its training mode is the same afterwards.
        input_shape: shape of the input, e.g. (1, 3, H, W).
        parts: count only these modules of `model`; None: count all of them.
    """
    parts = [model] if parts is None else list(parts)
    multiply_accumulates = 0
    table: dict[nn.Module, tuple[int, int]] = {}  # operations and memory access, as the paper counts

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal multiply_accumulates
        products = _multiply_accumulates(module, inputs[0], output)
        multiply_accumulates += products
        if isinstance(module, _COUNTED):
            values = inputs[0].numel() + _stored_values(module) + output.numel()
            table[module] = products + _extra_operations(module, inputs[0], output), 4 * values

    counted = {module for part in parts for module in part.modules()}
    handles = [
        module.register_forward_hook(count)
        for module in counted
        if isinstance(module, (*_COUNTED, nn.Conv1d, SelfAttention))
    ]
    was_training = model.training
    try:
        parameter = next(model.parameters())
        model.eval()(torch.zeros(input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    operations, memory_access = (sum(column) for column in zip(*table.values(), strict=True))
    return Complexity(parameter_count(parts), multiply_accumulates, operations, memory_access)


def _multiply_accumulates(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Multiply-accumulates of one call of `module` with input `x`; 0 for modules without matrix products."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, ETMConv2d)):
        return output.numel() * math.prod(module.kernel_size) * module.in_channels // module.groups
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, SelfAttention):
        batch, tokens, width = x.shape
        return 2 * batch * tokens**2 * width
    return 0


def _extra_operations(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """The operations of Table IV other than multiply-accumulates."""
    if isinstance(module, (nn.Conv2d, ETMConv2d)):
        return output.numel() if module.bias is not None else 0
    if isinstance(module, nn.BatchNorm2d):
        return 2 * output.numel()
    if isinstance(module, _ACTIVATIONS):
        return output.numel()
    return x.numel() if isinstance(module, _POOLINGS) else 0


def _stored_values(module: nn.Module) -> int:
    """Number of parameters of a module. An ETM counts as the plain convolution it is merged to."""
    if isinstance(module, ETMConv2d):
        kernel = module.out_channels * module.in_channels // module.groups * math.prod(module.kernel_size)
        return kernel + (0 if module.bias is None else module.out_channels)
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))
