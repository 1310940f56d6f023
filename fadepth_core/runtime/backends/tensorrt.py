"""Backend "tensorrt": Torch-TensorRT, the fastest on an NVIDIA GPU. Works with `torch-tensorrt` and
`torch-tensorrt-rtx`.

    DepthGraph -> torch.export -> Torch-TensorRT (one engine, no part left to PyTorch) -> plan -> EngineCache
    plan -> execution context -> CUDA graph (`static.py`)

A plan is a serialized TensorRT engine. Building one takes a minute or more and a lot of memory, and may crash, so it
runs in a child process, whose program is also this module (`main`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fadepth_core.common.files import user_cache
from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import Backend, BackendSpec, BackendType
from fadepth_core.runtime.backends import torch as torch_backend
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine_cache import EngineCache

if TYPE_CHECKING:
    import torch

    from fadepth_core.runtime.graph import DepthGraph

#: Version of `compile_graph`, part of the cache key: increase it with every change of the plans it makes.
BUILDER = 1

#: Seconds between two checks whether a build has been cancelled.
_CANCEL_POLL_PERIOD = 0.5
#: One build at a time, because each needs much memory and all processors. The cache is also read under this lock, so that a
#: second request for the same plan finds it in the cache.
_BUILD_LOCK = threading.Lock()


class BuildError(RuntimeError):
    """A TensorRT engine could not be built; the message says why."""


class PlanError(RuntimeError):
    """TensorRT cannot load a plan."""


def unavailable_reason() -> str | None:
    if reason := torch_backend.unavailable_reason():
        return reason
    if importlib.util.find_spec("torch_tensorrt") is None:
        return "the package torch_tensorrt is not installed: pip install 'fadepth_ros[tensorrt]'"
    import torch

    if not torch.cuda.is_available():
        return "there is no CUDA device, or this torch is not built for it"
    return None


def create(spec: BackendSpec) -> Backend:
    import torch

    from fadepth_core.runtime.backends.static import StaticBackend

    plan = functools.cache(lambda batch: plan_for(spec, batch))

    def make_runner(batch: int) -> PlanRunner:
        try:
            return PlanRunner(plan(batch))
        except PlanError:
            discard(spec)
            raise

    return StaticBackend(make_runner, spec, torch.device("cuda"))


def discard(spec: BackendSpec) -> None:
    """Remove the plans of a spec from the cache, so that the next start builds them again."""
    for batch in {1, spec.batch}:
        plan_cache().remove(plan_identity(spec, batch))


BACKEND = BackendType(unavailable_reason, torch_backend.precisions, create, compiled_per_size=True, discard=discard)


# ------------------------------------------------------------------------------------------------------- running a plan


class PlanRunner:
    """A `static.Compute` that runs a plan, with its own execution context and result tensors.

    Raises:
        PlanError: TensorRT cannot load the plan.
        RuntimeError: there is not enough memory for it.
    """

    def __init__(self, plan: bytes):
        import torch

        trt = import_tensorrt()
        self._torch = torch
        # Kept as attributes, because a context holds no reference to its engine, and an engine none to its runtime.
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise PlanError("TensorRT cannot load the engine; its messages are above")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RuntimeError("TensorRT cannot make an execution context; its messages are above")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._results = []
        for name in names[len(self._inputs) :]:
            result = torch.empty(tuple(self._engine.get_tensor_shape(name)), device="cuda")
            self._context.set_tensor_address(name, result.data_ptr())
            self._results.append(result)

    def __call__(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for name, tensor in zip(self._inputs, arguments, strict=True):
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(self._torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not run the engine; its messages are above")
        return tuple(self._results)


def import_tensorrt() -> ModuleType:
    """The TensorRT module that Torch-TensorRT uses. Torch-TensorRT makes TensorRT-RTX importable as `tensorrt`, too."""
    import torch_tensorrt  # noqa: F401

    return importlib.import_module("tensorrt")


# ------------------------------------------------------------------------------------------------------- building plans


def plan_for(spec: BackendSpec, batch: int) -> bytes:
    """The plan of a spec for `batch` frames at a time, from the cache, or built now and cached.

    Raises:
        BuildError: it cannot be built, or the build was cancelled.
    """
    cache, identity = plan_cache(), plan_identity(spec, batch)
    with _BUILD_LOCK:
        plan = cache.get(identity, spec.logger)
        if plan is not None:
            return plan
        if spec.cancelled.is_set():
            raise _build_cancelled()
        height, width = spec.framing.network_size
        spec.logger.info(
            "building a TensorRT engine for %dx%d, %s; this takes a minute or so, once: it is kept in %s",
            width,
            height,
            spec.precision,
            cache.folder,
        )
        start = time.monotonic()
        plan = build_in_child(spec, batch)
        spec.logger.info("built in %.0f s, %.1f MB", time.monotonic() - start, 1e-6 * len(plan))
        cache.put(identity, plan, spec.logger)
        return plan


def _build_cancelled() -> BuildError:
    return BuildError("build cancelled: its engine was released")


def plan_cache() -> EngineCache:
    return EngineCache(user_cache() / "engines")


def plan_identity(spec: BackendSpec, batch: int) -> dict[str, str]:
    """Cache key of a plan."""
    import torch
    import torch_tensorrt

    trt = import_tensorrt()
    return {
        "builder": str(BUILDER),
        "weights": spec.checkpoint.weights_sha256,
        "network": f"{spec.checkpoint.description.model} {spec.checkpoint.description.depth_range}"
        f"{' with confidence' if spec.checkpoint.description.has_confidence else ''}",
        "framing": str(spec.framing),
        "batch": str(batch),
        "precision": spec.precision,
        "gpu": f"{torch.cuda.get_device_name()} sm{''.join(map(str, torch.cuda.get_device_capability()))}",
        "tensorrt": f"{trt.__name__} {trt.__version__}",
        "torch_tensorrt": torch_tensorrt.__version__,
        "torch": torch.__version__,
    }


def build_in_child(spec: BackendSpec, batch: int) -> bytes:
    """Run `main` in a child process, which ends when this process ends or when the build is cancelled.

    Raises:
        BuildError: the child failed, or the build was cancelled.
    """
    request = {
        "checkpoint": str(spec.checkpoint.path),
        "framing": asdict(spec.framing),
        "precision": spec.precision,
        "batch": batch,
    }
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    # The plan comes through a pipe of its own, because TensorRT writes messages to standard output.
    receiver, sender = os.pipe()
    with tempfile.TemporaryFile() as log, os.fdopen(receiver, "rb", buffering=0) as pipe:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "fadepth_core.runtime.backends.tensorrt", json.dumps(request), str(sender)],
                pass_fds=[sender],
                env=environment,
                stdin=subprocess.PIPE,  # closed when this process ends, however it ends
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        finally:
            os.close(sender)
        with process:
            plan = _read_all(pipe, spec.cancelled)
            if plan is None:
                process.kill()
            process.wait()  # before `with` closes its standard input, which would end it
        if plan is None:
            raise _build_cancelled()
        if process.returncode == 0:
            return plan
        log.seek(0)
        messages = log.read().decode(errors="replace").strip()
    raise BuildError(f"the build ended with status {process.returncode}: {messages[-2000:] or 'no message'}")


def _read_all(pipe: io.FileIO, cancelled: threading.Event) -> bytes | None:
    """Everything up to the pipe's end; None once `cancelled` is set."""
    parts: list[bytes] = []
    while not cancelled.is_set():
        if select.select([pipe], [], [], _CANCEL_POLL_PERIOD)[0]:
            part = pipe.read(1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None


def compile_graph(graph: DepthGraph, camera_size: tuple[int, int], batch: int) -> bytes:
    """Compile a `DepthGraph`, in evaluation mode on the CUDA device, into one plan.

    Args:
        graph: `DepthGraph`; its dtype is the engine's precision (the network is strongly typed).
        camera_size: (height, width) of the frames.
        batch: frames in a run.

    Raises:
        BuildError: Torch-TensorRT cannot convert some operators, which are named, or TensorRT fails.
    """
    import torch
    import torch_tensorrt

    arguments = graph.example_inputs(camera_size, batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exported = torch.export.export(graph, arguments)
            return bytes(
                torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                    exported,
                    arg_inputs=arguments,
                    require_full_compilation=True,
                    immutable_weights=True,
                    disable_tf32=True,
                )
            )
        except Exception as error:
            # Torch-TensorRT raises for the first operator that it cannot convert, and names all of them in warnings.
            unconverted = [str(w.message) for w in caught if "missing operations" in str(w.message)]
            raise BuildError("\n".join([str(error), *unconverted])) from error


def _exit_with_parent() -> None:
    """End this process once the parent has closed the pipe at standard input."""
    os.read(0, 1)  # not sys.stdin: this thread would hold its lock when the process ends
    os._exit(1)


def main() -> int:
    """Program of the child process: build the plan that argument 1 (JSON) describes and write it to file descriptor
    argument 2."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    request = json.loads(sys.argv[1])
    framing = Framing(**{name: tuple(size) for name, size in request["framing"].items()})
    spec = BackendSpec(Checkpoint(request["checkpoint"]), framing, request["precision"])
    try:
        plan = compile_graph(torch_backend.cuda_graph(spec), framing.camera_size, request["batch"])
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    with os.fdopen(int(sys.argv[2]), "wb") as pipe:
        pipe.write(plan)
    return 0


if __name__ == "__main__":
    sys.exit(main())
