#!/usr/bin/env python3
"""Measures inference on a machine with a GPU and writes a report in Markdown: speed, parts of a frame, limits of the GPU.

Measured are all backends on this machine, with SmallDepth and with a ResNet-18 depth network. Inputs are uint8 frames at the
network's size in host memory, outputs depth and points in host memory. Candidates of one size and batch take turns. The last
section runs the node with real topics. If this machine cannot run a section, the report gives the reason. ResNet-18 comes from
timm, in the extra `train`.

    python benchmarks/gpu.py                                   a few minutes, besides compilation
    python benchmarks/gpu.py --sizes 128x416 --batches 1 --frames 50
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import engine as engine_benchmark
import node as node_benchmark
from fadepth_core.common.framing import Framing
from fadepth_core.models import build_model
from fadepth_core.models.complexity import complexity
from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import Backend, BackendSpec, FrameInput, default_threads, tensorrt
from fadepth_core.runtime.backends.static import StaticBackend
from fadepth_core.runtime.graph import DepthGraph

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
K = np.array([[200.0, 0, 200], [0, 200, 60], [0, 0, 1]])
LIMITS = (0.1, 100.0)
PACKAGES = ("torch", "torch-tensorrt", "torch-tensorrt-rtx", "tensorrt", "tensorrt-rtx", "openvino", "numpy")


# ------------------------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class Candidate:
    """One network in one backend, for one size and batch."""

    name: str
    backend: Backend
    batch: int

    def run(self, image: np.ndarray) -> object:
        frame = FrameInput(image, K, limits=LIMITS)
        return self.backend.infer(frame) if self.batch == 1 else self.backend.infer_batch(self.batch * [frame])


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"SmallDepth": build_model("smalldepth").fuse(), "ResNet-18": build_model("resnet18").fuse()}


def candidates(size: tuple[int, int], batch: int, folder: Path, problems: dict[str, str]) -> Iterator[Candidate]:
    """The candidates that run on this machine. Why the others do not is added to `problems`."""
    framing = Framing.plan(size, size)
    for label, network in networks().items():
        for name, precision in _variants():
            title = f"{name} {precision}, {label}"
            try:
                yield Candidate(title, _backend(name, precision, network, framing, batch, folder), batch)
            except Exception as error:  # the report is written without this row
                problems.setdefault(f"{title}, {size[0]}x{size[1]}, batch {batch}", f"{type(error).__name__}: {error}")


def _variants() -> list[tuple[str, str]]:
    found = []
    for name in ("tensorrt", "inductor", "torch", "openvino"):
        backend_type = backends.backend_type(name)
        if backend_type.unavailable_reason() is None:
            found += [(name, precision) for precision in backend_type.precisions() if precision != "int8"]
    return found


def _backend(name: str, precision: str, network: nn.Module, framing: Framing, batch: int, folder: Path) -> Backend:
    spec = BackendSpec(None, framing, precision, default_threads(), batch)
    if name == "openvino":
        if batch > 1:
            raise RuntimeError("does not run batches")
        return engine_benchmark.openvino(network, framing, precision, default_threads(), folder)
    graph = DepthGraph(copy.deepcopy(network), framing, DTYPES[precision]).to(DEVICE).eval()
    graph = graph.to(memory_format=torch.channels_last)

    def make(frames: int):
        if name == "tensorrt":
            return tensorrt.PlanRunner(tensorrt.compile_graph(graph, framing.camera_size, frames))
        if name == "inductor":
            return torch.compile(graph, fullgraph=True, dynamic=False)
        return graph

    return StaticBackend(make, spec, DEVICE, "" if CUDA else "CPU")


# ----------------------------------------------------------------------------------------------------------------- sections


def section_machine(_args) -> Iterator[str]:
    """Hardware and versions."""
    yield from _table(
        ("", ""),
        [
            ("date", date.today().isoformat()),
            ("GPU", torch.cuda.get_device_name() if CUDA else "none"),
            ("driver", _driver()),
            ("CPU", f"{_processor()}, {default_threads()} threads used"),
            ("Python", platform.python_version()),
            *((name, _version(name)) for name in PACKAGES),
        ],
    )


def section_engine(args) -> Iterator[str]:
    """Latency of one run, and frames per second, by size and batch."""
    problems: dict[str, str] = {}
    rows = []
    for size in args.sizes:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        for batch in args.batches:
            with tempfile.TemporaryDirectory() as folder:
                found = list(candidates(size, batch, Path(folder), problems))
                times = engine_benchmark.measure({c.name: c.run for c in found}, image, args.frames)
            best = {}
            for candidate in found:
                network = candidate.name.split(", ")[1]
                median = float(np.median(times[candidate.name]))
                best[network] = min(median, best.get(network, median))
            for candidate in found:
                ms = times[candidate.name]
                median = float(np.median(ms))
                rows.append(
                    (
                        f"{size[0]}x{size[1]}",
                        batch,
                        candidate.name,
                        f"{median:.3f}",
                        f"{np.quantile(ms, 0.99):.3f}",
                        f"{ms.max():.3f}",
                        f"{1e3 * batch / median:.0f}",
                        f"{best['ResNet-18'] / median:.2f}" if "ResNet-18" in best else "-",
                    )
                )
            del candidate
            found.clear()
            if CUDA:
                torch.cuda.empty_cache()
    heads = ("size", "batch", "backend and network", "median ms", "p99", "max", "frames/s", "x best ResNet-18")
    yield from _table(heads, rows)
    if problems:
        yield ""
        yield from (f"- {what}: not measured, {why}" for what, why in problems.items())


def section_shares(args) -> Iterator[str]:
    """Time of each part of one frame: 128x416, batch 1, the fastest backend."""
    _need_cuda()
    with tempfile.TemporaryDirectory() as folder:
        backend = next(candidates((128, 416), 1, Path(folder), {})).backend
    buffers = backend.single
    frame = FrameInput(np.zeros((128, 416, 3), np.uint8), K, limits=LIMITS)
    rows = []
    with torch.inference_mode():
        results = buffers.compute()
        parts = {
            "upload": buffers.upload,
            "compute": buffers.compute,
            "download": lambda: buffers.download(results, with_points=True),
        }
        for name, part in parts.items():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=buffers.cuda_stream):
                part()
            rows.append((name, f"{1e3 * _cuda_ms(graph.replay, buffers.cuda_stream, args.frames):.1f}"))

    launched, whole = [], []
    for _ in range(args.frames):
        begin = time.perf_counter()
        buffers.submit([frame])
        launched.append(time.perf_counter() - begin)
        buffers.collect([frame])
        whole.append(time.perf_counter() - begin)
    rows.append(("filling buffers and launching, on the host", f"{1e6 * np.median(launched):.1f}"))
    rows.append(("the whole frame, for the caller", f"{1e6 * np.median(whole):.1f}"))
    yield from _table(("part", "microseconds"), rows)


def section_stream(args) -> Iterator[str]:
    """Frames per second with two frames in flight, compared with one: 128x416."""
    image = np.random.default_rng(0).integers(0, 256, (128, 416, 3), dtype=np.uint8)
    frame = FrameInput(image, K, limits=LIMITS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for candidate in candidates((128, 416), 1, Path(folder), {}):
            backend = candidate.backend
            one, two = [], []
            for _ in range(5):  # taking turns
                begin = time.perf_counter()
                for _ in range(args.frames // 5):
                    backend.infer(frame)
                middle = time.perf_counter()
                for _ in backend.stream(frame for _ in range(args.frames // 5)):
                    pass
                one.append(middle - begin)
                two.append(time.perf_counter() - middle)
            counts = [args.frames // 5 / np.median(seconds) for seconds in (one, two)]
            rows.append((candidate.name, *(f"{count:.0f}" for count in counts), f"{counts[1] / counts[0]:.2f}"))
    yield from _table(("backend and network", "one: frames/s", "two: frames/s", "ratio"), rows)


def section_memory(_args) -> Iterator[str]:
    """Peak use of the GPU's memory: 128x416, batch 1."""
    _need_cuda()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        before = torch.cuda.mem_get_info()[0]
        torch.cuda.reset_peak_memory_stats()
        for candidate in candidates((128, 416), 1, Path(folder), {}):
            candidate.run(np.zeros((128, 416, 3), np.uint8))
            allocated, free = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[0]
            rows.append((candidate.name, f"{allocated / 2**20:.0f}", f"{(before - free) / 2**20:.0f}"))
            del candidate  # before the next one is made
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    yield from _table(("backend and network", "PyTorch's peak, MiB", "GPU memory taken since the start, MiB"), rows)


