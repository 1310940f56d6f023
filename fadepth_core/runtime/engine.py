"""DepthEngine: the one door between whoever has frames and whatever computes depth.

It plans the framing, picks the fastest backend that can run here and passes its own check, and moves on to the next one
when a backend fails, at start or in the middle of a drive. A backend that has to be compiled first can be made ready in the
background, while the next best one serves.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np

from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import Backend, Job
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.framing import Framing

_LOG = logging.getLogger("fadepth")

#: Largest relative error of depth against the golden output, as (median, 99th percentile), before a backend is refused. fp32
#: differs by the order of its sums only; half precision keeps 11 bits, bfloat16 8, and log-depth is steepest where disparity is
#: small.
CHECK_BOUNDS = {"fp32": (1e-5, 1e-3), "fp16": (5e-3, 5e-2), "bf16": (3e-2, 3e-1)}


#: What has passed its check in this process: (digest of the weights, backend, precision, threads). Another camera size
#: needs no other check.
_CHECKED: set[tuple] = set()


class EngineError(RuntimeError):
    """No backend can run the checkpoint; the message has one line for each that was tried."""


@dataclass(frozen=True)
class _Started:
    """A backend that can serve, and the size (height, width) of the frames it takes."""

    name: str
    precision: str
    backend: Backend
    frame_size: tuple[int, int]


@dataclass(frozen=True)
class DepthResult:
    """One frame's answer. The arrays may be views of engine memory, valid until the next `infer`.

    Attributes:
        depth: [h, w] float32, metres along the optical axis; -inf too close, +inf too far (REP-117).
        points: [h, w, 3] float32, metres, optical frame (x right, y down, z forward), NaN where depth is not finite;
            None when no intrinsics were given or points were not asked for.
        intrinsics: [3, 3] float64, K of `depth`; None when no intrinsics were given.
    """

    depth: np.ndarray
    points: np.ndarray | None
    intrinsics: np.ndarray | None

    def limited(self, limits: tuple[float, float]) -> DepthResult:
        """The same with other limits (nearest, farthest, metres), inside those it was made with."""
        near, far = np.float32(limits)
        depth = np.where(
            self.depth > far, np.float32(np.inf), np.where(self.depth < near, -np.float32(np.inf), self.depth)
        )
        points = self.points
        if points is not None:
            points = np.where(np.isfinite(depth)[..., None], points, np.float32(np.nan))
        return DepthResult(depth, points, self.intrinsics)


class DepthEngine:
    """Runs one checkpoint for one camera size. Not thread-safe; make it with `DepthEngine.load`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        framing: Framing,
        order: Sequence[str],
        precision: str = "auto",
        threads: int = 0,
        logger: logging.Logger = _LOG,
        batch: int = 1,
        background: bool = False,
    ):
        self.checkpoint = checkpoint
        self.framing = framing
        #: Why earlier backends were passed over or given up, oldest first.
        self.failures: list[str] = []
        #: Whether one of them was tried and failed, rather than not being there.
        self.degraded = False
        self._wanted_precision = precision
        self._threads, self._batch = threads, batch
        self._log = logger
        self._remaining = list(order)
        self._background = background
        self._serving: _Started | None = None
        #: The backend that is being made ready, and those that wait for their turn should it fail.
        self._coming: tuple[str, Future[_Started]] | None = None
        self._deferred: list[tuple[str, ModuleType, str]] = []
        self._next_backend()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint | str | os.PathLike | None = None,
        input_size: tuple[int, int] | None = None,
        camera_size: tuple[int, int] | None = None,
        backend: str = "auto",
        precision: str = "auto",
        *,
        crop_to_aspect: bool = False,
        full_resolution: bool = False,
        threads: int = 0,
        logger: logging.Logger = _LOG,
        batch: int = 1,
        background: bool = False,
    ) -> DepthEngine:
        """Load a checkpoint and compile it.

        Args:
            checkpoint: an opened one, a path, or None for the one that is shipped.
            input_size: (height, width) of the network's input, multiples of 32; None follows the camera's aspect ratio
                at about the number of pixels the checkpoint was trained with.
            camera_size: (height, width) of the frames; None means the size the checkpoint was trained at.
            backend: "auto", or the one to try first ("tensorrt", "inductor", "torch", "openvino"); the others stay behind
                it as fallbacks.
            precision: "auto" (each backend's default), or one of `CHECK_BOUNDS`.
            crop_to_aspect: crop frames to the network's aspect ratio instead of stretching them.
            full_resolution: depth at the camera's size instead of the network's.
            threads: CPU threads; 0 means up to four.
            logger: gets one line for each decision.
            batch: how many frames at most are handed over together.
            background: answer with the next best backend while a compiler works, and change over when it is done.

        Raises:
            CheckpointError: the file cannot be used.
            FramingError: sizes that cannot be.
            ValueError: unknown backend or precision.
            EngineError: no backend works.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        order = backends.automatic_order()
        if backend != "auto":
            backends.backend_module(backend)
            order = (backend, *(name for name in order if name != backend))
        if precision != "auto" and precision not in CHECK_BOUNDS:
            raise ValueError(f"unknown precision '{precision}'; known: auto, {', '.join(CHECK_BOUNDS)}")
        trained_size = checkpoint.description.network_size
        if camera_size is None:
            camera_size, input_size = trained_size, input_size or trained_size
        framing = Framing.plan(
            camera_size, input_size, crop_to_aspect, full_resolution, trained_size[0] * trained_size[1]
        )
        return cls(checkpoint, framing, order, precision, threads, logger, batch, background)

    @property
    def takes_network_size(self) -> bool:
        """Whether frames are best handed over already at the network's size (`Framing.to_network`)."""
        # What is ready decides: it can take over only with a frame that it can use.
        ready = self._ready()
        return (self._serving if ready is None else ready).frame_size == self.framing.network_size

    @property
    def backend_name(self) -> str:
        """What serves now."""
        return self._serving.name

    @property
    def precision(self) -> str:
        """What it computes in."""
        return self._serving.precision

    @property
    def follows_camera(self) -> bool:
        """Whether depth depends on the camera's focal length."""
        return self.checkpoint.description.focal_length is not None

    @property
    def description(self) -> str:
        """Backend, precision and device in a few words."""
        coming = f" ({self._coming[0]} is being made ready)" if self._coming else ""
        return f"{self.backend_name} {self.precision} on {self._serving.backend.device}{coming}"

    def infer(
        self,
        image: np.ndarray,
        intrinsics: np.ndarray | None = None,
        *,
        points: bool = True,
        scale: float = 1.0,
        limits: tuple[float, float] = (0.0, np.inf),
    ) -> DepthResult:
        """Depth of one frame.

        Args:
            image: [H, W, 3] uint8 RGB, at the camera's size or, with `takes_network_size`, already at the network's.
            intrinsics: [3, 3] K of the camera, pixels at the camera's size; None if unknown: depth is then that of a
                camera with the checkpoint's focal length.
            points: whether points are wanted too (they need intrinsics).
            scale: factor on depth.
            limits: nearest and farthest depth that count as measured, metres.

        Raises:
            ValueError: the image has another type or size.
            EngineError: every backend failed.
        """
        framing = self.framing
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected a uint8 image [H, W, 3], got {image.dtype} {list(image.shape)}")
        sizes = [framing.camera_size]
        if self._serving.frame_size == framing.network_size != framing.camera_size:
            sizes.append(framing.network_size)
        if image.shape[:2] not in sizes:
            raise ValueError(
                f"expected an image of {' or '.join(str(list(size)) for size in sizes)} (height, width), "
                f"got {list(image.shape[:2])}"
            )
        matrix = None if intrinsics is None else framing.output_intrinsics(intrinsics)
        if matrix is not None and self.follows_camera:
            scale *= framing.network_focal_length(intrinsics) / self.checkpoint.description.focal_length
        if self._coming is not None:
            self._change_over(image.shape[:2])
        while True:
            try:
                depth, cloud = self._run(image, matrix if points else None, scale, limits)
                return DepthResult(depth, cloud, matrix)
            except Exception as error:
                # Whatever a runtime raises when its device is lost; the frame is tried again on the next backend.
                self._give_up(self.backend_name, f"failed while running: {error}", error)
                self._next_backend()

    def _run(self, image, matrix, scale, limits):
        serving = self._serving
        if image.shape[:2] != serving.frame_size:
            image = self.framing.to_network(image)
        return serving.backend.infer(image, matrix, scale, limits)

    def _next_backend(self) -> None:
        """Start the next backend in order that is there and passes its check."""
        while self._remaining:
            name = self._remaining.pop(0)
            try:
                module, precision, reason = self._look_at(name)
                if reason is not None:
                    self._give_up(name, reason)
                elif not self._background or module.ANY_SIZE or not self._remaining:
                    self._use(_started(name, module, self._job(precision)))
                    return
                elif self._coming is None:
                    self._make_ready(name, module, precision)
                else:
                    # One compiler at a time: a second one would slow down the first, and what serves, for a second best.
                    self._deferred.append((name, module, precision))
            except Exception as error:
                self._give_up(name, f"failed to start: {error}", error)
        if self._coming is not None:  # nothing else can serve
            self._serving = None
            self._coming[1].exception()  # waits
            self._change_over(self.framing.camera_size)
            return
        raise EngineError(
            "no backend can run " + str(self.checkpoint.path) + "".join(f"\n  {f}" for f in self.failures)
        )

    def _look_at(self, name: str) -> tuple[ModuleType, str, str | None]:
        """A backend's module, the precision it would compute in, and why it cannot be used here, if so."""
        module = backends.backend_module(name)
        if (reason := module.missing()) is not None:
            return module, "", reason
        known = module.precisions()
        precision = known[0] if self._wanted_precision == "auto" else self._wanted_precision
        return module, precision, None if precision in known else f"does not compute in {precision}"

    def _use(self, started: _Started) -> None:
        self._serving = started
        self._log.info(
            "depth runs on %s; network %dx%d, depth %dx%d",
            self.description,
            *self.framing.network_size[::-1],
            *self.framing.output_size[::-1],
        )

    def _make_ready(self, name: str, module: ModuleType, precision: str) -> None:
        """Begin to start a backend in the background."""
        future: Future[_Started] = Future()

        job = self._job(precision)

        def work() -> None:
            try:
                future.set_result(_started(name, module, job))
            except BaseException as error:
                future.set_exception(error)

        self._coming = (name, future)
        # A daemon: whoever wants to end need not wait for a compiler.
        threading.Thread(target=work, name=f"making {name} ready", daemon=True).start()

    def _ready(self) -> _Started | None:
        """What has been made ready and waits to serve."""
        if self._coming is None:
            return None
        _, future = self._coming
        return future.result() if future.done() and future.exception() is None else None

    def _change_over(self, image_size: tuple[int, int]) -> None:
        """Let what has been made ready serve, if it can use a frame of that size; or start the next one if it has failed."""
        name, future = self._coming
        if not future.done():
            return
        if (error := future.exception()) is not None:
            self._coming = None
            self._give_up(name, f"failed to start: {error}", error)
            if self._serving is None:
                self._remaining = [*(name for name, _, _ in self._deferred), *self._remaining]
                self._deferred = []
                self._next_backend()
            elif self._deferred:
                self._make_ready(*self._deferred.pop(0))
            return
        started = future.result()
        if started.frame_size != image_size != self.framing.camera_size:
            return
        self._coming = None
        if self._serving is not None:
            self._remaining.insert(0, self._serving.name)  # what served until now stays the first to fall back on
        self._use(started)

    def _job(self, precision: str) -> Job:
        framing = self.framing
        if self._serving is not None and self._serving.frame_size == framing.network_size:
            framing = framing.at_network()  # frames come at that size already
        return Job(self.checkpoint, framing, precision, self._threads, self._batch, self._log)

    def _give_up(self, name: str, reason: str, error: BaseException | None = None) -> None:
        """Note why a backend is not used; `error`: what it failed with, where it is there but failed."""
        self.failures.append(f"{name}: {reason}")
        self.degraded = self.degraded or error is not None
        level = logging.INFO if error is None else logging.WARNING
        self._log.log(level, "backend %s passed over: %s", name, reason, exc_info=error)


