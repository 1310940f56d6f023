"""Torch-TensorRT: the fastest on an NVIDIA GPU. Works with `torch-tensorrt` and with `torch-tensorrt-rtx`.

    DepthGraph -> torch.export -> Torch-TensorRT (one engine, no part left to PyTorch) -> plan -> EngineCache
    plan -> execution context -> CUDA graph (`static.py`)

Building takes a while and a lot of memory, so it happens in a process of its own: whatever goes wrong there, the node goes
on serving. This module is that process's program, too.
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

from fadepth_core.common.files import user_cache
from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import Backend, BackendSpec
from fadepth_core.runtime.backends import torch as eager
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.engine_cache import EngineCache

ANY_SIZE = False
#: Goes up with every change of what `compile_graph` makes, so that plans kept from an older one are not used.
BUILDER = 1


#: Seconds between two looks at whether a build is still wanted.
_PATIENCE = 0.5
#: Held while a plan is looked for and built: builds take all the memory and processors there are, and whoever waits for the same
#: one finds it kept.
_BUILDING = threading.Lock()


class BuildError(RuntimeError):
    """A TensorRT engine could not be built; the message says why."""


class PlanError(RuntimeError):
    """TensorRT does not take a plan."""


def unavailable_reason() -> str | None:
    if reason := eager.unavailable_reason():
        return reason
    if importlib.util.find_spec("torch_tensorrt") is None:
        return "the package torch_tensorrt is not installed: pip install 'fadepth_ros[tensorrt]'"
    import torch

    if not torch.cuda.is_available():
        return "there is no CUDA device, or this torch is not built for it"
    return None


precisions = eager.precisions


def create(job: BackendSpec) -> Backend:
    import torch

    from fadepth_core.runtime.backends.static import static_backend

    plan = functools.cache(lambda batch: plan_for(job, batch))

    def make(batch: int) -> PlanRunner:
        try:
            return PlanRunner(plan(batch))
        except PlanError:
            forget(job)
            raise

    return static_backend(make, job, torch.device("cuda"))


def forget(job: BackendSpec) -> None:
    """Remove the job's plans from the cache, so that they are built anew."""
    for batch in {1, job.batch}:
        _cache().remove(plan_identity(job, batch))


# ----------------------------------------------------------------------------------------------------------- running a plan


