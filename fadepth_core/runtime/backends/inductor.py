"""torch.compile on a CUDA device: what makes a plain PyTorch installation fast where TensorRT is not installed.

Inductor merges everything between the convolutions; the result is captured as one CUDA graph like every other's
(`static.py`), so its own CUDA graphs stay off.
"""

from __future__ import annotations

import importlib.util

from fadepth_core.runtime.backends import Backend, BackendSpec
from fadepth_core.runtime.backends import torch as eager

ANY_SIZE = False


def unavailable_reason() -> str | None:
    if reason := eager.unavailable_reason():
        return reason
    import torch

    if not torch.cuda.is_available():
        return "there is no CUDA device, or this torch is not built for it"
    if importlib.util.find_spec("triton") is None:
        return "the package triton, with which torch.compile makes kernels, is not installed"
    return None


precisions = eager.precisions


def create(job: BackendSpec) -> Backend:
    import torch

    from fadepth_core.runtime.backends.static import static_backend

    job.logger.info("compiling with torch.compile; this takes a minute or two at the first start")
    graph = eager.cuda_graph(job)
    # One compilation a batch size: sizes that are fixed make better kernels.
    return static_backend(lambda _batch: torch.compile(graph, fullgraph=True, dynamic=False), job, torch.device("cuda"))