def _started(name: str, module: ModuleType, job: Job) -> _Started:
    """A backend that has passed its check and run once."""
    if module.ANY_SIZE:
        _check_on_golden_frame(module, job)
    backend = module.create(job)
    if not module.ANY_SIZE:
        _check_as_it_is(backend, job)
    size = job.framing.network_size if backend.takes_network_size else job.framing.camera_size
    # The first run allocates.
    backend.infer(np.zeros((*size, 3), np.uint8), np.eye(3), 1.0, (0.0, np.inf))
    return _Started(name, job.precision, backend, size)


def _check_on_golden_frame(module: ModuleType, job: Job) -> None:
    """Compare a backend for golden frames with the checkpoint's golden output."""
    checkpoint, golden = job.checkpoint, job.checkpoint.golden
    key = (checkpoint.weights_sha256, module.create, job.precision, job.threads)
    # A training run's checkpoint has no golden frame: torch is there, and the export from it was checked as it was made.
    if key in _CHECKED or not golden:
        return
    size = golden["image"].shape[:2]
    backend = module.create(replace(job, framing=Framing.plan(size, size), batch=1))
    _compare(backend, job.precision, golden["image"], golden["depth"])
    _CHECKED.add(key)


def _check_as_it_is(backend: Backend, job: Job) -> None:
    """Compare a backend with plain PyTorch in float32 on the CPU, on a frame of the camera's size: to compile it for golden
    frames, too, would take as long again."""
    from fadepth_core.runtime.backends.torch import reference_depth

    height, width = job.framing.camera_size
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(u / (9 + 4 * c)) * np.cos(v / (7 + 3 * c)) + np.sin(u * v / (211 * width)) for c in range(3)]
    image = (127 + 60 * np.stack(waves, -1)).astype(np.uint8)
    _compare(backend, job.precision, image, reference_depth(job, image))


def _compare(backend: Backend, precision: str, image: np.ndarray, expected: np.ndarray) -> None:
    """Raise EngineError unless a backend's depth of `image` [H, W, 3] is `expected` [h, w], and its points lie on their rays."""
    k = np.array([[70.0, 0.0, 41.0], [0.0, 60.0, 29.0], [0.0, 0.0, 1.0]])
    depth, points = backend.infer(image, k, 1.0, (0.0, np.inf))
    error, bounds = np.quantile(np.abs(depth - expected) / expected, (0.5, 0.99)), CHECK_BOUNDS[precision]
    if not (error[0] <= bounds[0] and error[1] <= bounds[1]):
        raise EngineError(
            f"its depth differs from the reference by {error[0]:.1e} in the median, {error[1]:.1e} in the 99th "
            f"percentile (relative); allowed are {bounds[0]:.0e} and {bounds[1]:.0e}"
        )
    v, u = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]]
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
    if not np.allclose(points, depth[..., None] * rays, rtol=1e-3, atol=1e-3 * float(np.median(depth))):
        raise EngineError("its points do not lie on the rays of its depth")
