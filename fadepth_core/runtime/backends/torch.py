"""Backend "torch": PyTorch without a compiler. On a CPU it is the reference; on a CUDA device it serves until a compiled
backend is ready.

On CUDA the graph is captured once and replayed (`static.py`), which removes the cost of launching hundreds of kernels
from Python. The compiled backends are faster because they merge kernels.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import (
    Backend,
    BackendSpec,
    BackendType,
    FrameInput,
    FrameOutput,
    default_threads,
)

if TYPE_CHECKING:
    from fadepth_core.runtime.graph import DepthGraph


def unavailable_reason() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "the package torch is not installed: pip install 'fadepth_ros[gpu]'"
    return None


def precisions() -> tuple[str, ...]:
    import torch

    return ("fp16", "fp32") if torch.cuda.is_available() else ("fp32",)


def create(spec: BackendSpec) -> Backend:
    import torch

    from fadepth_core.runtime.backends.static import StaticBackend

    if torch.cuda.is_available():
        graph = cuda_graph(spec)
        return StaticBackend(lambda _batch: graph, spec, torch.device("cuda"))
    threads = spec.threads or default_threads()
    torch.set_num_threads(threads)
    # The engine resizes frames before: OpenCV needs a tenth of PyTorch's time.
    graph = reference_graph(spec, spec.framing.at_network())
    return StaticBackend(lambda _batch: graph, spec, torch.device("cpu"), f"CPU, {threads} threads")


def cuda_graph(spec: BackendSpec) -> DepthGraph:
    """The `DepthGraph` of a spec on the CUDA device, in the precision of the spec."""
    import torch

    from fadepth_core.runtime.graph import DepthGraph
    from fadepth_core.runtime.network import load_network

    # torch's declaration of `to` lacks this form.
    network = load_network(spec.checkpoint).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[spec.precision]
    return DepthGraph(network, spec.framing, dtype).to("cuda").eval()


def reference_graph(spec: BackendSpec, framing: Framing) -> DepthGraph:
    """The `DepthGraph` in float32 on the CPU, with which the other backends are compared."""
    import torch

    from fadepth_core.runtime.graph import DepthGraph
    from fadepth_core.runtime.network import load_network

    # torch's declaration of `to` lacks this form.
    network = load_network(spec.checkpoint).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return DepthGraph(network, framing).eval()


def reference_depth(spec: BackendSpec, image: np.ndarray) -> np.ndarray:
    """Depth [h, w] in metres of an image [H, W, 3] at the camera's size, computed by `reference_graph`."""
    return reference_output(spec, FrameInput(image)).depth


def reference_output(spec: BackendSpec, frame: FrameInput) -> FrameOutput:
    """Depth, and confidence if the network has it, of a frame at the camera's size, computed by `reference_graph`. Its
    scale, limits and intrinsics are not used."""
    import torch

    with torch.inference_mode():
        limits = torch.tensor([0.0, torch.inf])
        graph = reference_graph(spec, spec.framing)
        depth, _, *confidence = graph(torch.from_numpy(frame.image), torch.eye(3), torch.ones(1), limits)
        return FrameOutput(depth.numpy(), None, confidence[0].numpy() if confidence else None)


BACKEND = BackendType(unavailable_reason, precisions, create, compiled_per_size=False)
