"""Public inference API: loads a checkpoint, selects a backend, falls back on failure.

`DepthEngine.load` plans the framing and starts a `BackendChain`; `infer`, `infer_batch` and `stream` turn frames into
depth and points.
"""

from __future__ import annotations

import logging
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from fadepth_core.common.framing import Framing, focal_length
from fadepth_core.runtime import backends
from fadepth_core.runtime.backend_chain import BackendChain, EngineError, check_startable
from fadepth_core.runtime.backends import BackendSpec, FrameInput, FrameOutput
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.verification import CHECK_BOUNDS

__all__ = ["DepthEngine", "DepthResult", "EngineError", "FrameRequest"]

_LOG = logging.getLogger("fadepth")


@dataclass(frozen=True)
class FrameRequest:
    """One frame and what to compute from it.

    Attributes:
        image: [H, W, 3] uint8 RGB, at the camera's size or, if `DepthEngine.takes_network_size`, at the network's.
        intrinsics: [3, 3] K of the camera, pixels at the camera's size; None if unknown: depth is then that of a camera
            with the checkpoint's focal length, and there are no points.
        points: whether to compute points, too. They need intrinsics.
        scale: factor on depth.
        limits: nearest and farthest depth that count as measured, metres.
        confidence: whether to compute confidence, too. It needs a checkpoint with a confidence head
            (`DepthEngine.has_confidence`).
    """

    image: np.ndarray
    intrinsics: np.ndarray | None = None
    points: bool = True
    scale: float = 1.0
    limits: tuple[float, float] = (0.0, np.inf)
    confidence: bool = False


@dataclass(frozen=True)
class DepthResult:
    """Depth of one frame. The arrays may be views of engine memory, valid until the next `infer` or `infer_batch`.

    Attributes:
        depth: [h, w] float32, metres along the optical axis; -inf too close, +inf too far (REP-117).
        points: [h, w, 3] float32, metres, optical frame (x right, y down, z forward), NaN where depth is not finite;
            None if the request has no intrinsics or its `points` is false.
        intrinsics: [3, 3] float64, K of `depth`; None when the request has no intrinsics.
        confidence: [h, w] float32 in (0, 1): 1 / (1 + u), where u is the expected relative error of depth. None if the
            request's `confidence` is false or the checkpoint has no confidence head.
    """

    depth: np.ndarray
    points: np.ndarray | None
    intrinsics: np.ndarray | None
    confidence: np.ndarray | None = None

    def limited(self, limits: tuple[float, float]) -> DepthResult:
        """The same result with other limits (nearest, farthest, metres), inside those it was computed with."""
        near, far = np.asarray(limits, np.float32)
        depth = np.where(
            self.depth > far, np.float32(np.inf), np.where(self.depth < near, -np.float32(np.inf), self.depth)
        )
        points = self.points
        if points is not None:
            points = np.where(np.isfinite(depth)[..., None], points, np.float32(np.nan))
        return replace(self, depth=depth, points=points)

    def confident(self, least: float) -> DepthResult:
        """The same result with depth and points NaN where confidence is below `least`. Without confidence, the same
        result."""
        if self.confidence is None:
            return self
        return self.without(self.confidence < np.float32(least))

    def without(self, pixels: np.ndarray) -> DepthResult:
        """The same result with depth and points NaN where `pixels` [h, w] bool is true."""
        mask = np.ascontiguousarray(pixels).view(np.uint8)
        points = None if self.points is None else _with_nan(self.points, mask)
        return replace(self, depth=_with_nan(self.depth, mask), points=points)

    def unseen(self, pixels: np.ndarray) -> DepthResult:
        """The same result where the camera shows nothing at `pixels` [h, w] bool: depth and points NaN, confidence 0."""
        confidence = None if self.confidence is None else np.where(pixels, np.float32(0), self.confidence)
        return replace(self.without(pixels), confidence=confidence)


