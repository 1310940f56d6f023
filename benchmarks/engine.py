#!/usr/bin/env python3
"""Measures the time of one frame in every backend on this machine: SmallDepth plain and fused, and a ResNet-18 network.

The whole `DepthGraph` is measured: its input is a uint8 image at the network's size, its outputs are depth and points in host
memory. The candidates take turns frame by frame, so that changes of the machine's speed affect all of them equally. A second
table compares the fused network's frames per second one at a time and streamed (`DepthEngine.stream`). ResNet-18 comes from
timm, in the extra `train`.

    python benchmarks/engine.py                         128x416, 200 frames each
    python benchmarks/engine.py --size 192x640 --threads 1 --frames 500
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fadepth_core.common.framing import Framing
from fadepth_core.models import build_model
from fadepth_core.models.complexity import complexity
from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import Backend, BackendSpec, FrameInput, default_threads
from fadepth_core.runtime.backends.openvino import OpenVINOBackend
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.export import write_onnx
from fadepth_core.runtime.graph import DepthGraph

K = np.array([[200.0, 0, 200], [0, 200, 60], [0, 0, 1]], np.float32)
#: Runs one image [H, W, 3].
Candidate = Callable[[np.ndarray], object]


class _Plain(torch.nn.Module):
    """A training-form network with the output that the graph needs: its finest disparity."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network, self.min_depth, self.max_depth = network, network.min_depth, network.max_depth

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image).disparities[0]


def eager(network: torch.nn.Module, device: str = "cpu") -> Candidate:
    graph = DepthGraph(network.eval()).to(device)
    others = (torch.from_numpy(K), torch.ones(1), torch.tensor([0.1, 100.0]))
    others = [tensor.to(device) for tensor in others]

    @torch.inference_mode()
    def run(image: np.ndarray):
        depth, points, *_ = graph(torch.from_numpy(image).to(device), *others)
        return depth.cpu(), points.cpu()

    return run


class _GraphFile:
    """Replaces a checkpoint: the OpenVINO backend uses only its graph file."""

    def __init__(self, path: Path):
        self.onnx_path = self.int8_path = path

    def onnx_problem(self) -> None:
        return None

    int8_problem = onnx_problem


def openvino(
    network: torch.nn.Module, framing: Framing, precision: str, threads: int, directory: Path
) -> OpenVINOBackend:
    path = directory / f"{len(list(directory.iterdir()))}.onnx"
    write_onnx(network, path)
    if precision == "int8":
        from fadepth_core.runtime.quantize import quantize_graph

        # Noise is enough, because the speed of a graph does not depend on its scales.
        noise = np.random.default_rng(1).integers(0, 256, (4, *framing.network_size, 3), dtype=np.uint8)
        path.write_bytes(quantize_graph(path.read_bytes(), noise))
    return OpenVINOBackend(BackendSpec(_GraphFile(path), framing, precision, threads))


def openvino_precisions() -> tuple[str, ...]:
    """The precisions that this processor and the installed packages support."""
    import openvino as ov

    found = ["fp32"]
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found.append("bf16")
    if importlib.util.find_spec("nncf") is None:
        print("no int8: NNCF makes its graphs, pip install 'fadepth_ros[quantize]'")
    else:
        found.append("int8")
    return tuple(found)


def frame(image: np.ndarray) -> FrameInput:
    return FrameInput(image, K, limits=(0.1, 100.0))


def backend_run(backend: Backend) -> Candidate:
    return lambda image: backend.infer(frame(image))


def measure(candidates: dict[str, Candidate], image: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Milliseconds per frame, [frames] for each, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(frames + 20):
        for name, run in candidates.items():
            start = time.perf_counter()
            run(image)
            if turn >= 20:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(values) for name, values in times.items()}


def stream_rates(backend: OpenVINOBackend, image: np.ndarray, frames: int) -> tuple[float, float]:
    """Frames per second one at a time and streamed, measured in turns of 20 frames."""
    frames_of_a_turn = [frame(image)] * 20
    seconds = np.zeros(2)
    for turn in range(-1, max(1, frames // 20)):
        for streamed in (0, 1):
            start = time.perf_counter()
            if streamed:
                for _ in backend.stream(frames_of_a_turn):
                    pass
            else:
                for one in frames_of_a_turn:
                    backend.infer(one)
            if turn >= 0:  # the first compiles
                seconds[streamed] += time.perf_counter() - start
    return tuple(20 * max(1, frames // 20) / seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="128x416", help="network's height x width, multiples of 32")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: the node's default")
    parser.add_argument("--frames", type=int, default=200)
    args = parser.parse_args()
    size = tuple(int(side) for side in args.size.split("x"))
    threads = args.threads or default_threads()
    torch.set_num_threads(threads)
    framing = Framing.plan(size, size)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)

    torch.manual_seed(0)
    plain = build_model("smalldepth").eval()
    fused, resnet = plain.fuse(), build_model("resnet18").fuse()
    reference, baseline = "torch eager, plain", "openvino fp32, ResNet-18"
    candidates: dict[str, Candidate] = {
        reference: eager(_Plain(plain)),
        "torch eager, fused": eager(fused),
        "torch eager, ResNet-18": eager(resnet),
    }
    if torch.cuda.is_available():
        candidates["torch cuda, fused"] = eager(fused, "cuda")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        streaming: dict[str, OpenVINOBackend] = {}
        for precision in openvino_precisions():
            for name, network in (("plain", _Plain(plain)), ("fused", fused), ("ResNet-18", resnet)):
                backend = openvino(network, framing, precision, threads, folder)
                candidates[f"openvino {precision}, {name}"] = backend_run(backend)
                if name == "fused":
                    streaming[precision] = backend
        for name in backends.NAMES:
            backend_type = backends.backend_type(name)
            if backend_type.unavailable_reason() is None:
                spec = BackendSpec(Checkpoint(), framing, backend_type.precisions()[0], threads)
                candidates[f"node's backend '{name}'"] = backend_run(backend_type.create(spec))
        times = measure(candidates, image, args.frames)
        rates = {precision: stream_rates(backend, image, args.frames) for precision, backend in streaming.items()}

    counts = complexity(fused, (1, 3, *size)), complexity(resnet, (1, 3, *size))
    print(
        f"{platform.processor() or platform.machine()}, {threads} threads, torch {torch.__version__}, openvino {importlib.metadata.version('openvino')}"
    )
    print(f"image {args.size} in, depth and points out; {args.frames} interleaved frames each")
    for name, count in zip(("SmallDepth, fused", "ResNet-18"), counts, strict=True):
        print(f"  {name}: {count.parameters / 1e6:.2f} M parameters, {count.operations / 1e9:.3f} G operations")
    print(f"{'':<28}{'median ms':>11}{'p99 ms':>9}{'frames/s':>10}{'x eager':>9}{'x ResNet-18':>13}")
    for name, values in times.items():
        median = np.median(values)
        against = [np.median(times[other]) / median for other in (reference, baseline)]
        print(
            f"{name:<28}{median:>11.2f}{np.quantile(values, 0.99):>9.2f}{1e3 / median:>10.0f}"
            f"{against[0]:>9.2f}{against[1]:>13.2f}"
        )
    print(f"{'fused, frames/s':<28}{'one at a time':>14}{'streamed':>10}")
    for precision, (alone, streamed) in rates.items():
        print(f"openvino {precision:<19}{alone:>14.0f}{streamed:>10.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
