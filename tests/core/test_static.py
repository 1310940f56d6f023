"""`StaticBackend` on a CPU: the code that CUDA devices run, without uploads and captured graphs."""

import gc
import weakref

import numpy as np
import pytest
import torch

from fadepth_core.common.framing import Framing
from fadepth_core.runtime.backends import BackendSpec, FrameInput
from fadepth_core.runtime.backends.static import StaticBackend
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.graph import DepthGraph
from fadepth_core.runtime.network import load_network
from fadepth_core.runtime.verification import CHECK_BOUNDS

SIZE = (64, 96)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graph():
    return DepthGraph(load_network(Checkpoint()), Framing.plan(SIZE, SIZE)).eval()


def frames(count):
    """Frames of different cameras; every third has no intrinsics."""
    rng = np.random.default_rng(0)
    for i in range(count):
        k = np.array([[50.0 + i, 0, 40], [0, 60, 30 + i], [0, 0, 1]])
        image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        yield FrameInput(image, None if i % 3 == 2 else k, 1.0 + i, (0.5, 5.0 + i))


def expected(graph, frame):
    image, k, scale, limits, _ = frame
    with torch.inference_mode():
        depth, points, *_ = graph(
            torch.from_numpy(image),
            torch.eye(3) if k is None else torch.from_numpy(k).float(),
            torch.tensor([scale]),
            torch.tensor(limits),
        )
    return depth.numpy(), None if k is None else points.numpy()


def assert_same(found, wanted):
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
    assert (found[1] is None) == (wanted[1] is None)
    if wanted[1] is not None:
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-4)


def backend(graph, batch=1):
    spec = BackendSpec(Checkpoint(), Framing.plan(SIZE, SIZE), "fp32", batch=batch)
    return StaticBackend(lambda _batch: graph, spec, CPU, "CPU")


def test_every_frame_has_its_own_intrinsics_scale_and_limits(graph):
    single = backend(graph)
    for frame in frames(4):
        assert_same(single.infer(frame), expected(graph, frame))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_batch_equals_its_frames_one_at_a_time(graph, count):
    """Less than the batch size, exactly the batch size, and more."""
    several = list(frames(count))
    results = backend(graph, batch=3).infer_batch(several)
    assert len(results) == count
    for frame, result in zip(several, results, strict=True):
        assert_same(result, expected(graph, frame))


def test_a_stream_keeps_the_order_and_its_results(graph):
    several = list(frames(5))
    results = list(backend(graph).stream(iter(several)))
    for frame, result in zip(several, results, strict=True):
        assert_same(result, expected(graph, frame))


def test_other_frames_can_be_inferred_between_two_results_of_a_stream(graph):
    several, other = list(frames(5)), next(frames(1))
    one, results = backend(graph), []
    for result in one.stream(iter(several)):
        assert_same(one.infer(other), expected(graph, other))
        results.append(result)
    for frame, result in zip(several, results, strict=True):
        assert_same(result, expected(graph, frame))


def test_a_backend_is_freed_with_its_last_reference(graph):
    """It does not wait for the garbage collector, because the backend that replaces it needs the memory."""
    gc.disable()
    try:
        one = backend(graph, batch=3)
        assert len(list(one.stream(frames(3)))) == len(one.infer_batch(list(frames(3)))) == 3
        reference = weakref.ref(one)
        del one
        assert reference() is None
    finally:
        gc.enable()


def test_half_precision_stays_within_the_bounds_of_verification():
    golden = Checkpoint().golden
    half = DepthGraph(load_network(Checkpoint()), Framing.plan(SIZE, SIZE), torch.float16).eval()
    depth = backend(half).infer(FrameInput(golden["image"], np.eye(3))).depth
    error = np.quantile(np.abs(depth - golden["depth"]) / golden["depth"], (0.5, 0.99))
    assert 0 < error[0] < CHECK_BOUNDS["fp16"][0]
    assert error[1] < CHECK_BOUNDS["fp16"][1]
