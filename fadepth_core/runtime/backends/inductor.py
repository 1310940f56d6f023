"""Backend "inductor": torch.compile on a CUDA device, the fastest where TensorRT is not installed.

Inductor merges the operations between the convolutions. Depthwise filters are written as sums, so that it merges these, too
(`compile_graph`). Its own CUDA graphs stay off, because `static.py` captures the whole frame as one.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from fadepth_core.runtime.backends import Backend, BackendSpec, BackendType
from fadepth_core.runtime.backends import torch as torch_backend

if TYPE_CHECKING:
    from fadepth_core.runtime.backends.static import Compute
    from fadepth_core.runtime.graph import DepthGraph


def unavailable_reason() -> str | None:
    if reason := torch_backend.unavailable_reason():
        return reason
    import torch

    if not torch.cuda.is_available():
        return "there is no CUDA device, or this torch is not built for it"
    if importlib.util.find_spec("triton") is None:
        return "the package triton, with which torch.compile makes kernels, is not installed"
    return None


def create(spec: BackendSpec) -> Backend:
    import torch

    from fadepth_core.runtime.backends.static import StaticBackend

    spec.logger.info("compiling with torch.compile; this takes a minute or two at the first start")
    graph = torch_backend.cuda_graph(spec)
    camera_size = spec.framing.camera_size
    # One compilation for each batch size: kernels for fixed sizes are faster.
    return StaticBackend(lambda batch: compile_graph(graph, camera_size, batch), spec, torch.device("cuda"))


def compile_graph(graph: DepthGraph, camera_size: tuple[int, int], batch: int) -> Compute:
    """Compile a `DepthGraph` in evaluation mode for a batch of frames of `camera_size` (height, width).

    The compilation itself happens in the first call.

    For the compiler a convolution is a call of a library, with a kernel of its own before and after it. A depthwise filter
    written as a sum is arithmetic like the ReLU, the addition and the interpolation around it, and becomes one kernel with
    them. On an H100 a frame of 128x416 thus takes 73 instead of 116 kernels and copies, and 0.20 instead of 0.29 ms. The price
    is a longer compilation, because the sums have many operations.
    """
    import torch

    from fadepth_core.models.layers.depthwise_sum import with_depthwise_sums

    graph = with_depthwise_sums(graph)
    with torch.no_grad():
        # Exported first, so that each graph has a code object of its own: torch.compile compiles one only eight times.
        exported = torch.export.export(graph, graph.example_inputs(camera_size, batch)).module()
    return torch.compile(exported, fullgraph=True, dynamic=False)


BACKEND = BackendType(unavailable_reason, torch_backend.precisions, create, compiled_per_size=True)
