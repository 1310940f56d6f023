"""Public inference API: loads a checkpoint, selects a backend, falls back on failure.

`DepthEngine.load` plans the framing and starts a `BackendChain`; `infer`, `infer_batch` and `stream` turn frames into
depth and points.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fadepth_core.common.framing import Framing, focal_length
from fadepth_core.runtime import backends
from fadepth_core.runtime.backend_chain import BackendChain, EngineError
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
    """

    image: np.ndarray
    intrinsics: np.ndarray | None = None
    points: bool = True
    scale: float = 1.0
    limits: tuple[float, float] = (0.0, np.inf)


@dataclass(frozen=True)
class DepthResult:
    """Depth of one frame. The arrays may be views of engine memory, valid until the next `infer` or `infer_batch`.

    Attributes:
        depth: [h, w] float32, metres along the optical axis; -inf too close, +inf too far (REP-117).
        points: [h, w, 3] float32, metres, optical frame (x right, y down, z forward), NaN where depth is not finite;
            None if the request has no intrinsics or its `points` is false.
        intrinsics: [3, 3] float64, K of `depth`; None when the request has no intrinsics.
    """

    depth: np.ndarray
    points: np.ndarray | None
    intrinsics: np.ndarray | None

    def limited(self, limits: tuple[float, float]) -> DepthResult:
        """The same result with other limits (nearest, farthest, metres), inside those it was computed with."""
        near, far = np.asarray(limits, np.float32)
        depth = np.where(
            self.depth > far, np.float32(np.inf), np.where(self.depth < near, -np.float32(np.inf), self.depth)
        )
        points = self.points
        if points is not None:
            points = np.where(np.isfinite(depth)[..., None], points, np.float32(np.nan))
        return DepthResult(depth, points, self.intrinsics)


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
            ValueError: unknown backend or precision.
            EngineError: no backend works.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        order = backends.automatic_order()
        if backend != "auto":
            backends.backend_type(backend)
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

    def wait_for_build(self) -> None:
        """Wait until the backend that is being built in the background, if any, is ready or has failed.

        If it is ready, the next frame is served by it.
        """
        self._chain.wait_for_build()

    def infer(self, request: FrameRequest) -> DepthResult:
        """Depth of one frame.

        Raises:
            ValueError: the image or K has another type or size.
            EngineError: every backend failed.
        """
        prepared = self._prepare(request)
        self._chain.use_finished_build(request.image.shape[:2])
        while True:
            try:
                return DepthResult(*self._run(prepared), prepared.intrinsics)
            except Exception as error:
                self._chain.fall_back(error)

    def infer_batch(self, requests: Sequence[FrameRequest]) -> list[DepthResult]:
        """Depth of several frames, in their order: run together if the backend can (`batches`).

        Raises:
            ValueError: an image or K has another type or size.
            EngineError: every backend failed.
        """
        prepared = [self._prepare(request) for request in requests]
        if requests:
            self._chain.use_finished_build(requests[0].image.shape[:2])
        while True:
            try:
                outputs = self._run_batch(prepared)
                return [DepthResult(*output, p.intrinsics) for output, p in zip(outputs, prepared, strict=True)]
            except Exception as error:
                self._chain.fall_back(error)

    def stream(self, requests: Iterable[FrameRequest]) -> Iterator[DepthResult]:
        """Depth of many frames, with more frames per second than `infer` and a longer time for each.

        Args:
            requests: some are read ahead.

        Yields:
            A result for each request, in order, in arrays of its own.

        Raises:
            ValueError: a request that `infer` would refuse.
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
                    yield DepthResult(*output, reader.unanswered.popleft().intrinsics)
                break
            except Exception as error:
                self._chain.fall_back(error)
        assert reader.end is not None  # a backend reads all requests
        if not isinstance(reader.end, StopIteration):
            raise reader.end

    def _prepare(self, request: FrameRequest) -> _PreparedRequest:
        """Raises ValueError for an image or K of another type or size."""
        framing, image, intrinsics, scale = self.framing, request.image, request.intrinsics, request.scale
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected a uint8 image [H, W, 3], got {image.dtype} {list(image.shape)}")
        sizes = [framing.camera_size]
        if self._chain.frame_size == framing.network_size != framing.camera_size:
            sizes.append(framing.network_size)
        if image.shape[:2] not in sizes:
            raise ValueError(
                f"expected an image of {' or '.join(str(list(size)) for size in sizes)} (height, width), "
                f"got {list(image.shape[:2])}"
            )
        if intrinsics is None:
            return _PreparedRequest(FrameInput(image, None, scale, request.limits), None)
        if np.shape(intrinsics) != (3, 3):
            raise ValueError(f"expected intrinsics [3, 3], got {list(np.shape(intrinsics))}")
        published = framing.output_intrinsics(intrinsics)
        trained_focal_length = self.checkpoint.description.focal_length
        if trained_focal_length is not None:
            scale *= focal_length(framing.network_intrinsics(intrinsics)) / trained_focal_length
        frame = FrameInput(image, published if request.points else None, scale, request.limits)
        return _PreparedRequest(frame, published)

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
