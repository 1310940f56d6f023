"""Checks a backend's results before it serves.

A backend that starts quickly at any frame size is compared with the golden output in the checkpoint. A backend that is
compiled for one frame size is compared with plain PyTorch at that size, because compiling it for the golden frame, too,
would double the time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fadepth_core.common.framing import Framing
from fadepth_core.common.pinhole import unproject
from fadepth_core.runtime.backends import Backend, BackendSpec, BackendType, FrameInput, FrameOutput

#: Largest relative error of depth by precision, (median, 99th percentile), with which a backend is accepted. fp32
#: differs in the order of its sums only; half precision keeps 11 bits, bfloat16 8, and log-depth is steepest where
#: disparity is small. int8 was measured at (1.2e-2, 4.1e-2); with the head in 8 bits as well and OpenVINO's PERFORMANCE
#: preset at (6.3e-2, 2.5e-1).
CHECK_BOUNDS = {"fp32": (1e-5, 1e-3), "fp16": (5e-3, 5e-2), "bf16": (3e-2, 3e-1), "int8": (5e-2, 3e-1)}

#: Camera with which points are checked.
_CHECK_K = np.array([[70.0, 0.0, 41.0], [0.0, 60.0, 29.0], [0.0, 0.0, 1.0]])

#: Keys of the backends that have passed `check_golden_frame` in this process. The frame size is not part of a key, because
#: that check uses the size of the golden frame.
_verified: set[tuple] = set()


class VerificationError(RuntimeError):
    """A backend's results are wrong; the message says by how much."""


def check_golden_frame(backend_type: BackendType, spec: BackendSpec) -> None:
    """Compare a backend, created for the size of the golden frame, with the checkpoint's golden output.

    Raises:
        VerificationError: they differ by more than `CHECK_BOUNDS`.
    """
    checkpoint, golden = spec.checkpoint, spec.checkpoint.golden
    # The description and the golden frame count, too: another file can have the same weights.
    key = (
        checkpoint.weights_sha256,
        checkpoint.description.to_json(),
        checkpoint.golden_sha256,
        backend_type,
        spec.precision,
        spec.threads,
    )
    # A training checkpoint has no golden frame. It is used only where torch is installed, and its export was checked.
    if key in _verified or not golden:
        return
    size = golden["image"].shape[:2]
    backend = backend_type.create(replace(spec, framing=Framing.plan(size, size), batch=1))
    frame = FrameInput(golden["image"], _CHECK_K, confidence=checkpoint.description.has_confidence)
    _check_output(backend.infer(frame), FrameOutput(golden["depth"], None, golden.get("confidence")), spec.precision)
    _verified.add(key)


def check_reference(backend: Backend, spec: BackendSpec) -> None:
    """Compare a backend with PyTorch in float32 on the CPU, on a frame of the camera's size.

    Raises:
        VerificationError: they differ by more than `CHECK_BOUNDS`.
    """
    from fadepth_core.runtime.backends.torch import reference_output

    frame = FrameInput(
        _test_pattern(spec.framing.camera_size), _CHECK_K, confidence=spec.checkpoint.description.has_confidence
    )
    _check_output(backend.infer(frame), reference_output(spec, frame), spec.precision)


def check_batch(backend: Backend, spec: BackendSpec) -> None:
    """Compare a backend's batch, which may be compiled separately, with its results for the same frames one at a time.

    Raises:
        VerificationError: they differ by more than `CHECK_BOUNDS`.
    """
    if spec.batch < 2 or not backend.supports_batch:
        return
    image = _test_pattern(spec.framing.network_size if backend.takes_network_size else spec.framing.camera_size)
    confidence = spec.checkpoint.description.has_confidence
    frames = [
        FrameInput(np.roll(image, 16 * i, axis=1), _CHECK_K, scale=1.0 + i, confidence=confidence)
        for i in range(spec.batch)
    ]
    expected = [backend.infer(frame).copy() for frame in frames]
    for output, single in zip(backend.infer_batch(frames), expected, strict=True):
        _check_output(output, single, spec.precision)


def _test_pattern(size: tuple[int, int]) -> np.ndarray:
    """An image [H, W, 3] uint8 with structure at every scale, so that errors of the resize and of every stage show."""
    v, u = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    waves = [np.sin(u / (9 + 4 * c)) * np.cos(v / (7 + 3 * c)) + np.sin(u * v / (211 * size[1])) for c in range(3)]
    return (127 + 60 * np.stack(waves, -1)).astype(np.uint8)


def _check_output(output: FrameOutput, expected: FrameOutput, precision: str) -> None:
    """Raise VerificationError unless depth and confidence are those of `expected` up to `CHECK_BOUNDS`, and points are the
    unprojection of depth with `_CHECK_K`."""
    depth, points, confidence = output
    _check_map("depth", depth, expected.depth, precision)
    if expected.confidence is not None:
        if confidence is None:
            raise VerificationError("it gives no confidence")
        _check_map("confidence", confidence, expected.confidence, precision)
    if points is None or not np.allclose(
        points, unproject(depth, _CHECK_K), rtol=1e-3, atol=1e-3 * float(np.median(depth))
    ):
        raise VerificationError("its points do not lie on the rays of its depth")


def _check_map(name: str, found: np.ndarray, expected: np.ndarray, precision: str) -> None:
    """Raise VerificationError unless a map [h, w] of positive numbers is `expected` up to `CHECK_BOUNDS`."""
    median, tail = np.quantile(np.abs(found - expected) / expected, (0.5, 0.99))
    median_bound, tail_bound = CHECK_BOUNDS[precision]
    if not (median <= median_bound and tail <= tail_bound):  # NaN fails, too
        raise VerificationError(
            f"its {name} differs from the reference by {median:.1e} in the median, {tail:.1e} in the 99th "
            f"percentile (relative); allowed are {median_bound:.0e} and {tail_bound:.0e}"
        )
