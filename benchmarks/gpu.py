#!/usr/bin/env python3
"""Measures fadepth on a machine with a GPU and writes a report in Markdown: inference, the node, training, limits of the GPU.

Inputs of the engine are uint8 frames at the network's size in host memory, outputs are depth and points in host memory.
Candidates of one size and batch take turns. Every line is written as soon as it is measured, the most important sections
first, so that an interrupted run leaves a report. If this machine cannot run a section, the report gives the reason. ResNet-18
and the training need the extra `train`, the node needs ROS 2.

    python benchmarks/gpu.py                                     about ten minutes, most of it compilation
    python benchmarks/gpu.py --minutes 5                         leaves out what does not fit
    python benchmarks/gpu.py --sections engine node --frames 2000
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.metadata
import inspect
import json
import os
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
from typing import NoReturn

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import engine as engine_benchmark
import node as node_benchmark
from fadepth_core.common.framing import Framing
from fadepth_core.common.video import VideoFile
from fadepth_core.models import build_model
from fadepth_core.models.complexity import complexity
from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import Backend, BackendSpec, FrameInput, default_threads, inductor, tensorrt
from fadepth_core.runtime.backends.static import StaticBackend
from fadepth_core.runtime.backends.torch import reference_depth
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.graph import DepthGraph
from fadepth_core.runtime.network import load_network

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
K = np.array([[200.0, 0, 200], [0, 200, 60], [0, 0, 1]])
LIMITS = (0.1, 100.0)
PACKAGES = ("torch", "torch-tensorrt", "torch-tensorrt-rtx", "tensorrt", "tensorrt-rtx", "triton", "numpy")
FIRST_SIZE = (128, 416)
#: Name of ResNet-18's row beside those of `inductor.FORMS`.
RESNET = "ResNet-18"
CLIP = ROOT / "fadepth_core" / "assets" / "demo.mp4"
#: Trainings to measure: name, batch, settings besides those of config/training/video.yaml.
TRAININGS = (
    ("SmallDepth, level cr", 8, ("loss.levels=[cr]",)),
    ("SmallDepth, level cr", 32, ("loss.levels=[cr]",)),
    ("SmallDepth, five levels", 8, ()),
    ("HQDecv2, level cr", 8, ("model={name: hqdecv2}", "loss.levels=[cr]")),
    ("HQDecv2, five levels", 8, ("model={name: hqdecv2}",)),
)


# ------------------------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class Candidate:
    """One network in one backend, for one size and batch.

    Attributes:
        seconds: time that the backend took to start, with its compilation.
        mebibytes: GPU memory that was free before it started and is not now.
    """

    name: str
    backend: Backend
    batch: int
    seconds: float
    mebibytes: float

    @property
    def network(self) -> str:
        return self.name.split(", ")[1]

    def run(self, image: np.ndarray) -> object:
        frame = FrameInput(image, K, limits=LIMITS)
        return self.backend.infer(frame) if self.batch == 1 else self.backend.infer_batch(self.batch * [frame])


class EagerBackend(Backend):
    """`DepthGraph` in PyTorch without a captured graph, for comparison."""

    device = ""

    def __init__(self, graph: nn.Module):
        self._graph = graph

    @torch.inference_mode()
    def infer(self, frame: FrameInput) -> tuple[torch.Tensor, torch.Tensor]:
        given = (frame.intrinsics.astype(np.float32), np.array([frame.scale], np.float32), np.float32(frame.limits))
        inputs = [torch.from_numpy(value).to(DEVICE) for value in (frame.image, *given)]
        depth, points = self._graph(*inputs)
        return depth.cpu(), points.cpu()


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"SmallDepth": build_model("smalldepth").fuse(), "ResNet-18": build_model("resnet18").fuse()}


def variants() -> list[tuple[str, str]]:
    """Backends and precisions that run on this machine, the fastest first."""
    found = []
    for name in ("tensorrt", "inductor", "torch"):
        backend_type = backends.backend_type(name)
        if backend_type.unavailable_reason() is None:
            found += [(name, precision) for precision in backend_type.precisions()]
    return [*found, *(("eager", precision) for name, precision in found if name == "torch")]


def candidates(
    size: tuple[int, int], batch: int, chosen: list[tuple[str, str]], problems: dict[str, str]
) -> Iterator[Candidate]:
    """The candidates that run on this machine. Why the others do not is added to `problems`."""
    framing = Framing.plan(size, size)
    for name, precision in chosen:
        for label, network in networks().items():
            title = f"{name} {precision}, {label}"
            try:
                begin, before = time.perf_counter(), _free_bytes()
                backend = _backend(name, precision, network, framing, batch)
                seconds, mebibytes = time.perf_counter() - begin, (before - _free_bytes()) / 2**20
                yield Candidate(title, backend, batch, seconds, mebibytes)
            except Exception as error:  # the report is written without this row
                problems.setdefault(f"{title}, {size[0]}x{size[1]}, batch {batch}", _message(error))


def _backend(
    name: str, precision: str, network: nn.Module, framing: Framing, batch: int, form: str = "sums"
) -> Backend:
    graph = DepthGraph(copy.deepcopy(network), framing, DTYPES[precision]).to(DEVICE).eval()
    graph = graph.to(memory_format=torch.channels_last)
    if name == "eager":
        return EagerBackend(graph)

    def make(frames: int):
        if name == "tensorrt":
            return tensorrt.PlanRunner(tensorrt.compile_graph(graph, framing.camera_size, frames))
        if name == "inductor":
            return inductor.compile_graph(graph, framing.camera_size, frames, form)
        return graph

    spec = BackendSpec(None, framing, precision, default_threads(), batch)
    return StaticBackend(make, spec, DEVICE, "" if CUDA else "CPU", has_confidence=network.confidence is not None)


@functools.cache  # compiled once for all sections
def fastest() -> Candidate:
    """SmallDepth in the first backend that works, for one frame of `FIRST_SIZE`."""
    problems: dict[str, str] = {}
    for candidate in candidates(FIRST_SIZE, 1, variants(), problems):
        return candidate
    raise RuntimeError("; ".join(f"{what}: {why}" for what, why in problems.items()))


# ----------------------------------------------------------------------------------------------------------------- sections


def section_machine(args) -> Iterator[str]:
    """Hardware and versions."""
    yield from _table(
        ("", ""),
        [
            ("date", date.today().isoformat()),
            ("GPU", torch.cuda.get_device_name() if CUDA else "none"),
            ("driver", _driver()),
            ("CPU", f"{_processor()}, {os.cpu_count()} processors"),
            ("Python", platform.python_version()),
            *((name, _version(name)) for name in PACKAGES),
        ],
    )


def section_engine(args) -> Iterator[str]:
    """Latency of one frame of 128x416 at batch 1, start of the backend with compilation, and the GPU memory it takes."""
    yield from _engine_rows(args, [(FIRST_SIZE, 1)], variants())


def section_sizes(args) -> Iterator[str]:
    """Latency of one run, and frames per second, by size and batch, in half precision."""
    chosen = [
        (name, precision) for name, precision in variants() if (name != "eager" and precision == "fp16") or not CUDA
    ]
    cases = [(size, batch) for batch in args.batches for size in args.sizes if (size, batch) != (FIRST_SIZE, 1)]
    yield from _engine_rows(args, cases, chosen)


def _engine_rows(args, cases: list[tuple[tuple[int, int], int]], chosen: list[tuple[str, str]]) -> Iterator[str]:
    heads = (
        "size",
        "batch",
        "backend and network",
        "median ms",
        "p99",
        "max",
        "frames/s",
        "x best ResNet-18",
        "start s",
        "MiB",
    )
    yield from _table(heads, [])
    problems: dict[str, str] = {}
    for size, batch in cases:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        found = []
        for candidate in candidates(size, batch, chosen, problems):
            found.append(candidate)
            if args.time_is_up():
                break
        times = engine_benchmark.measure({c.name: c.run for c in found}, image, args.frames)
        resnet = [np.median(times[c.name]) for c in found if c.network == "ResNet-18"]
        for candidate in found:
            ms = times[candidate.name]
            median = float(np.median(ms))
            yield _row(
                f"{size[0]}x{size[1]}",
                batch,
                candidate.name,
                f"{median:.3f}",
                f"{np.quantile(ms, 0.99):.3f}",
                f"{ms.max():.3f}",
                f"{1e3 * batch / median:.0f}",
                f"{min(resnet) / median:.2f}" if resnet else "-",
                f"{candidate.seconds:.1f}",
                f"{candidate.mebibytes:.0f}",
            )
        found.clear()
        if CUDA:
            torch.cuda.empty_cache()
        if args.time_is_up():
            yield ""
            yield f"The time was up after {size[0]}x{size[1]}, batch {batch}."
            break
    if problems:
        yield ""
        yield from (f"- {what}: not measured, {why}" for what, why in problems.items())


def section_accuracy(args) -> Iterator[str]:
    """Start of `DepthEngine` with the shipped network, and relative difference of its depth from PyTorch in float32 on the CPU
    over four frames of the demo clip."""
    checkpoint = Checkpoint()
    size = checkpoint.description.network_size
    framing = Framing.plan(size, size)
    frames = [Framing.plan(x.shape[:2], size).to_network(x) for i, x in enumerate(VideoFile(CLIP)) if i % 60 == 0]
    expected = [reference_depth(BackendSpec(checkpoint, framing, "fp32"), frame) for frame in frames]
    yield from _table(("backend", "start s", "median", "p99", "max", "failures"), [])
    for name, precision in (variant for variant in variants() if variant[0] != "eager"):
        begin = time.perf_counter()
        engine = DepthEngine.load(checkpoint, backend=name, precision=precision)
        seconds = time.perf_counter() - begin
        difference = np.concatenate(
            [
                np.ravel(np.abs(engine.infer(FrameRequest(x)).depth - d) / d)
                for x, d in zip(frames, expected, strict=True)
            ]
        )
        failed = [failure for failure in engine.failures if failure.startswith(f"{name}:")]
        quantiles = (f"{np.quantile(difference, q):.1e}" for q in (0.5, 0.99, 1.0))
        yield _row(
            f"{engine.backend_name} {engine.precision}", f"{seconds:.1f}", *quantiles, "; ".join(failed) or "none"
        )


def section_shares(args) -> Iterator[str]:
    """Time of each part of one frame: 128x416, batch 1, the fastest backend."""
    _need_cuda()
    backend = fastest().backend
    buffers = backend.single
    frame = FrameInput(np.zeros((128, 416, 3), np.uint8), K, limits=LIMITS)
    yield from _table(("part", "microseconds"), [])
    with torch.inference_mode():
        results = buffers.compute()
        parts = {
            "upload": buffers.upload,
            "compute": buffers.compute,
            "download": lambda: buffers.download(results, with_points=True),
        }
        for name, part in parts.items():
            yield _row(name, f"{_captured_microseconds(part, buffers.cuda_stream, args.frames):.1f}")

    launched, whole = [], []
    for _ in range(args.frames):
        begin = time.perf_counter()
        buffers.submit([frame])
        launched.append(time.perf_counter() - begin)
        buffers.collect([frame])
        whole.append(time.perf_counter() - begin)
    yield _row("filling buffers and launching, on the host", f"{1e6 * np.median(launched):.1f}")
    yield _row("the whole frame, for the caller", f"{1e6 * np.median(whole):.1f}")


def section_forms(args) -> Iterator[str]:
    """The shipped network written for torch.compile in each of `inductor.FORMS`, and ResNet-18: 128x416, batch 1, fp16, one at a
    time, each in a process. "Compute" is the captured graph without copies, "whole" a frame for the caller; "difference" is
    that of depth from PyTorch in float32 on the CPU, relative, for a frame of the demo clip."""
    heads = ("form", "kernels", "compute, microseconds", "whole, microseconds", "p99", "frames/s", "difference", "max")
    yield from _table((*heads, "start s"), [])
    problems = []
    for form in (*inductor.FORMS, RESNET):
        if args.time_is_up():
            problems.append(f"- {form}: the time was up")
            continue
        command = [sys.executable, __file__, "--child-form", form, "--frames", str(args.frames)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
            yield done.stdout.splitlines()[-1]
        except subprocess.TimeoutExpired:
            problems.append(f"- {form}: not measured within 300 s")
        except subprocess.CalledProcessError as error:
            problems.append(f"- {form}: {' '.join(error.stderr.split())[-500:]}")
    yield from ["", *problems] if problems else []


def measure_form(form: str, frames: int) -> tuple[object, ...]:
    """A row of `section_forms`."""
    framing = Framing.plan(FIRST_SIZE, FIRST_SIZE)
    network = networks()["ResNet-18"] if form == RESNET else load_network(Checkpoint())
    image = next(iter(VideoFile(CLIP)))
    image = Framing.plan(image.shape[:2], FIRST_SIZE).to_network(image)
    frame = FrameInput(image, K, limits=LIMITS)
    begin = time.perf_counter()
    chosen = "sums" if form == RESNET else form
    backend = _backend("inductor", "fp16" if CUDA else "fp32", network, framing, 1, chosen)
    depth = backend.infer(frame).depth.copy()
    start = time.perf_counter() - begin

    ms = engine_benchmark.measure({form: lambda _image: backend.infer(frame)}, image, frames)[form]
    median = float(np.median(ms))
    kernels = compute = "-"
    if CUDA:
        kernels = f"{sum(calls for _, calls, _ in _kernels(lambda: backend.infer(frame))):.0f}"
        compute = f"{_captured_microseconds(backend.single.compute, backend.single.cuda_stream, frames):.0f}"
    inputs = (torch.from_numpy(image), torch.from_numpy(K).float(), torch.ones(1), torch.tensor(LIMITS))
    with torch.inference_mode():
        expected = DepthGraph(network, framing).eval()(*inputs)[0].numpy()
    difference = np.abs(depth - expected) / expected
    return (
        form,
        kernels,
        compute,
        f"{1e3 * median:.0f}",
        f"{1e3 * np.quantile(ms, 0.99):.0f}",
        f"{1e3 / median:.0f}",
        f"{np.nanmedian(difference):.1e}",
        f"{np.nanmax(difference):.1e}",
        f"{start:.1f}",
    )


def section_kernels(args) -> Iterator[str]:
    """Kernels of one frame, by their share of the time: 128x416, batch 1."""
    _need_cuda()
    plain = next(candidates(FIRST_SIZE, 1, [("torch", "fp16")], {}))
    for candidate in (fastest(), plain):
        image = np.zeros((*FIRST_SIZE, 3), np.uint8)
        kernels = _kernels(functools.partial(candidate.run, image))
        count, total = (sum(kernel[i] for kernel in kernels) for i in (1, 2))
        yield f"{candidate.name}: {count:.0f} kernels and copies, {total:.0f} microseconds."
        yield ""
        yield from _table(("kernel", "count", "microseconds"), [])
        for key, calls, microseconds in kernels[:15]:
            yield _row(f"`{key.replace('|', '/')[:100]}`", f"{calls:.0f}", f"{microseconds:.1f}")
        yield ""


def section_stream(args) -> Iterator[str]:
    """Frames per second with two frames in flight, compared with one: 128x416."""
    image = np.random.default_rng(0).integers(0, 256, (128, 416, 3), dtype=np.uint8)
    frame = FrameInput(image, K, limits=LIMITS)
    candidate = fastest()
    backend, turn = candidate.backend, max(1, args.frames // 5)
    one, two = [], []
    for _ in backend.stream([frame]):  # captures its graphs
        pass
    for _ in range(5):  # taking turns
        begin = time.perf_counter()
        for _ in range(turn):
            backend.infer(frame)
        middle = time.perf_counter()
        for _ in backend.stream(frame for _ in range(turn)):
            pass
        one.append(middle - begin)
        two.append(time.perf_counter() - middle)
    counts = [turn / np.median(seconds) for seconds in (one, two)]
    row = (candidate.name, *(f"{count:.0f}" for count in counts), f"{counts[1] / counts[0]:.2f}")
    yield from _table(("backend and network", "one: frames/s", "two: frames/s", "ratio"), [row])


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
    candidate = fastest()
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
    stream = torch.cuda.current_stream()
    flops = 2 * 8192**3 / (1e-3 * _cuda_ms(lambda: a @ a, stream, 20))
    big, other = (torch.empty(2**29, dtype=torch.uint8, device="cuda") for _ in range(2))
    bandwidth = 2 * big.numel() / (1e-3 * _cuda_ms(lambda: other.copy_(big), stream, 20))
    host = torch.empty(2**26, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(2**26, dtype=torch.uint8, device="cuda")
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


def section_start(args) -> Iterator[str]:
    """A process that loads `DepthEngine` with `background=True` and feeds frames: without and with compiled kernels cached.

    The compiled backend replaces the first one while frames come in. After that, one failure of the serving backend is injected.
    """
    yield from _table(("", "no cache", "cached"), [])
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "XDG_CACHE_HOME": cache}
        runs = []
        for _ in range(2):
            command = [sys.executable, __file__, "--child-start"]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=180)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    for name in runs[0]:
        yield _row(name, *(run[name] for run in runs))


def start_under_load() -> None:
    """Program of the child process of `section_start`: prints its figures as JSON."""
    begin = time.perf_counter()
    image = np.random.default_rng(0).integers(0, 256, (*FIRST_SIZE, 3), dtype=np.uint8)
    request = FrameRequest(image, K)
    engine = DepthEngine.load(camera_size=FIRST_SIZE, background=True)
    first_name = engine.backend_name
    engine.infer(request)
    first = time.perf_counter() - begin
    during, building = [], engine.description.count("is being built")
    limit = time.perf_counter() + 150
    while engine.description.count("is being built") and time.perf_counter() < limit:
        started = time.perf_counter()
        engine.infer(request)
        during.append(time.perf_counter() - started)
        time.sleep(0.005)  # a camera of up to 200 Hz
    changed, change = time.perf_counter() - begin, during[-1] if during else 0.0
    after = []
    for _ in range(500):
        started = time.perf_counter()
        engine.infer(request)
        after.append(time.perf_counter() - started)
    served = engine.description

    inject_failure()
    started = time.perf_counter()
    engine.infer(request)
    recovery = time.perf_counter() - started
    quantiles = lambda times: " / ".join(f"{1e3 * np.quantile(times, q):.2f}" for q in (0.5, 0.99, 1.0))  # noqa: E731
    figures = {
        f"first depth, by {first_name}, s after the imports": f"{first:.1f}",
        "change to the compiled backend, s": f"{changed:.1f}" if building else "no build",
        "ms a frame during the build, p50 / p99 / max": quantiles(during) if during else "-",
        "ms of the frame at the change": f"{1e3 * change:.2f}",
        "ms a frame after the change, p50 / p99 / max": quantiles(after),
        "served by": served,
        "s to the next depth after an injected failure": f"{recovery:.1f}",
        "then served by": engine.description,
    }
    print(json.dumps(figures))


def inject_failure() -> None:
    """Make the next frame fail, whichever backend serves; those after it work again."""
    originals = {backend: backend.infer for backend in Backend.__subclasses__()}

    def fail(_backend: Backend, _frame: FrameInput) -> NoReturn:
        for backend, infer in originals.items():
            backend.infer = infer
        raise RuntimeError("injected failure")

    for backend in originals:
        backend.infer = fail


def section_node(args) -> Iterator[str]:
    """The node through real topics, depth image and coloured cloud subscribed."""
    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise Skipped(f"no ROS 2: {error}") from error
    yield from _table(("engine", "camera", *node_benchmark.COLUMNS), [])
    # While the first engine is built, plain PyTorch serves; the row is to show the compiled one.
    warmup = 20.0 if CUDA else 2.0
    for engine, size, rate in (
        ("real", "128x416", 2000 if CUDA else 600),
        ("pass-through", "128x416", 2000 if CUDA else 600),
        ("real", "720x1280", 500 if CUDA else 60),
    ):
        row = node_benchmark.measure(
            engine, size, rate, args.seconds, domain=77, warmup=warmup if engine == "real" else 2.0
        )
        yield _row(engine, f"{size} at {rate} Hz", *(f"{value:.2f}" for value in row.values()))
        if args.time_is_up():
            break


def section_training(args) -> Iterator[str]:
    """Training on the demo clip, 128x416, mixed precision (bf16): images per second, with the loader and without waiting for it.

    An image is a triplet of frames. "networks" is their share of a step, forward and backward, without the losses.
    """
    import training as training_benchmark

    yield from _table(("training", "batch", "images/s", "without waiting", "loader alone", "networks", "MiB"), [])
    with tempfile.TemporaryDirectory() as clips:
        for file in (CLIP, CLIP.with_suffix(".json")):
            (Path(clips) / file.name).symlink_to(file)
        for name, batch, settings in TRAININGS:
            if args.time_is_up():
                break
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            found = training_benchmark.measure(
                ROOT / "config/training/video.yaml",
                [
                    "data.train=[{name: video, root: " + clips + "}]",
                    f"data.batch_size={batch}",
                    f"data.workers={max(1, os.cpu_count() - 1) if CUDA else 0}",
                    *(["precision=bf16-mixed"] if CUDA else []),
                    *settings,
                ],
                args.training_steps,
            )
            peak = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}" if CUDA else "-"
            yield _row(
                name,
                batch,
                f"{found.images / found.step:.1f}",
                f"{found.images / (found.step - found.waited):.1f}",
                f"{found.loader_images_per_second:.1f}",
                f"{found.networks / found.step:.0%}",
                peak,
            )


SECTIONS: dict[str, tuple[str, Callable[[argparse.Namespace], Iterator[str]]]] = {
    "machine": ("Machine", section_machine),
    "engine": ("Engine", section_engine),
    "shares": ("Shares of a frame", section_shares),
    "forms": ("Forms of the graph", section_forms),
    "accuracy": ("Accuracy", section_accuracy),
    "node": ("Node", section_node),
    "training": ("Training", section_training),
    "bounds": ("Lower bounds", section_lower_bounds),
    "stream": ("Two frames in flight", section_stream),
    "start": ("Start and change of backend", section_start),
    "kernels": ("Kernels", section_kernels),
    "energy": ("Energy", section_energy),
    "sizes": ("Sizes and batches", section_sizes),
}


# ------------------------------------------------------------------------------------------------------------------ helpers


class Skipped(Exception):
    """A section cannot run on this machine; the message says why."""


def _need_cuda() -> None:
    if not CUDA:
        raise Skipped("no CUDA device")


def _free_bytes() -> int:
    return torch.cuda.mem_get_info()[0] if CUDA else 0


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


@torch.inference_mode()
def _captured_microseconds(part: Callable[[], object], stream, count: int) -> float:
    """Microseconds of a part of a frame as a CUDA graph of its own, median of `count`."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        part()
    return 1e3 * _cuda_ms(graph.replay, stream, count)


