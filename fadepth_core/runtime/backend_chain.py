"""Starts backends for a `DepthEngine` in order of preference, and replaces a backend that fails.

Order: the requested precision on every backend, then each backend's default precision. With `background`, a backend
that has to be compiled is built in a thread while the next one in the order serves; one build runs at a time.
"""

from __future__ import annotations

import logging
import threading
import traceback
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import Backend, BackendSpec, BackendType, FrameInput
from fadepth_core.runtime.checkpoint import CheckpointError
from fadepth_core.runtime.verification import VerificationError, check_batch, check_golden_frame, check_reference


class EngineError(RuntimeError):
    """No backend can run the checkpoint; the message has one line for each that was tried."""


class _Candidate(NamedTuple):
    """A backend to try, and in which precision ("auto": its default)."""

    name: str
    precision: str


@dataclass(frozen=True)
class StartedBackend:
    """A verified backend, and the size (height, width) of the frames it takes."""

    name: str
    precision: str
    backend: Backend
    frame_size: tuple[int, int]


class _Build(NamedTuple):
    """A backend that is being built in a background thread."""

    name: str
    result: Future[StartedBackend]


class BackendChain:
    """Holds the backend that serves, the one that is being built, those to try next, and why others are not used.

    Args:
        spec: what backends are built for. Its precision may be "auto": each backend's default.
        order: names of backends, the preferred one first.
        background: build backends that have to be compiled in a background thread, while another one can serve.

    Attributes:
        failures: why backends are not used, as "NAME: REASON", oldest first.
        degraded: whether one of these backends was tried and failed. An unavailable backend does not count.
        serving: the backend to use; None once all have failed.
        frame_size: (height, width) of the frames that `serving` takes, or the last backend that served.

    Raises:
        EngineError: no backend works.
    """

    def __init__(self, spec: BackendSpec, order: Sequence[str], background: bool = False):
        self.failures: list[str] = []
        self.degraded = False
        self.serving: StartedBackend | None = None
        self.frame_size = spec.framing.camera_size
        self._spec, self._background = spec, background
        requested = [] if spec.precision == "auto" else [_Candidate(name, spec.precision) for name in order]
        self._pending = requested + [_Candidate(name, "auto") for name in order]
        self._build: _Build | None = None
        # Candidates that have to be compiled. They wait, because another build is running.
        self._deferred: list[_Candidate] = []
        # Cancels a build that still runs when this chain is released.
        weakref.finalize(self, spec.cancelled.set)
        self._start_next()

    @property
    def backend(self) -> Backend:
        """The backend to use. Raises EngineError once all have failed."""
        return self.started.backend

    @property
    def started(self) -> StartedBackend:
        """`serving`. Raises EngineError once all have failed."""
        if self.serving is None:
            raise self._all_failed()
        return self.serving

    @property
    def next_frame_size(self) -> tuple[int, int]:
        """(height, width) that the next frame should have.

        A backend whose build has finished may need another size than the serving one. It can replace the serving one only at a
        frame of its own size or of the camera's size.
        """
        if self._build is None or not self._build.result.done() or self._build.result.exception() is not None:
            return self.frame_size
        return self._build.result.result().frame_size

    @property
    def description(self) -> str:
        """Backend, precision and device in a few words."""
        if self.serving is None:
            return "no backend"
        serving = f"{self.serving.name} {self.serving.precision} on {self.serving.backend.device}"
        return serving if self._build is None else f"{serving} ({self._build.name} is being built)"

    @property
    def building(self) -> bool:
        """Whether a backend is being built in the background."""
        return self._build is not None and not self._build.result.done()

    def wait_for_build(self) -> None:
        """Wait until the build in the background, if there is one, has finished or failed."""
        if self._build is not None:
            self._build.result.exception()

    def use_finished_build(self, image_size: tuple[int, int]) -> None:
        """If the build in the background has finished, serve with it. If it has failed, begin the next build.

        Args:
            image_size: (height, width) of the next frame; a finished backend that cannot take it is not used yet.
        """
        if self._build is None or not self._build.result.done():
            return
        name, result = self._build
        if (error := result.exception()) is not None:
            self._build = None
            self._note_failure(name, f"failed to start: {error}", error)
            if self.serving is None:
                self._retry_deferred()
                self._start_next()
            elif self._deferred:
                self._build_in_background(self._deferred.pop(0))
            return
        started = result.result()
        # Every backend can take a frame at the camera's size, because such a frame can still be resized.
        if image_size not in (started.frame_size, self._spec.framing.camera_size):
            return
        self._build = None
        self._retry_deferred()
        self._serve(started)

    def fall_back(self, error: Exception) -> None:
        """Replace the serving backend, which has raised `error`, with the next one that works.

        Raises:
            EngineError: none is left.
            Exception: `error` itself, when no backend was serving.
        """
        if self.serving is None:
            raise error
        self._note_failure(self.serving.name, f"failed while running: {error}", error)
        # Release the failed backend first, because the next one may need its memory. The traceback refers to it, too.
        self.serving = None
        traceback.clear_frames(error.__traceback__)
        self._start_next()

    def _start_next(self) -> None:
        """Serve with the first pending candidate that starts and passes its checks."""
        while self._pending:
            candidate = self._pending.pop(0)
            try:
                usable = self._usable(candidate)
                if usable is None:
                    continue
                compiled = backends.backend_type(usable.name).compiled_per_size
                if not (self._background and compiled and self._pending):
                    self._serve(_start(usable.name, backends.backend_type(usable.name), self._spec_for(usable)))
                    return
                if self._build is None:
                    self._build_in_background(usable)
                else:
                    # Two builds at a time would slow down each other and the backend that serves.
                    self._deferred.append(usable)
            except Exception as error:
                self._note_failure(candidate.name, f"failed to start: {error}", error)
        if self._build is None:
            raise self._all_failed()
        self.wait_for_build()
        self.use_finished_build(self._spec.framing.camera_size)

    def _usable(self, candidate: _Candidate) -> _Candidate | None:
        """The candidate with its precision chosen; None, and a note of the reason, when it cannot run here."""
        name, precision = candidate
        backend_type = backends.backend_type(name)
        if (reason := backend_type.unavailable_reason()) is not None:
            self._pending = [other for other in self._pending if other.name != name]
            self._note_failure(name, reason)
            return None
        supported = backend_type.precisions()
        if precision == "auto":
            precision = supported[0]
            if precision == self._spec.precision:
                return None  # has been tried as the requested precision
        if precision not in supported:
            self._note_failure(name, f"does not compute in {precision}")
            return None
        return _Candidate(name, precision)

    def _retry_deferred(self) -> None:
        """Queue the deferred candidates again. The serving backend is queued behind them, to serve during the next build."""
        serving = [] if self.serving is None else [_Candidate(self.serving.name, self.serving.precision)]
        self._pending = [*self._deferred, *serving, *self._pending]
        self._deferred = []

    def _serve(self, started: StartedBackend) -> None:
        self.serving, self.frame_size = started, started.frame_size
        framing = self._spec.framing
        self._spec.logger.info(
            "depth runs on %s; network %dx%d, depth %dx%d",
            self.description,
            *framing.network_size[::-1],
            *framing.output_size[::-1],
        )

    def _build_in_background(self, candidate: _Candidate) -> None:
        self._build = _Build(candidate.name, Future())
        # A daemon thread, so that the process can end during a build. The thread has no reference to this chain, because the
        # release of the chain cancels the build.
        threading.Thread(
            target=_run_build,
            args=(self._build, backends.backend_type(candidate.name), self._spec_for(candidate)),
            name=f"building {candidate.name}",
            daemon=True,
        ).start()

    def _spec_for(self, candidate: _Candidate) -> BackendSpec:
        framing = self._spec.framing
        if self.frame_size == framing.network_size:
            framing = framing.at_network()  # the caller resizes its frames already
        return replace(self._spec, framing=framing, precision=candidate.precision)

    def _note_failure(self, name: str, reason: str, error: BaseException | None = None) -> None:
        """Note and log why a backend is not used; `error` is what it raised, None for one that is unavailable."""
        self.failures.append(f"{name}: {reason}")
        self.degraded = self.degraded or error is not None
        level = logging.INFO if error is None else logging.WARNING
        trace = None if isinstance(error, CheckpointError) else error  # the message of a CheckpointError is sufficient
        self._spec.logger.log(level, "backend %s is not used: %s", name, reason, exc_info=trace)

    def _all_failed(self) -> EngineError:
        return _no_backend(self._spec, self.failures)


