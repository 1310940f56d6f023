"""Backend "inductor": torch.compile on a CUDA device, the fastest where TensorRT is not installed.

Inductor merges the operations between the convolutions. Depthwise filters are written as sums, so that it merges these, too
(`FORMS`). Its own CUDA graphs stay off, because `static.py` captures the whole frame as one.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True)
class Form:
    """How the graph is written for the compiler.

    Attributes:
        depthwise_sums: depthwise filters as sums of shifted images.
        arithmetic: nearly everything as sums and products (`runtime.decompositions`), so that no library is called.
        options: options of torch.compile; None for its defaults.
    """

    depthwise_sums: bool = False
    arithmetic: bool = False
    options: dict[str, Any] | None = None


#: Options with which Inductor merges `decompositions.ARITHMETIC` as intended. With all of them a frame of SmallDepth takes 57
#: kernels. In brackets: how many without this one.
_MERGE = {
    # Products of matrices become kernels of Triton, with what is before and after them (88).
    "triton.native_matmul": True,
    # Nothing is stored in the middle of a sum of 25 images (65 and 61).
    "realize_opcount_threshold": 1000,
    "realize_acc_reads_threshold": 1000,
    # What the elements of a filter share, such as the ReLU before it, is computed once for all (54, with repeated work).
    "realize_reads_threshold": 1,
    # Makes the orders of a product, [pixels, C], and of an image, [h, w, C], comparable (61).
    "loop_ordering_after_fusion": False,
}
#: A kernel starts before the one before it has ended (compute capability 9.0).
_OVERLAP = {"triton.enable_pdl": True}

#: Only "sums" is used by the backend. Those below it have not run on a GPU yet: `benchmarks/gpu.py --sections forms` compares all.
FORMS = {
    "convolutions": Form(),
    "sums": Form(depthwise_sums=True),
    "arithmetic": Form(arithmetic=True, options=_MERGE),
    "overlapped": Form(arithmetic=True, options={**_MERGE, **_OVERLAP}),
    # Kernels that do not need each other become one.
    "combined": Form(arithmetic=True, options={**_MERGE, **_OVERLAP, "combo_kernels": True}),
    # Sizes of blocks are tried, which takes long.
    "tuned": Form(arithmetic=True, options={**_MERGE, **_OVERLAP, "coordinate_descent_tuning": True}),
}


def compile_graph(graph: DepthGraph, camera_size: tuple[int, int], batch: int, form: str = "sums") -> Compute:
    """Compile a `DepthGraph` in evaluation mode for a batch of frames of `camera_size` (height, width).

    The compilation itself happens in the first call.

    For the compiler a convolution is a call of a library, with a kernel of its own before and after it. A depthwise filter
    written as a sum is arithmetic like the ReLU, the addition and the interpolation around it, and becomes one kernel with
    them. On an H100 a frame of 128x416 thus takes 73 instead of 116 kernels and copies, and 0.20 instead of 0.29 ms. The price
    is a longer compilation, because the sums have many operations.

    Args:
        form: a name in `FORMS`.
    """
    import torch

    from fadepth_core.models.layers.depthwise_sum import with_depthwise_sums
    from fadepth_core.runtime.decompositions import ARITHMETIC

    how = FORMS[form]
    if how.depthwise_sums or how.arithmetic:
        graph = _with_weights_by_tap(graph)
    if how.depthwise_sums:
        graph = with_depthwise_sums(graph)
    with torch.no_grad():
        # Exported first, so that each graph has a code object of its own: torch.compile compiles one only eight times.
        exported = torch.export.export(graph, graph.example_inputs(camera_size, batch))
        if how.arithmetic:
            exported = exported.run_decompositions(ARITHMETIC)
    return torch.compile(exported.module(), fullgraph=True, dynamic=False, options=how.options)


def _with_weights_by_tap(graph: DepthGraph) -> DepthGraph:
    """A copy in whose memory the weights of depthwise filters are in the order [kh, kw, C].

    In a sum of shifted images neighbouring threads have neighbouring channels. In this order they read their weights at once:
    filters at full resolution have 49 instead of 73 to 121 loads a thread (machine code for compute capability 9.0).
    """
    import torch

    from fadepth_core.models.layers.depthwise_sum import DepthwiseSum

    graph = copy.deepcopy(graph)
    for module in graph.modules():
        if isinstance(module, torch.nn.Conv2d) and DepthwiseSum.replaces(module):
            module.weight.data = module.weight.data.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    return graph


BACKEND = BackendType(unavailable_reason, torch_backend.precisions, create, compiled_per_size=True)