def section_energy(args) -> Iterator[str]:
    """Energy of one frame, from the GPU's own counter: 128x416, batch 1, the fastest backend."""
    _need_cuda()
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        joules = lambda: 1e-3 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # noqa: E731
        joules()
    except Exception as error:
        raise Skipped(f"NVML gives no energy: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        candidate = next(candidates((128, 416), 1, Path(folder), {}))
    image = np.zeros((128, 416, 3), np.uint8)
    begin, energy, count = time.perf_counter(), joules(), 0
    while time.perf_counter() - begin < 5:
        candidate.run(image)
        count += 1
    seconds, used = time.perf_counter() - begin, joules() - energy
    begin, energy = time.perf_counter(), joules()
    time.sleep(3)
    idle = (joules() - energy) / (time.perf_counter() - begin)
    yield from _table(
        ("", ""),
        [
            ("frames", count),
            ("watts while running", f"{used / seconds:.0f}"),
            ("watts idle, just after", f"{idle:.0f}"),
            ("millijoules per frame", f"{1e3 * used / count:.1f}"),
            ("millijoules per frame above idle", f"{1e3 * (used - idle * seconds) / count:.1f}"),
        ],
    )


def section_lower_bounds(args) -> Iterator[str]:
    """Limits of the GPU: operations and bytes of one frame against measured peak rates, 128x416, fp16."""
    _need_cuda()
    network = networks()["SmallDepth"]
    operations = 2 * complexity(network, (1, 3, 128, 416)).multiply_accumulates
    traffic = _activation_bytes(network, (1, 3, 128, 416), 2)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    flops = 2 * 8192**3 / (1e-3 * _cuda_ms(lambda: a @ a, torch.cuda.current_stream(), 20))
    big, other = (torch.empty(2**29, dtype=torch.uint8, device="cuda") for _ in range(2))
    bandwidth = 2 * big.numel() / (1e-3 * _cuda_ms(lambda: other.copy_(big), torch.cuda.current_stream(), 20))
    host = torch.empty(2**26, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(2**26, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.current_stream()
    up = host.numel() / (1e-3 * _cuda_ms(lambda: there.copy_(host, non_blocking=True), stream, 20))
    down = host.numel() / (1e-3 * _cuda_ms(lambda: host.copy_(there, non_blocking=True), stream, 20))
    sent, received = 128 * 416 * 3, 128 * 416 * 16
    yield from _table(
        ("", "of one frame", "measured peak", "lower bound, microseconds"),
        [
            ("operations", f"{1e-9 * operations:.2f} G", f"{1e-12 * flops:.0f} T/s", f"{1e6 * operations / flops:.1f}"),
            (
                "feature maps and weights, each written and read once",
                f"{1e-6 * traffic:.1f} MB",
                f"{1e-9 * bandwidth:.0f} GB/s",
                f"{1e6 * traffic / bandwidth:.1f}",
            ),
            ("upload", f"{1e-6 * sent:.2f} MB", f"{1e-9 * up:.1f} GB/s", f"{1e6 * sent / up:.1f}"),
            ("download", f"{1e-6 * received:.2f} MB", f"{1e-9 * down:.1f} GB/s", f"{1e6 * received / down:.1f}"),
        ],
    )


def section_node(args) -> Iterator[str]:
    """The node through real topics, depth image and coloured cloud subscribed."""
    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise Skipped(f"no ROS 2: {error}") from error
    rows = []
    for engine, size, rate in (
        ("pass-through", "128x416", 2000 if CUDA else 600),
        ("real", "128x416", 2000 if CUDA else 600),
        ("real", "720x1280", 1000 if CUDA else 60),
    ):
        row = node_benchmark.measure(engine, size, rate, args.seconds, domain=77)
        rows.append((engine, f"{size} at {rate} Hz", *(f"{value:.2f}" for value in row.values())))
    yield from _table(("engine", "camera", *row), rows)


SECTIONS: tuple[tuple[str, Callable], ...] = (
    ("Machine", section_machine),
    ("Engine", section_engine),
    ("Shares of a frame", section_shares),
    ("Two frames in flight", section_stream),
    ("Memory", section_memory),
    ("Energy", section_energy),
    ("Lower bounds", section_lower_bounds),
    ("Node", section_node),
)


# ------------------------------------------------------------------------------------------------------------------ helpers


class Skipped(Exception):
    """A section cannot run on this machine; the message says why."""


def _need_cuda() -> None:
    if not CUDA:
        raise Skipped("no CUDA device")


def _cuda_ms(run: Callable[[], object], stream, count: int) -> float:
    """Milliseconds of one run on the device, median of `count`."""
    times = []
    with torch.cuda.stream(stream):
        for _ in range(count + 3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return float(np.median(times[3:]))


def _activation_bytes(network: nn.Module, shape: tuple[int, ...], width: int) -> int:
    """Bytes that the convolutions read and write, with their weights. Operations fused into them add none."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += width * (inputs[0].numel() + output.numel() + sum(p.numel() for p in module.parameters()))

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        network(torch.zeros(shape))
    for hook in hooks:
        hook.remove()
    return total


def _table(heads: tuple, rows: list[tuple]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + len(heads) * "---|"
    yield from ("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _driver() -> str:
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "none"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return "not installed"


def main() -> int:
    def size(text: str) -> tuple[int, int]:
        height, width = text.split("x")
        return int(height), int(width)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=size, nargs="+", default=[(128, 416), (192, 640), (384, 640)])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--frames", type=int, default=500, help="runs of each candidate")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each row of the node's table")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    args = parser.parse_args()
    torch.set_num_threads(default_threads())
    with args.out.open("w", encoding="utf-8") as report:

        def write(line: str = "") -> None:
            print(line, flush=True)
            print(line, file=report, flush=True)

        write(
            f"# fadepth on {torch.cuda.get_device_name() if CUDA else 'a CPU (test run of this script, without a GPU)'}"
        )
        for title, section in SECTIONS:
            write()
            write(f"## {title}")
            write()
            write(section.__doc__.strip())
            write()
            try:
                for line in section(args):
                    write(line)
            except Skipped as reason:
                write(f"Skipped: {reason}.")
            except Exception as error:  # the other sections still run
                write(f"Failed: {type(error).__name__}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