def check_startable(spec: BackendSpec, order: Sequence[str]) -> None:
    """Run the golden frame on the first backend of `order` that starts at any size within seconds.

    Backends that are compiled for one size are left out, since a build takes a minute. If only such ones are available,
    nothing is run.

    Raises:
        EngineError: no backend is available, or all that were tried failed.
    """
    failures: list[str] = []
    untried = False
    for name in order:
        backend_type = backends.backend_type(name)
        if (reason := backend_type.unavailable_reason()) is not None:
            failures.append(f"{name}: {reason}")
            continue
        if backend_type.compiled_per_size:
            untried = True
            continue
        supported = backend_type.precisions()
        for precision in dict.fromkeys((spec.precision, supported[0])):
            if precision not in supported:
                continue
            try:
                candidate = replace(spec, precision=precision)
                if spec.checkpoint.golden:
                    check_golden_frame(backend_type, candidate)
                else:
                    backend_type.create(candidate).prepare()
                return
            except Exception as error:
                failures.append(f"{name}: failed to start: {error}")
    if not untried:
        raise _no_backend(spec, failures)


def _no_backend(spec: BackendSpec, failures: Sequence[str]) -> EngineError:
    return EngineError(f"no backend can run {spec.checkpoint.path}" + "".join(f"\n  {line}" for line in failures))


def _run_build(build: _Build, backend_type: BackendType, spec: BackendSpec) -> None:
    try:
        build.result.set_result(_start(build.name, backend_type, spec))
    except BaseException as error:
        build.result.set_exception(error)


def _start(name: str, backend_type: BackendType, spec: BackendSpec) -> StartedBackend:
    """Create a backend, verify its results, and run one frame, since the first run allocates memory."""
    backend = _create_verified(backend_type, spec)
    backend.prepare()
    size = spec.framing.network_size if backend.takes_network_size else spec.framing.camera_size
    backend.infer(FrameInput(np.zeros((*size, 3), np.uint8), np.eye(3)))
    return StartedBackend(name, spec.precision, backend, size)


def _create_verified(backend_type: BackendType, spec: BackendSpec) -> Backend:
    if not backend_type.compiled_per_size:
        check_golden_frame(backend_type, spec)
    backend = backend_type.create(spec)
    try:
        if backend_type.compiled_per_size:
            check_reference(backend, spec)
        check_batch(backend, spec)
    except VerificationError:
        # Otherwise the next start would load the same wrong files.
        backend_type.discard(spec)
        raise
    return backend
