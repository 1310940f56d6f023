"""Run one function over many inputs, e.g. recordings: in processes of this machine, or as tasks of a Ray cluster.

Each input runs in a process of its own, so that a crash ends one input only. The function decides itself whether its
result exists already.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from fadepth_core.common.cpus import CPU_LIMIT, usable_cpus
from fadepth_core.common.errors import DataError

#: What libraries read their number of threads from when they are imported.
_THREADS = (
    CPU_LIMIT,
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)
#: Seconds that a process may take to clean up after Ctrl-C.
_CLEANUP = 5.0

_Input = TypeVar("_Input")


@dataclass(frozen=True)
class Outcome:
    """How the function ended for one input.

    Attributes:
        name: of the input.
        text: what the function returned, or why it failed, in one line.
        failed: whether it raised an error or its process ended.
        seconds: time it took.
    """

    name: str
    text: str
    failed: bool
    seconds: float


def run_jobs(
    function: Callable[[_Input], str],
    inputs: Mapping[str, _Input],
    jobs: int = 1,
    cluster: str | None = None,
    logs: Path | None = None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Call `function` for each input; a failure does not end the others. Ctrl-C ends all and is raised again.

    Args:
        function: a function of a module, since it is pickled, as are the inputs. Returns one line about the result.
        inputs: by name.
        jobs: number of inputs at a time on each machine. They share its processors.
        cluster: address of a Ray cluster, "auto" for the one that this machine belongs to; None for this machine only. All
            machines need the same version of this package, and the files under the same paths.
        logs: existing folder; what the function prints for an input, tracebacks too, is in the file NAME.log there. None:
            it is printed.
        on_end: called in the order in which inputs end.

    Returns:
        The outcomes in the order of the inputs.

    Raises:
        DataError: there is no such cluster.
        ImportError: ray is not installed.
    """
    if jobs < 1:
        raise DataError(f"jobs must be at least 1, got {jobs}")
    outcomes: dict[str, Outcome] = {}
    steps = _in_processes(function, inputs, jobs, logs)
    if cluster is not None:
        steps = _on_cluster(function, inputs, jobs, logs, cluster)
    for outcome in steps:
        outcomes[outcome.name] = outcome
        on_end(outcome)
    return [outcomes[name] for name in inputs]


# ------------------------------------------------------------------------------------------------------- on this machine


def _in_processes(
    function: Callable[[Any], str], inputs: Mapping[str, Any], jobs: int, logs: Path | None
) -> Iterator[Outcome]:
    context = multiprocessing.get_context("spawn")  # a forked process may not use threads of libraries
    waiting = deque(inputs)
    running: dict[Connection, tuple[str, SpawnProcess, float]] = {}
    limits = _thread_limits(usable_cpus() // jobs)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(sender, function, name, inputs[name], logs), name=name)
                with _environment(limits):
                    process.start()
                sender.close()  # so that the end of the process is the end of the pipe
                running[receiver] = (name, process, time.monotonic())
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                name, process, start = running[ready]
                outcome = _receive(ready, name, process, start)
                del running[ready]
                yield outcome
    finally:
        _end([process for _, process, _ in running.values()])


def _serve(sender: Connection, function: Callable[[Any], str], name: str, value: Any, logs: Path | None) -> None:
    """The main function of a process."""
    # The terminal's Ctrl-C goes to all processes. The parent decides, and ends its children by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sender.send(_attempt(function, name, value, logs))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _receive(receiver: Connection, name: str, process: SpawnProcess, start: float) -> Outcome:
    try:
        outcome: Outcome = receiver.recv()
    except EOFError:
        process.join()
        status = process.exitcode or 0
        how = f"by signal {-status}" if status < 0 else f"with exit status {status}"
        outcome = Outcome(name, f"its process was ended {how}", True, time.monotonic() - start)
    process.join()
    receiver.close()
    return outcome


def _end(processes: list[SpawnProcess]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _CLEANUP
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


# ---------------------------------------------------------------------------------------------------------- on a cluster


def _on_cluster(
    function: Callable[[Any], str], inputs: Mapping[str, Any], jobs: int, logs: Path | None, cluster: str
) -> Iterator[Outcome]:
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(f"{error}; a cluster needs: pip install 'fadepth_ros[cluster]'") from error
    try:
        ray.init(address=cluster, log_to_driver=logs is None, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise DataError(
            f"no Ray cluster at '{cluster}': {_one_line(error)}; start one with 'ray start --head'"
        ) from error
    try:
        machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        cpus = max(1, min(filter(None, machines), default=1) // jobs)
        # A new process for each input, and no second attempt: the function would fail again.
        options = {"num_cpus": cpus, "max_retries": 0, "max_calls": 1}
        task = ray.remote(**options, runtime_env={"env_vars": _thread_limits(cpus)})(_attempt)
        pending = {task.remote(function, name, value, logs): name for name, value in inputs.items()}
        start = time.monotonic()
        try:
            while pending:
                (done,), _ = ray.wait(list(pending))
                name = pending.pop(done)
                try:
                    outcome = ray.get(done)
                except ray.exceptions.RayError as error:
                    outcome = Outcome(
                        name, f"its process was ended: {_one_line(error)}", True, time.monotonic() - start
                    )
                yield outcome
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
    finally:
        ray.shutdown()


# ------------------------------------------------------------------------------------------------------------- one input


def _attempt(function: Callable[[Any], str], name: str, value: Any, logs: Path | None) -> Outcome:
    """Call the function; its error becomes an outcome."""
    start = time.monotonic()
    with _logged(None if logs is None else logs / f"{name}.log"):
        try:
            text, failed = function(value), False
        except Exception as error:
            text, failed = _one_line(error), True
            if logs is not None:
                traceback.print_exc()
    return Outcome(name, text, failed, time.monotonic() - start)


@contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    """Write what this process prints, also by native code, to a file."""
    if path is None:
        yield
        return
    with path.open("w", encoding="utf-8") as log:
        saved = [os.dup(number) for number in (1, 2)]
        try:
            _flush()
            for number in (1, 2):
                os.dup2(log.fileno(), number)
            yield
        finally:
            _flush()
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    # The errors of this package are written for the user; others need their type.
    return text if text and type(error).__module__.startswith("fadepth_core") else f"{type(error).__name__}: {text}"


def _thread_limits(cpus: int) -> dict[str, str]:
    """The environment of a process that may use this number of processors."""
    return dict.fromkeys(_THREADS, str(max(1, cpus)))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