def _with_nan(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of `values` [h, w] or [h, w, 3] float32 with NaN where `mask` [h, w] uint8 is not 0. It takes a fifth of the
    time of `np.where`, which is slow for the three values of a point."""
    return np.asarray(cv2.copyTo(_nan_array(values.shape), mask, values.copy()))


@lru_cache(maxsize=8)
def _nan_array(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


class _PreparedRequest(NamedTuple):
    """A validated request.

    Attributes:
        frame: input of the backend, but its image may still have to be resized for the backend that runs it.
        intrinsics: [3, 3] K of the published depth, also if no points are requested; None if the request has none.
    """

    frame: FrameInput
    intrinsics: np.ndarray | None


class DepthEngine:
    """Runs one checkpoint for one camera size. Not thread-safe. Create it with `DepthEngine.load`."""

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
        self._streaming = False
        spec = BackendSpec(checkpoint, framing, precision, threads, batch, logger)
        self._chain = BackendChain(spec, order, background)

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
        """Load a checkpoint and start a backend.

        Args:
            checkpoint: an opened checkpoint, a path, or None for the shipped one.
            input_size: (height, width) of the network's input, multiples of 32; None follows the camera's aspect ratio
                at about the number of pixels the checkpoint was trained with.
            camera_size: (height, width) of the frames; None means the size the checkpoint was trained at.
            backend: "auto", or the one to try first ("tensorrt", "inductor", "torch", "openvino"); the others are
                fallbacks.
            precision: "auto" (each backend's default), or one of `CHECK_BOUNDS`; int8 needs a checkpoint with an int8
                graph. Where no backend supports it, a default precision is used, and a warning says why.
            crop_to_aspect: crop frames to the network's aspect ratio instead of stretching them.
            full_resolution: depth at the camera's size instead of the network's.
            threads: CPU threads; 0 means up to four.
            logger: gets one line for each decision.
            batch: largest number of frames that `infer_batch` runs together.
            background: while a backend is compiled, serve with the next one in the order.

        Raises:
            CheckpointError: the file cannot be used.
            FramingError: impossible sizes.
            ValueError: unknown backend or precision, a size that is not two whole numbers, fewer than 0 threads, or an
                empty batch.
            EngineError: no backend works.
        """
        order = _order(backend, precision)
        input_size, camera_size = _size(input_size, "input_size"), _size(camera_size, "camera_size")
        for name, number, least in (("threads", threads, 0), ("batch", batch, 1)):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}")
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        trained_size = checkpoint.description.network_size
        if camera_size is None:
            camera_size, input_size = trained_size, input_size or trained_size
        framing = Framing.plan(
            camera_size, input_size, crop_to_aspect, full_resolution, trained_size[0] * trained_size[1]
        )
        return cls(checkpoint, framing, order, precision, threads, logger, batch, background)

    @staticmethod
    def check(
        checkpoint: Checkpoint | str | os.PathLike | None = None,
        backend: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        logger: logging.Logger = _LOG,
    ) -> None:
        """Find out whether `load` with these arguments can succeed, without building an engine for a camera.

        A backend runs the checkpoint's golden frame, which takes about a second. The next `load` does not repeat it.

        Raises:
            CheckpointError: the file cannot be used.
            ValueError: unknown backend or precision.
            EngineError: no backend works.
        """
        order = _order(backend, precision)
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        size = checkpoint.description.network_size
        check_startable(BackendSpec(checkpoint, Framing.plan(size, size), precision, threads, 1, logger), order)

    @property
    def takes_network_size(self) -> bool:
        """Whether the next frame should already have the network's size (`Framing.to_network`)."""
        return self._chain.next_frame_size == self.framing.network_size

    @property
    def backend_name(self) -> str:
        """The backend that serves. Raises EngineError once all have failed."""
        return self._chain.started.name

    @property
    def precision(self) -> str:
        """The precision of the backend that serves. Raises EngineError once all have failed."""
        return self._chain.started.precision

    @property
    def follows_camera(self) -> bool:
        """Whether depth depends on the camera's focal length."""
        return self.checkpoint.description.focal_length is not None

    @property
    def has_confidence(self) -> bool:
        """Whether the checkpoint has a confidence head. Without one, results have no confidence."""
        return self.checkpoint.description.has_confidence

    @property
    def batches(self) -> bool:
        """Whether `infer_batch` runs several frames together, faster than one after the other."""
        return self._chain.serving is not None and self._chain.serving.backend.supports_batch

    @property
    def description(self) -> str:
        """Backend, precision and device in a few words."""
        return self._chain.description

    @property
    def failures(self) -> list[str]:
        """Why other backends are not used, oldest first."""
        return self._chain.failures

    @property
    def degraded(self) -> bool:
        """Whether one of the other backends was tried and failed. An unavailable backend does not count."""
        return self._chain.degraded

    @property
    def building(self) -> bool:
        """Whether a backend that is preferred to the serving one is being built in the background."""
        return self._chain.building

    def wait_for_build(self) -> None:
        """Wait until the backend that is being built in the background, if any, is ready or has failed.

        If it is ready, the next frame is served by it.
        """
        self._chain.wait_for_build()

    def infer(self, request: FrameRequest) -> DepthResult:
        """Depth of one frame.

        Raises:
            TypeError, ValueError: the image, K, the scale or the limits are of another type, size or range. The engine is
                as before.
            EngineError: every backend failed.
        """
        prepared = self._prepare(request)
        self._chain.use_finished_build(request.image.shape[:2])
        while True:
            try:
                return _result(self._run(prepared), prepared)
            except Exception as error:
                self._chain.fall_back(error)

    def infer_batch(self, requests: Sequence[FrameRequest]) -> list[DepthResult]:
        """Depth of several frames, in their order: run together if the backend can (`batches`).

        Raises:
            TypeError, ValueError: `infer` would refuse one of the requests. None is run, and the engine is as before.
            EngineError: every backend failed.
        """
        requests = list(requests)
        prepared = [self._prepare(request) for request in requests]
        if requests:
            self._chain.use_finished_build(requests[0].image.shape[:2])
        while True:
            try:
                outputs = self._run_batch(prepared)
                return [_result(output, p) for output, p in zip(outputs, prepared, strict=True)]
            except Exception as error:
                self._chain.fall_back(error)

    def stream(self, requests: Iterable[FrameRequest]) -> Iterator[DepthResult]:
        """Depth of many frames, with more frames per second than `infer` and a longer time for each.

        Args:
            requests: some are read ahead.

        Yields:
            A result for each request, in order, in arrays of its own.

        Raises:
            TypeError, ValueError: a request that `infer` would refuse.
            RuntimeError: another stream of this engine has not ended.
            EngineError: every backend failed.

        An invalid request ends the stream after the results of all requests before it. So does an error that the iterable
        `requests` raises.
        """
        if self._streaming:
            raise RuntimeError("one stream at a time: another one of this engine has not ended")
        self._streaming = True
        try:
            yield from self._stream(_RequestReader(requests, self._prepare))
        finally:
            self._streaming = False

    def _stream(self, reader: _RequestReader) -> Iterator[DepthResult]:
        self._chain.use_finished_build(self.framing.camera_size)
        while True:
            try:
                for output in self._chain.backend.stream(self._resized(prepared.frame) for prepared in reader):
                    yield _result(output, reader.unanswered.popleft())
                break
            except Exception as error:
                self._chain.fall_back(error)
        assert reader.end is not None  # a backend reads all requests
        if not isinstance(reader.end, StopIteration):
            raise reader.end

    def _prepare(self, request: FrameRequest) -> _PreparedRequest:
        """Check a request, so that a mistake in it does not count as a failure of the backend that runs it.

        Raises TypeError or ValueError for an image, K, scale or limits of another type, size or range.
        """
        if not isinstance(request, FrameRequest):
            raise TypeError(f"expected a FrameRequest, got {type(request).__name__}")
        framing, image, intrinsics = self.framing, self._checked_image(request.image), request.intrinsics
        scale, limits = _checked_scale(request.scale), _checked_limits(request.limits)
        confidence = bool(request.confidence) and self.has_confidence
        if intrinsics is None:
            return _PreparedRequest(FrameInput(image, None, scale, limits, confidence), None)
        intrinsics = _checked_intrinsics(intrinsics)
        published = framing.output_intrinsics(intrinsics)
        trained_focal_length = self.checkpoint.description.focal_length
        if trained_focal_length is not None:
            scale = _checked_scale(scale * focal_length(framing.network_intrinsics(intrinsics)) / trained_focal_length)
        frame = FrameInput(image, published if request.points else None, scale, limits, confidence)
        return _PreparedRequest(frame, published)

    def _checked_image(self, image: np.ndarray) -> np.ndarray:
        if not isinstance(image, np.ndarray):
            raise TypeError(f"expected an image as numpy array, got {type(image).__name__}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected a uint8 image [H, W, 3], got {image.dtype} {list(image.shape)}")
        framing = self.framing
        sizes = [framing.camera_size]
        if self._chain.frame_size == framing.network_size != framing.camera_size:
            sizes.append(framing.network_size)
        if image.shape[:2] not in sizes:
            raise ValueError(
                f"expected an image of {' or '.join(str(list(size)) for size in sizes)} (height, width), "
                f"got {list(image.shape[:2])}"
            )
        # torch refuses arrays with negative strides: mirrored images, and BGR read backwards.
        return np.ascontiguousarray(image) if min(image.strides) < 0 else image

    # `fall_back` must release the failed backend. So no local variable of a method that calls it may refer to the backend.

    def _run(self, prepared: _PreparedRequest) -> FrameOutput:
        return self._chain.backend.infer(self._resized(prepared.frame))

    def _run_batch(self, prepared: Sequence[_PreparedRequest]) -> list[FrameOutput]:
        frames = [self._resized(p.frame) for p in prepared]
        if len(frames) < 2:
            return [self._chain.backend.infer(frame).copy() for frame in frames]
        return self._chain.backend.infer_batch(frames)

    def _resized(self, frame: FrameInput) -> FrameInput:
        """The frame at the size that the serving backend takes."""
        if frame.image.shape[:2] == self._chain.frame_size:
            return frame
        return frame._replace(image=self.framing.to_network(frame.image))


def _result(output: FrameOutput, prepared: _PreparedRequest) -> DepthResult:
    return DepthResult(output.depth, output.points, prepared.intrinsics, output.confidence)


#: Largest value of K, pixels: far more than that of any lens, and exact enough in float32.
_MAX_INTRINSIC = 1e9
#: Bounds of the factor on depth, within float32.
_MIN_SCALE, _MAX_SCALE = 1e-30, 1e30


def _order(backend: str, precision: str) -> tuple[str, ...]:
    """The backends to try. Raises ValueError for an unknown backend or precision."""
    order = backends.automatic_order()
    if backend != "auto":
        backends.backend_type(backend)
        order = (backend, *(name for name in order if name != backend))
    if precision != "auto" and precision not in CHECK_BOUNDS:
        raise ValueError(f"unknown precision '{precision}'; known: auto, {', '.join(CHECK_BOUNDS)}")
    return order


def _size(size: tuple[int, int] | None, name: str) -> tuple[int, int] | None:
    """`size` as Python's whole numbers, which cache keys contain."""
    if size is None:
        return None
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be two whole numbers, height and width, got {size!r}") from None
    return height, width


def _checked_scale(scale: float) -> float:
    if not isinstance(scale, (int, float, np.integer, np.floating)):
        raise TypeError(f"expected a number as scale, got {type(scale).__name__}")
    if not _MIN_SCALE < scale < _MAX_SCALE:  # NaN, too
        raise ValueError(f"expected a positive, finite scale, got {scale}")
    return float(scale)


def _checked_limits(limits: tuple[float, float]) -> tuple[float, float]:
    try:
        near, far = (float(limit) for limit in limits)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"expected limits as two numbers, nearest and farthest, got {limits!r}") from None
    if not near <= far:  # NaN, too
        raise ValueError(f"expected limits with the nearest first, got {limits!r}")
    return near, far


def _checked_intrinsics(intrinsics: np.ndarray) -> np.ndarray:
    k = np.asarray(intrinsics, np.float64)
    if k.shape != (3, 3):
        raise ValueError(f"expected intrinsics [3, 3], got {list(k.shape)}")
    if not (np.abs(k) < _MAX_INTRINSIC).all():  # NaN, too
        raise ValueError(f"expected finite intrinsics, got {k.tolist()}")
    if not (k[0, 0] > 0 and k[1, 1] > 0 and k[2, 0] == k[2, 1] == 0 < k[2, 2]):
        raise ValueError(
            f"expected intrinsics [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with positive fx, fy, got {k.tolist()}"
        )
    return k


class _RequestReader:
    """Reads the requests of a stream and keeps those without a result. If a backend fails, the next one gets them again.

    Attributes:
        unanswered: requests that were read and have no result yet, oldest first.
        end: what ended the requests: StopIteration, or the error of reading or preparing one.
    """

    def __init__(self, requests: Iterable[FrameRequest], prepare: Callable[[FrameRequest], _PreparedRequest]):
        self._requests, self._prepare = iter(requests), prepare
        self.unanswered: deque[_PreparedRequest] = deque()
        self.end: Exception | None = None

    def __iter__(self) -> Iterator[_PreparedRequest]:
        """Requests without a result, first those that were read already."""
        yield from tuple(self.unanswered)
        while self.end is None:
            try:
                prepared = self._prepare(next(self._requests))
            except Exception as error:
                self.end = error
                return
            self.unanswered.append(prepared)
            yield prepared
