"""DepthEngine: the one door between whoever has frames and whatever computes depth.

It plans the framing, picks the fastest backend that can run here and passes its own check, and moves on to the next one
when a backend fails, at start or in the middle of a drive.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import Backend, Job
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.framing import Framing

_LOG = logging.getLogger("fadepth")

#: Largest relative error of depth against the golden output, as (median, 99th percentile), before a backend is refused. fp32
#: differs by the order of its sums only; bfloat16 keeps 8 bits, and log-depth is steepest where disparity is small.
CHECK_BOUNDS = {"fp32": (1e-5, 1e-3), "bf16": (3e-2, 3e-1)}


#: What has passed its check in this process: (digest of the weights, backend, precision, threads). Another camera size
#: needs no other check.
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
    ):
        self.checkpoint = checkpoint
        self.framing = framing
        self.backend_name = ""
        self.precision = ""
        #: Why earlier backends were passed over or given up, oldest first.
        self.failures: list[str] = []
        #: Whether one of them was tried and failed, rather than not being there.
        self.degraded = False
        self._wanted_precision = precision
        self._threads = threads
        self._log = logger
        self._remaining = list(order)
        self._backend: Backend | None = None
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
    ) -> DepthEngine:
        """Load a checkpoint and compile it.

        Args:
            checkpoint: an opened one, a path, or None for the one that is shipped.
            input_size: (height, width) of the network's input, multiples of 32; None follows the camera's aspect ratio
                at about the number of pixels the checkpoint was trained with.
            camera_size: (height, width) of the frames; None means the size the checkpoint was trained at.
            backend: "auto", or the one to try first ("openvino", "torch"); the others stay behind it as fallbacks.
            precision: "auto" (each backend's default), "fp32" or "bf16".
            crop_to_aspect: crop frames to the network's aspect ratio instead of stretching them.
            full_resolution: depth at the camera's size instead of the network's.
            threads: CPU threads; 0 means up to four.
            logger: gets one line for each decision.

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
        return cls(checkpoint, framing, order, precision, threads, logger)

    @property
    def takes_network_size(self) -> bool:
        """Whether frames are best handed over already at the network's size (`Framing.to_network`)."""
        return self._backend.takes_network_size

    @property
    def follows_camera(self) -> bool:
        """Whether depth depends on the camera's focal length."""
        return self.checkpoint.description.focal_length is not None

    @property
    def batches(self) -> bool:
        """Whether the backend runs several frames at once (`infer_batch`) faster than one by one."""
        return hasattr(self._backend, "infer_batch")

    @property
    def description(self) -> str:
        """Backend, precision and device in a few words."""
        return f"{self.backend_name} {self.precision} on {self._backend.device}"

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
            image: [H, W, 3] uint8 RGB, at the camera's size or already at the network's.
            intrinsics: [3, 3] K of the camera, pixels at the camera's size; None if unknown: depth is then that of a
                camera with the checkpoint's focal length.
            points: whether points are wanted too (they need intrinsics).
            scale: factor on depth.
            limits: nearest and farthest depth that count as measured, metres.

        Raises:
            ValueError: the image has another type or size.
            EngineError: every backend failed.
        """
        matrix, scale = self._matrix_and_scale(image, intrinsics, scale)
        while True:
            try:
                depth, cloud = self._run(image, matrix if points else None, scale, limits)
                return DepthResult(depth, cloud, matrix)
            except Exception as error:
                # Whatever a runtime raises when its device is lost; the frame is tried again on the next backend.
                self._give_up(self.backend_name, f"failed while running: {error}", failed=True)
                self._next_backend()

    def infer_batch(self, requests: Sequence[FrameRequest]) -> list[DepthResult]:
        """Depth of several frames, in their order: at once where the backend can (`batches`), else one by one.

        Raises:
            ValueError: an image has another type or size.
            EngineError: every backend failed.
        """
        frames, matrices = [], []
        for r in requests:
            matrix, scale = self._matrix_and_scale(r.image, r.intrinsics, r.scale)
            frames.append((r.image, matrix if r.points else None, scale, r.limits))
            matrices.append(matrix)
        while True:
            try:
                answers = self._run_batch(frames)
                return [DepthResult(*answer, matrix) for answer, matrix in zip(answers, matrices, strict=True)]
            except Exception as error:
                self._give_up(self.backend_name, f"failed while running: {error}", failed=True)
                self._next_backend()

    def _matrix_and_scale(self, image, intrinsics, scale):
        """K of the depth image, and the factor on depth with what the camera's focal length adds; checks the image."""
        framing = self.framing
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected a uint8 image [H, W, 3], got {image.dtype} {list(image.shape)}")
        if image.shape[:2] not in (framing.camera_size, framing.network_size):
            raise ValueError(
                f"expected an image of {list(framing.camera_size)} or {list(framing.network_size)} (height, width), "
                f"got {list(image.shape[:2])}"
            )
        matrix = None if intrinsics is None else framing.output_intrinsics(intrinsics)
        if matrix is not None and self.follows_camera:
            scale *= framing.network_focal_length(intrinsics) / self.checkpoint.description.focal_length
        return matrix, scale

    def _run(self, image, matrix, scale, limits):
        return self._backend.infer(self._fitted(image), matrix, scale, limits)

    def _run_batch(self, frames):
        frames = [(self._fitted(image), *rest) for image, *rest in frames]
        if self.batches and len(frames) > 1 and len({image.shape for image, *_ in frames}) == 1:
            return self._backend.infer_batch(frames)
        # Copies: what a backend answers lives until its next call.
        answers = []
        for frame in frames:
            depth, points = self._backend.infer(*frame)
            answers.append((depth.copy(), None if points is None else points.copy()))
        return answers

    def _fitted(self, image):
        if self._backend.takes_network_size and image.shape[:2] != self.framing.network_size:
            return self.framing.to_network(image)
        return image

    def _next_backend(self) -> None:
        """Start the next backend in order that is there and passes its check."""
        self._backend = None
        while self._remaining:
            name = self._remaining.pop(0)
            module = backends.backend_module(name)
            reason = module.missing()
            precision = module.PRECISIONS[0] if self._wanted_precision == "auto" else self._wanted_precision
            if reason is None and precision not in module.PRECISIONS:
                reason = f"does not compute in {precision}"
            if reason is not None:
                self._give_up(name, reason)
                continue
            try:
                self._check(module, precision)
                self._backend = module.create(Job(self.checkpoint, self.framing, precision, self._threads))
                size = self.framing.network_size
                self._run(np.zeros((*size, 3), np.uint8), np.eye(3), 1.0, (0.0, np.inf))  # the first run allocates
            except Exception as error:
                self._backend = None
                self._give_up(name, f"failed to start: {error}", failed=True)
                continue
            self.backend_name, self.precision = name, precision
            self._log.info(
                "depth runs on %s; network %dx%d, depth %dx%d",
                self.description,
                *size[::-1],
                *self.framing.output_size[::-1],
            )
            return
        raise EngineError(
            "no backend can run " + str(self.checkpoint.path) + "".join(f"\n  {f}" for f in self.failures)
        )

    def _check(self, module, precision: str) -> None:
        """Compare the backend with the checkpoint's golden output (plain PyTorch, float32), depth and points."""
        golden = self.checkpoint.golden
        key = (self.checkpoint.weights_sha256, module.create, precision, self._threads)
        if key in _CHECKED:
            return
        if not golden:  # a training run's checkpoint: torch is there, and the export from it was checked as it was made
            return
        expected, framing = golden["depth"], Framing.plan(golden["image"].shape[:2], golden["image"].shape[:2])
        k = np.array([[70.0, 0.0, 41.0], [0.0, 60.0, 29.0], [0.0, 0.0, 1.0]])
        backend = module.create(Job(self.checkpoint, framing, precision, self._threads))
        depth, points = backend.infer(golden["image"], k, 1.0, (0.0, np.inf))
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
        _CHECKED.add(key)

    def _give_up(self, name: str, reason: str, failed: bool = False) -> None:
        self.failures.append(f"{name}: {reason}")
        self.degraded = self.degraded or failed
        level = logging.WARNING if failed else logging.INFO
        self._log.log(level, "backend %s passed over: %s", name, reason, exc_info=failed)