class PlanRunner:
    """A `static.Compute` that runs a plan, in a context and with results of its own.

    Raises:
        PlanError: TensorRT does not take the plan.
        RuntimeError: there is no memory for it.
    """

    def __init__(self, plan: bytes):
        import torch

        trt = _tensorrt()
        self._torch = torch
        # Kept, since neither a context nor an engine keeps what it was made by.
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

    def __call__(self, *arguments):
        for name, tensor in zip(self._inputs, arguments, strict=True):
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(self._torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not run the engine; its messages are above")
        return tuple(self._results)


def _tensorrt():
    """The TensorRT that Torch-TensorRT uses, RTX or not: it makes either importable under this name."""
    import torch_tensorrt  # noqa: F401

    return importlib.import_module("tensorrt")


# ---------------------------------------------------------------------------------------------------------- building plans


def plan_for(job: BackendSpec, batch: int) -> bytes:
    """The plan of a job for `batch` frames at a time: kept from an earlier start, or built now and kept.

    Raises:
        BuildError: it cannot be built, or nobody waits for it any more.
    """
    cache, identity = _cache(), plan_identity(job, batch)
    with _BUILDING:
        plan = cache.get(identity, job.logger)
        if plan is not None:
            return plan
        if job.abandoned.is_set():
            raise BuildError("nobody waits for it any more")
        height, width = job.framing.network_size
        job.logger.info(
            "building a TensorRT engine for %dx%d, %s; this takes a minute or so, once: it is kept in %s",
            width,
            height,
            job.precision,
            cache.folder,
        )
        start = time.monotonic()
        plan = _built_elsewhere(job, batch)
        job.logger.info("built in %.0f s, %.1f MB", time.monotonic() - start, 1e-6 * len(plan))
        cache.put(identity, plan, job.logger)
        return plan


def _cache() -> EngineCache:
    return EngineCache(user_cache() / "engines")


def plan_identity(job: BackendSpec, batch: int) -> dict[str, str]:
    """Everything a plan follows from, by name."""
    import torch
    import torch_tensorrt

    trt = _tensorrt()
    return {
        "builder": str(BUILDER),
        "weights": job.checkpoint.weights_sha256,
        "network": f"{job.checkpoint.description.model} {job.checkpoint.description.depth_range}",
        "framing": str(job.framing),
        "batch": str(batch),
        "precision": job.precision,
        "gpu": f"{torch.cuda.get_device_name()} sm{''.join(map(str, torch.cuda.get_device_capability()))}",
        "tensorrt": f"{trt.__name__} {trt.__version__}",
        "torch_tensorrt": torch_tensorrt.__version__,
        "torch": torch.__version__,
    }


def _built_elsewhere(job: BackendSpec, batch: int) -> bytes:
    """`compile_graph` in a process of its own, which ends with this one, and once nobody waits for the job."""
    order = {
        "checkpoint": str(job.checkpoint.path),
        "framing": asdict(job.framing),
        "precision": job.precision,
        "batch": batch,
    }
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    # A pipe beside standard output, to which TensorRT talks.
    receiver, sender = os.pipe()
    with tempfile.TemporaryFile() as log, os.fdopen(receiver, "rb", buffering=0) as pipe:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "fadepth_core.runtime.backends.tensorrt", json.dumps(order), str(sender)],
                pass_fds=[sender],
                env=environment,
                stdin=subprocess.PIPE,  # closed by whatever ends this process
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        finally:
            os.close(sender)
        with process:
            plan = _read_all(pipe, job.abandoned)
            if plan is None:
                process.kill()
            process.wait()  # before its standard input is closed
        if plan is None:
            raise BuildError("nobody waits for it any more")
        if process.returncode == 0:
            return plan
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
    raise BuildError(f"the build ended with status {process.returncode}: {said[-2000:] or 'without a word'}")


def _read_all(pipe: io.FileIO, abandoned: threading.Event) -> bytes | None:
    """Everything up to the pipe's end; None if that is not waited for."""
    parts = []
    while not abandoned.is_set():
        if select.select([pipe], [], [], _PATIENCE)[0]:
            part = pipe.read(1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None


def compile_graph(graph, camera_size: tuple[int, int], batch: int) -> bytes:
    """Compile a DepthGraph, in evaluation mode on the CUDA device, into one serialized TensorRT engine.

    Args:
        graph: `DepthGraph`; its dtype is the engine's precision (the network is strongly typed).
        camera_size: (height, width) of the frames it takes.
        batch: how many frames at a time.

    Raises:
        BuildError: operators that Torch-TensorRT cannot convert, which are named, or TensorRT's own failure.
    """
    import torch
    import torch_tensorrt

    device = graph.mean.device
    arguments = (
        torch.zeros(batch, *camera_size, 3, dtype=torch.uint8, device=device),
        torch.eye(3, device=device).repeat(batch, 1, 1),
        torch.ones(batch, 1, device=device),
        torch.ones(batch, 2, device=device),
    )
    with warnings.catch_warnings(record=True) as heard:
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
            # Torch-TensorRT raises for the first operator it cannot convert, and warns of all of them.
            lost = [str(w.message) for w in heard if "missing operations" in str(w.message)]
            raise BuildError("\n".join([str(error), *lost])) from error


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock this thread would hold when the process ends
    os._exit(1)


def main() -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    order = json.loads(sys.argv[1])
    framing = Framing(**{name: tuple(size) for name, size in order["framing"].items()})
    job = BackendSpec(Checkpoint(order["checkpoint"]), framing, order["precision"])
    try:
        plan = compile_graph(eager.cuda_graph(job), framing.camera_size, order["batch"])
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    with os.fdopen(int(sys.argv[2]), "wb") as pipe:
        pipe.write(plan)
    return 0


if __name__ == "__main__":
    sys.exit(main())