def _kernels(run: Callable[[], object], runs: int = 20) -> list[tuple[str, float, float]]:
    """Kernels and copies of a run: name, calls and microseconds, those that take most time first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(runs):
            run()
    events = [e for e in profile.key_averages() if e.device_time_total > 0]
    events.sort(key=lambda event: -event.device_time_total)
    return [(e.key, e.count / runs, e.device_time_total / runs) for e in events]


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
    yield _row(*heads)
    yield "|" + len(heads) * "---|"
    yield from (_row(*row) for row in rows)


def _row(*values: object) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: " + " ".join(str(error).split())[:500]


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
    parser.add_argument("--sections", choices=SECTIONS, nargs="+", default=list(SECTIONS))
    parser.add_argument("--sizes", type=size, nargs="+", default=[(128, 416), (192, 640), (384, 640)])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 2, 4])
    parser.add_argument("--frames", type=int, default=500, help="runs of each candidate")
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each row of the node's table")
    parser.add_argument("--training-steps", type=int, default=20, help="steps of each training")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begins nothing new after this time")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--child-start", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child-form", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child_form:
        print(_row(*measure_form(args.child_form, args.frames)))
        return 0
    if args.child_start:
        start_under_load()
        return 0
    torch.set_num_threads(default_threads())
    begin = time.monotonic()
    args.time_is_up = lambda: time.monotonic() - begin > 60 * args.minutes
    with args.out.open("w", encoding="utf-8") as report:

        def write(line: str = "") -> None:
            print(line, flush=True)
            print(line, file=report, flush=True)

        write(
            f"# fadepth on {torch.cuda.get_device_name() if CUDA else 'a CPU (test run of this script, without a GPU)'}"
        )
        for title, section in (SECTIONS[name] for name in args.sections):
            write()
            write(f"## {title}")
            write()
            write(inspect.cleandoc(section.__doc__))
            write()
            if args.time_is_up():
                write("Skipped: the time was up.")
                continue
            started = time.monotonic()
            try:
                for line in section(args):
                    write(line)
            except Skipped as reason:
                write(f"Skipped: {reason}.")
            except Exception as error:  # the other sections still run
                write(f"Failed: {_message(error)}")
            print(f"({time.monotonic() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
