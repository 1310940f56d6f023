"""PyTorch without a compiler: the reference on a CPU; on a CUDA device, what serves until a compiled backend is ready.

On CUDA the graph is captured once and replayed (`static.py`), so what is lost to the compiled backends is kernels that are
not merged, not the launching of hundreds of them from Python.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import Backend, BackendSpec, default_threads

ANY_SIZE = True


def unavailable_reason() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "the package torch is not installed: pip install 'fadepth_ros[gpu]'"
    return None


def precisions() -> tuple[str, ...]:
    import torch

    return ("fp16", "fp32") if torch.cuda.is_available() else ("fp32",)


def create(job: BackendSpec) -> Backend:
    import torch

    from fadepth_core.runtime.backends.static import static_backend

    if torch.cuda.is_available():
        captured = cuda_graph(job)
        return static_backend(lambda _batch: captured, job, torch.device("cuda"))
    threads = job.threads or default_threads()
    torch.set_num_threads(threads)
    # The resize is left to OpenCV, which takes a tenth of the time.
    graph = reference_graph(job, job.framing.at_network())
    return static_backend(lambda _batch: graph, job, torch.device("cpu"), f"CPU, {threads} threads")


def cuda_graph(job: BackendSpec):
    """The DepthGraph of a job on the CUDA device, in the job's precision."""
    import torch

    from fadepth_core.runtime.graph import DepthGraph
    from fadepth_core.runtime.network import load_network

    network = load_network(job.checkpoint).to("cuda", memory_format=torch.channels_last)
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[job.precision]
    return DepthGraph(network, job.framing, dtype).to("cuda").eval()


def reference_graph(job: BackendSpec, framing: Framing):
    """The DepthGraph on the CPU in float32, what every other backend is compared with."""
    import torch

    from fadepth_core.runtime.graph import DepthGraph
    from fadepth_core.runtime.network import load_network

    return DepthGraph(load_network(job.checkpoint).to(memory_format=torch.channels_last), framing).eval()


def reference_depth(job: BackendSpec, image: np.ndarray) -> np.ndarray:
    """Depth [h, w] in metres that the reference gives for a frame [H, W, 3] of the job's camera."""
    import torch

    with torch.inference_mode():
        limits = torch.tensor([0.0, torch.inf])
        graph = reference_graph(job, job.framing)
        return graph(torch.from_numpy(image), torch.eye(3), torch.ones(1), limits)[0].numpy()
