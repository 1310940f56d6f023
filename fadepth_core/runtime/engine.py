"""DepthEngine: the one door between whoever has frames and whatever computes depth.

It plans the framing, picks the fastest backend that can run here and passes its own check, and moves on to the next one
when a backend fails, at start or in the middle of a drive. A backend that has to be compiled first can be made ready in the
background, while the next best one serves.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fadepth_core.common.framing import Framing
from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import Backend, BackendSpec, copied
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError

_LOG = logging.getLogger("fadepth")

#: Largest relative error of depth against the golden output, as (median, 99th percentile), before a backend is refused. fp32
#: differs by the order of its sums only; half precision keeps 11 bits, bfloat16 8, and log-depth is steepest where disparity is
#: small. int8 was measured at (1.2e-2, 4.1e-2); with the head in 8 bits as well and its PERFORMANCE preset at (6.3e-2, 2.5e-1).
CHECK_BOUNDS = {"fp32": (1e-5, 1e-3), "fp16": (5e-3, 5e-2), "bf16": (3e-2, 3e-1), "int8": (5e-2, 3e-1)}


#: Of the camera that a backend's points are checked with.
_CHECK_K = np.array([[70.0, 0.0, 41.0], [0.0, 60.0, 29.0], [0.0, 0.0, 1.0]])

#: What has passed its check in this process: (digests of the weights and of the int8 graph, backend, precision, threads).
#: Another camera size needs no other check.
_CHECKED: set[tuple] = set()


class EngineError(RuntimeError):
    """No backend can run the checkpoint; the message has one line for each that was tried."""


@dataclass(frozen=True)
class FrameRequest:
    """One frame of a batch; the fields are the arguments of `DepthEngine.infer`."""

    image: np.ndarray
    intrinsics: np.ndarray | None = None
    points: bool = True
    scale: float = 1.0
    limits: tuple[float, float] = (0.0, np.inf)


class _Request(NamedTuple):
    """A frame as a backend is asked: K [3, 3] is that of the published depth (None if unknown), and scale holds all factors."""

    image: np.ndarray
    matrix: np.ndarray | None
    scale: float


@dataclass(frozen=True)
class _Started:
    """A backend that can serve, and the size (height, width) of the frames it takes."""

    name: str
    precision: str
    backend: Backend
    frame_size: tuple[int, int]


@dataclass(frozen=True)
class DepthResult:
    """One frame's answer. The arrays may be views of engine memory, valid until the next `infer` or `infer_batch`.

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
        self._threads, self._batch = threads, batch
        self._log = logger
        # In its default precision a backend still stands behind all that were asked for another one.
        self._wanted = precision
        wanted = [] if precision == "auto" else [(name, precision) for name in order]
        self._remaining: list[tuple[str, str]] = wanted + [(name, "auto") for name in order]
        self._background = background
        self._serving: _Started | None = None
        #: (height, width) of the frames that what served last takes.
        self._frame_size: tuple[int, int] | None = None
        self._streaming = False
        #: Whether a backend that is being made ready is still wanted: a compiler looks now and then.
        self._abandoned = threading.Event()
        weakref.finalize(self, self._abandoned.set)
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
            precision: "auto" (each backend's default), or one of `CHECK_BOUNDS`; int8 is for a checkpoint with an int8
                graph. Where no backend can, depth comes in a default precision, and a warning says why.
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
        return (self._frame_size if ready is None else ready.frame_size) == self.framing.network_size

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
    def batches(self) -> bool:
        """Whether the backend runs several frames at once (`infer_batch`) faster than one by one."""
        return self._serving is not None and hasattr(self._serving.backend, "infer_batch")

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
            ValueError: the image or K has another type or size.
            EngineError: every backend failed.
        """
        request = self._request(image, intrinsics, scale)
        if self._coming is not None:
            self._change_over(image.shape[:2])
        while True:
            try:
                depth, cloud = self._run(request, points, limits)
                return DepthResult(depth, cloud, request.matrix)
            except Exception as error:
                self._fall_back(error)

    def infer_batch(self, requests: Sequence[FrameRequest]) -> list[DepthResult]:
        """Depth of several frames, in their order: at once where the backend can (`batches`), else one by one.

        Raises:
            ValueError: an image or K has another type or size.
            EngineError: every backend failed.
        """
        asked = [(self._request(r.image, r.intrinsics, r.scale), r.points, r.limits) for r in requests]
        if self._coming is not None and requests:
            self._change_over(requests[0].image.shape[:2])
        while True:
            try:
                answers = self._run_batch(asked)
                return [
                    DepthResult(*answer, request.matrix) for answer, (request, *_) in zip(answers, asked, strict=True)
                ]
            except Exception as error:
                self._fall_back(error)

    def stream(
        self,
        frames: Iterable[tuple[np.ndarray, np.ndarray | None]],
        *,
        points: bool = True,
        scale: float = 1.0,
        limits: tuple[float, float] = (0.0, np.inf),
    ) -> Iterator[DepthResult]:
        """Depth of many frames, for whoever waits for the last and not for each: more frames a second than `infer`.

        Args:
            frames: (image, intrinsics), each as for `infer`; some are read ahead.
            points, scale, limits: as for `infer`.

        Yields:
            A result for each frame, in order, in arrays of its own.

        Raises:
            ValueError: an image that `infer` would refuse. This, like what `frames` raises, comes when all frames before have
                been answered.
            RuntimeError: another stream of this engine has not ended.
            EngineError: every backend failed.
        """
        if self._streaming:
            raise RuntimeError("one stream at a time: another one of this engine has not ended")
        self._streaming = True
        try:
            yield from self._stream(iter(frames), points, scale, limits)
        finally:
            self._streaming = False

    def _stream(self, frames: Iterator, points: bool, scale: float, limits) -> Iterator[DepthResult]:
        waiting: deque[_Request] = deque()  # read, not yet answered
        end: list[Exception] = []

        def requests() -> Iterator[_Request]:
            yield from tuple(waiting)  # what a backend that failed has left
            while not end:
                try:
                    request = self._request(*next(frames), scale)
                except Exception as error:
                    end.append(error)
                    return
                waiting.append(request)
                yield request

        if self._coming is not None:
            self._change_over(self.framing.camera_size)
        while True:
            try:
                for depth, cloud in self._answers(requests(), points, limits):
                    matrix = waiting.popleft().matrix
                    yield DepthResult(depth, None if matrix is None else cloud, matrix)
                break
            except Exception as error:
                self._fall_back(error)
        if not isinstance(end[0], StopIteration):
            raise end[0]

    def _answers(self, requests: Iterable[_Request], points: bool, limits) -> Iterator[tuple]:
        """What the backend says to each request, in arrays that stay."""
        backend = self._backend()
        if hasattr(backend, "stream"):
            yield from backend.stream(((self._framed(r.image), *r[1:], limits) for r in requests), points)
            return
        for request in requests:
            yield copied(self._run(request, points, limits))

    def _request(self, image: np.ndarray, intrinsics: np.ndarray | None, scale: float) -> _Request:
        """Raises ValueError for an image or K of another type or size."""
        framing = self.framing
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected a uint8 image [H, W, 3], got {image.dtype} {list(image.shape)}")
        sizes = [framing.camera_size]
        if self._frame_size == framing.network_size != framing.camera_size:
            sizes.append(framing.network_size)
        if image.shape[:2] not in sizes:
            raise ValueError(
                f"expected an image of {' or '.join(str(list(size)) for size in sizes)} (height, width), "
                f"got {list(image.shape[:2])}"
            )
        if intrinsics is not None and np.shape(intrinsics) != (3, 3):
            raise ValueError(f"expected intrinsics [3, 3], got {list(np.shape(intrinsics))}")
        matrix = None if intrinsics is None else framing.output_intrinsics(intrinsics)
        if matrix is not None and self.follows_camera:
            scale *= framing.network_focal_length(intrinsics) / self.checkpoint.description.focal_length
        return _Request(image, matrix, scale)

    def _run(self, request: _Request, points: bool, limits):
        matrix = request.matrix if points else None
        return self._backend().infer(self._framed(request.image), matrix, request.scale, limits)

    def _backend(self) -> Backend:
        if self._serving is None:
            raise self._nothing_left()
        return self._serving.backend

    def _run_batch(self, asked: Sequence[tuple[_Request, bool, tuple[float, float]]]) -> list[tuple]:
        backend = self._backend()
        if not self.batches or len(asked) < 2:
            # Copies: what a backend answers lives until its next call.
            return [copied(self._run(*one)) for one in asked]
        return backend.infer_batch(
            [
                (self._framed(request.image), request.matrix if points else None, request.scale, limits)
                for request, points, limits in asked
            ]
        )

    def _framed(self, image: np.ndarray) -> np.ndarray:
        return image if image.shape[:2] == self._frame_size else self.framing.to_network(image)

    def _fall_back(self, error: Exception) -> None:
        """The backend has failed, with whatever a runtime raises when its device is lost: the next one takes its frames."""
        if self._serving is None:
            raise error
        self._give_up(self.backend_name, f"failed while running: {error}", error)
        # It goes before the next one comes, which may need its memory; and so does what the traceback holds of it.
        self._serving = None
        traceback.clear_frames(error.__traceback__)
        self._next_backend()

    def _next_backend(self) -> None:
        """Start the next backend in order that is there and passes its check."""
        while self._remaining:
            name, precision = self._remaining.pop(0)
            try:
                module = backends.backend_module(name)
                if (reason := module.unavailable_reason()) is not None:
                    self._remaining = [entry for entry in self._remaining if entry[0] != name]
                    self._give_up(name, reason)
                    continue
                known = module.precisions()
                if precision == "auto":
                    precision = known[0]
                    if precision == self._wanted:
                        continue  # was tried in its turn
                if precision not in known:
                    self._give_up(name, f"does not compute in {precision}")
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
            self._coming[1].exception()  # waits
            self._change_over(self.framing.camera_size)
            return
        raise self._nothing_left()

    def _nothing_left(self) -> EngineError:
        lines = "".join(f"\n  {failure}" for failure in self.failures)
        return EngineError(f"no backend can run {self.checkpoint.path}{lines}")

    def _use(self, started: _Started) -> None:
        self._serving, self._frame_size = started, started.frame_size
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
                self._remaining = [*((name, precision) for name, _, precision in self._deferred), *self._remaining]
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
            # Those that have not had their turn come before what served until now, which serves while they are made ready.
            waiting = [(name, precision) for name, _, precision in self._deferred]
            self._remaining = [*waiting, (self._serving.name, self._serving.precision), *self._remaining]
            self._deferred = []
        self._use(started)

    def _job(self, precision: str) -> BackendSpec:
        framing = self.framing
        if self._frame_size == framing.network_size:
            framing = framing.at_network()  # frames come at that size already
        return BackendSpec(self.checkpoint, framing, precision, self._threads, self._batch, self._log, self._abandoned)

    def _give_up(self, name: str, reason: str, error: BaseException | None = None) -> None:
        """Note why a backend is not used; `error`: what it failed with, where it is there but failed."""
        self.failures.append(f"{name}: {reason}")
        self.degraded = self.degraded or error is not None
        level = logging.INFO if error is None else logging.WARNING
        trace = None if isinstance(error, CheckpointError) else error  # what is wrong with a file, its message says
        self._log.log(level, "backend %s passed over: %s", name, reason, exc_info=trace)


def _started(name: str, module: ModuleType, job: BackendSpec) -> _Started:
    """A backend that has passed its check and run once."""
    if module.ANY_SIZE:
        _check_on_golden_frame(module, job)
    backend = module.create(job)
    try:
        if not module.ANY_SIZE:
            _check_as_it_is(backend, job)
        _check_batch(backend, job)
    except EngineError:
        # What was compiled is wrong, and would be again at the next start, were it kept.
        getattr(module, "forget", lambda _job: None)(job)
        raise
    size = job.framing.network_size if backend.takes_network_size else job.framing.camera_size
    # The first run allocates.
    backend.infer(np.zeros((*size, 3), np.uint8), np.eye(3), 1.0, (0.0, np.inf))
    return _Started(name, job.precision, backend, size)


def _check_on_golden_frame(module: ModuleType, job: BackendSpec) -> None:
    """Compare a backend for golden frames with the checkpoint's golden output."""
    checkpoint, golden = job.checkpoint, job.checkpoint.golden
    digests = checkpoint.weights_sha256, checkpoint.description.int8_sha256
    key = (*digests, module.create, job.precision, job.threads)
    # A training run's checkpoint has no golden frame: torch is there, and the export from it was checked as it was made.
    if key in _CHECKED or not golden:
        return
    size = golden["image"].shape[:2]
    backend = module.create(replace(job, framing=Framing.plan(size, size), batch=1))
    _compare(backend, job.precision, golden["image"], golden["depth"])
    _CHECKED.add(key)


def _check_as_it_is(backend: Backend, job: BackendSpec) -> None:
    """Compare a backend with plain PyTorch in float32 on the CPU, on a frame of the camera's size: to compile it for golden
    frames, too, would take as long again."""
    from fadepth_core.runtime.backends.torch import reference_depth

    image = _waves(job.framing.camera_size)
    _compare(backend, job.precision, image, reference_depth(job, image))


def _check_batch(backend: Backend, job: BackendSpec) -> None:
    """Compare a backend's batch, which may be another compilation, with what it says of the same frames one by one."""
    if job.batch < 2 or not hasattr(backend, "infer_batch"):
        return
    image = _waves(job.framing.network_size if backend.takes_network_size else job.framing.camera_size)
    frames = [(np.roll(image, 16 * i, axis=1), _CHECK_K, 1.0 + i, (0.0, np.inf)) for i in range(job.batch)]
    alone = [backend.infer(*frame)[0].copy() for frame in frames]
    for (depth, points), expected in zip(backend.infer_batch(frames), alone, strict=True):
        _compare_depth(depth, points, job.precision, expected)


def _waves(size: tuple[int, int]) -> np.ndarray:
    """A picture [H, W, 3] with something at every scale."""
    v, u = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    waves = [np.sin(u / (9 + 4 * c)) * np.cos(v / (7 + 3 * c)) + np.sin(u * v / (211 * size[1])) for c in range(3)]
    return (127 + 60 * np.stack(waves, -1)).astype(np.uint8)


def _compare(backend: Backend, precision: str, image: np.ndarray, expected: np.ndarray) -> None:
    """Raise EngineError unless a backend's depth of `image` [H, W, 3] is `expected` [h, w], and its points lie on their rays."""
    _compare_depth(*backend.infer(image, _CHECK_K, 1.0, (0.0, np.inf)), precision, expected)


def _compare_depth(depth: np.ndarray, points: np.ndarray, precision: str, expected: np.ndarray) -> None:
    k = _CHECK_K
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
