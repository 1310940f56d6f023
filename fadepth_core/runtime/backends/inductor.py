"""Backend "inductor": torch.compile on a CUDA device, the fastest where TensorRT is not installed.

Inductor merges the operations between the convolutions. Its own CUDA graphs stay off, because `static.py` captures the
whole frame as one.
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
    """
    import torch

    with torch.no_grad():
        # Exported first, so that each graph has a code object of its own: torch.compile compiles one only eight times.
        exported = torch.export.export(graph, graph.example_inputs(camera_size, batch)).module()
    return torch.compile(exported, fullgraph=True, dynamic=False)


BACKEND = BackendType(unavailable_reason, torch_backend.precisions, create, compiled_per_size=True)
