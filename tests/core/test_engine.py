"""DepthEngine: which backend it takes, what it does when one fails, and that backends agree."""

import concurrent.futures
import subprocess
import sys
import threading
import time
import types
import weakref

import numpy as np
import pytest
import torch

from fadepth_core.common.framing import FramingError
from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import openvino as openvino_backend
from fadepth_core.runtime.backends import torch as torch_backend
from fadepth_core.runtime.engine import DepthEngine, EngineError, FrameRequest
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)


@pytest.mark.parametrize("options", [{}, {"full_resolution": True}, {"input_size": (128, 416), "crop_to_aspect": True}])
def test_backends_agree(image, options):
    results = {}
    for name in ("torch", "openvino"):
        engine = DepthEngine.load(camera_size=(480, 640), backend=name, **options)
        assert engine.backend_name == name, engine.failures
        result = engine.infer(image, K, limits=(0.2, 10.0))
        assert result.depth.shape == engine.framing.output_size == result.points.shape[:2]
        results[name] = (result.depth.copy(), result.points.copy())
    a, b = results["torch"], results["openvino"]
    both = np.isfinite(a[0]) & np.isfinite(b[0])
    assert both.mean() > 0.2
    np.testing.assert_allclose(b[0][both], a[0][both], rtol=1e-3)
    np.testing.assert_allclose(b[1][both], a[1][both], rtol=1e-3, atol=1e-3)


def test_points_need_intrinsics_and_a_wish(image):
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.infer(image).points is None
    assert engine.infer(image).intrinsics is None
    assert engine.infer(image, K, points=False).points is None
    assert engine.infer(image, K).points is not None


def test_depth_is_the_same_with_and_without_points(image):
    engine = DepthEngine.load(camera_size=(480, 640))
    depth = engine.infer(image).depth.copy()
    np.testing.assert_allclose(engine.infer(image, K).depth, depth, rtol=1e-5)


def test_wrong_images_are_named(image):
    engine = DepthEngine.load(camera_size=(480, 640))
    with pytest.raises(ValueError, match=r"expected a uint8 image \[H, W, 3\], got float32"):
        engine.infer(image.astype(np.float32))
    with pytest.raises(ValueError, match=r"got \[100, 100\]"):
        engine.infer(image[:100, :100])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown backend 'tpu'; known backends: tensorrt, inductor, openvino, torch"):
        DepthEngine.load(backend="tpu")
    with pytest.raises(ValueError, match=r"unknown precision 'int3'"):
        DepthEngine.load(precision="int3")
    with pytest.raises(FramingError, match="multiples of 32"):
        DepthEngine.load(input_size=(100, 100))


def broken_backend(create, missing=None, precisions=("fp32",)):
    return types.SimpleNamespace(
        create=create, unavailable_reason=lambda: missing, precisions=lambda: precisions, ANY_SIZE=True
    )


def substitute(monkeypatch, **modules):
    real = backends.backend_module
    monkeypatch.setattr(backends, "backend_module", lambda name: modules.get(name) or real(name))


def test_missing_backend_is_passed_over_with_its_reason(monkeypatch, image, caplog):
    caplog.set_level("INFO")
    substitute(monkeypatch, openvino=broken_backend(None, missing="the package openvino is not installed"))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.backend_name == "torch"
    assert engine.failures == ["openvino: the package openvino is not installed"]
    assert not engine.degraded, "what is not there has not failed"
    assert "backend openvino passed over: the package openvino is not installed" in caplog.text


def test_backend_that_fails_to_start_is_passed_over(monkeypatch, image):
    def create(job):
        raise RuntimeError("no such device")

    substitute(monkeypatch, openvino=broken_backend(create))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.backend_name == "torch"
    assert engine.failures == ["openvino: failed to start: no such device"]
    assert np.isfinite(engine.infer(image).depth).all()


def test_no_backend_is_tried_twice_in_one_precision(monkeypatch):
    tried = []

    def broken(name):
        def create(job):
            tried.append((name, job.precision))
            raise RuntimeError("no such device")

        return broken_backend(create, precisions=("fp32", "bf16"))

    substitute(monkeypatch, openvino=broken("openvino"), torch=broken("torch"))
    first = [("openvino", "fp32"), ("torch", "fp32")]
    for precision, expected in {"fp32": first, "bf16": [("openvino", "bf16"), ("torch", "bf16"), *first]}.items():
        tried.clear()
        with pytest.raises(EngineError):
            DepthEngine.load(camera_size=(64, 96), precision=precision)
        assert tried == expected


class Tampered:
    """OpenVINO with its answers changed."""

    def __init__(self, job, change):
        self._inner, self._change = openvino_backend.create(job), change
        self.device, self.takes_network_size = self._inner.device, True

    def infer(self, *arguments):
        return self._change(*self._inner.infer(*arguments))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda depth, points: (depth * 1.01, points), "its depth differs from the reference by 1.0e-02 in the median"),
        (lambda depth, points: (depth * np.nan, points), "its depth differs from the reference by nan"),
        (lambda depth, points: (depth[::-1], points), "its depth differs"),
        (lambda depth, points: (depth, points[:, ::-1]), "its points do not lie on the rays"),
    ],
)
def test_wrong_answers_do_not_pass_the_check(monkeypatch, change, reason):
    substitute(monkeypatch, openvino=broken_backend(lambda job: Tampered(job, change)))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.backend_name == "torch"
    assert reason in engine.failures[0]


def test_backend_that_fails_while_running_loses_no_frame(monkeypatch, image):
    calls = []

    def fail_later(depth, points):
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("device lost")
        return depth, points

    substitute(monkeypatch, openvino=broken_backend(lambda job: Tampered(job, fail_later)))
    engine = DepthEngine.load(camera_size=(480, 640))
    first = engine.infer(image, K).depth.copy()
    names = [engine.backend_name]
    for _ in range(4):
        np.testing.assert_allclose(engine.infer(image, K).depth, first, rtol=1e-3)
        names.append(engine.backend_name)
    assert names[0] == "openvino"
    assert names[-1] == "torch"
    assert engine.failures == ["openvino: failed while running: device lost"]
    assert engine.degraded


class Compiled:
    """Stands in for a backend that is compiled for one size of frames, with the resize in its graph."""

    device, takes_network_size = "compiler's device", False

    def __init__(self, job):
        self._size, self._graph = job.framing.camera_size, torch_backend.reference_graph(job, job.framing)

    def infer(self, image, intrinsics, scale, limits):
        assert image.shape[:2] == self._size
        with torch.inference_mode():
            k = torch.from_numpy(np.asarray(intrinsics)).float()
            results = self._graph(torch.from_numpy(image), k, torch.tensor([scale]).float(), torch.tensor(limits))
        return tuple(x.numpy() for x in results)


def assert_about_the_same(depth, expected):
    """But for the rounding of a frame that was resized to bytes."""
    assert np.median(np.abs(depth / expected - 1)) < 0.02


def slow_backend(gate, create=Compiled):
    """A backend whose making waits for `gate`."""

    def made(job):
        assert gate.wait(30)
        return create(job)

    return types.SimpleNamespace(
        create=made, unavailable_reason=lambda: None, precisions=lambda: ("fp32",), ANY_SIZE=False
    )


def failing(error):
    def fail(job):
        raise error

    return fail


def failing_once_it_serves(message):
    """A compiled backend that fails behind the two runs of its start."""
    calls = []

    class Failing(Compiled):
        def infer(self, *arguments):
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError(message)
            return super().infer(*arguments)

    return Failing


def settle(engine):
    """Wait until what is made ready in the background is there."""
    concurrent.futures.wait([engine._coming[1]], 30)


def test_the_next_best_serves_while_a_compiler_works(monkeypatch, image, caplog):
    caplog.set_level("INFO")
    gate = threading.Event()
    substitute(monkeypatch, tensorrt=slow_backend(gate))
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "openvino", "torch"))
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    assert engine.backend_name == "openvino"
    assert "(tensorrt is being made ready)" in engine.description
    small = engine.framing.to_network(image)
    expected = engine.infer(small, K).depth.copy()
    gate.set()
    settle(engine)
    # A frame that was made small for the one that serves is not lost, and the next one may come as it is.
    np.testing.assert_array_equal(engine.infer(small, K).depth, expected)
    assert engine.backend_name == "openvino"
    assert not engine.takes_network_size
    assert_about_the_same(engine.infer(image, K).depth, expected)
    assert engine.backend_name == "tensorrt"
    assert not engine.degraded
    with pytest.raises(ValueError, match=r"expected an image of \[480, 640\] \(height"):
        engine.infer(small, K)


def test_a_compiled_backend_that_fails_while_running_hands_back(monkeypatch, image):
    gate = threading.Event()
    lost = "CUDA error: an illegal memory access was encountered"
    substitute(monkeypatch, tensorrt=slow_backend(gate, failing_once_it_serves(lost)))
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "openvino", "torch"))
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    expected = engine.infer(image, K).depth.copy()
    gate.set()
    settle(engine)
    assert_about_the_same(engine.infer(image, K).depth, expected)
    assert engine.backend_name == "openvino"
    assert engine.failures == ["tensorrt: failed while running: CUDA error: an illegal memory access was encountered"]
    assert engine.degraded


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operators that cannot be converted: aten.foo"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["not whole", "out of memory"],
)
def test_a_compiler_that_fails_makes_room_for_the_next(monkeypatch, image, error):
    first, second = threading.Event(), threading.Event()
    substitute(monkeypatch, tensorrt=slow_backend(first, failing(error)), inductor=slow_backend(second))
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "inductor", "torch", "openvino"))
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    first.set()
    settle(engine)
    engine.infer(image, K)
    assert engine.failures == [f"tensorrt: failed to start: {error}"]
    assert engine.backend_name == "torch", "what served goes on"
    second.set()
    settle(engine)
    engine.infer(image, K)
    assert engine.backend_name == "inductor"


def test_a_compiler_that_waited_has_its_turn_when_the_one_before_fails_while_running(monkeypatch, image):
    first, second = threading.Event(), threading.Event()
    failing_first = slow_backend(first, failing_once_it_serves("device lost"))
    substitute(monkeypatch, tensorrt=failing_first, inductor=slow_backend(second))
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "inductor", "torch", "openvino"))
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    first.set()
    settle(engine)
    engine.infer(image, K)
    assert engine.backend_name == "torch", "it serves while the second is made ready"
    second.set()
    settle(engine)
    engine.infer(image, K)
    assert engine.backend_name == "inductor"


def test_a_backend_that_failed_is_gone_before_the_next_is_made(monkeypatch, image):
    """They may not fit beside each other."""
    failed, alive = [], []

    class Failing(Compiled):
        def infer(self, *arguments):
            if arguments[0].any():
                failed.append(weakref.ref(self))
                raise RuntimeError("out of memory")
            return super().infer(*arguments)

    def create(job):
        alive.append(failed[0]() is not None)
        return torch_backend.create(job)

    substitute(monkeypatch, openvino=broken_backend(Failing), torch=broken_backend(create))
    monkeypatch.setattr("fadepth_core.runtime.engine._check_on_golden_frame", lambda module, job: None)
    engine = DepthEngine.load(camera_size=(480, 640))
    engine.infer(image, K)
    assert engine.backend_name == "torch"
    assert alive == [False]


def test_when_nothing_is_left_every_frame_is_told_so(monkeypatch, image):
    substitute(
        monkeypatch, torch=broken_backend(None, missing="not installed"), openvino=broken_backend(FailsInTheMiddle)
    )
    engine = DepthEngine.load(camera_size=(480, 640))
    with pytest.raises(EngineError, match=r"(?s)no backend can run .*device lost"):
        list(engine.stream((image, K) for _ in range(5)))
    with pytest.raises(EngineError, match=r"(?s)no backend can run .*device lost"):
        engine.infer(image, K)
    with pytest.raises(EngineError, match=r"(?s)no backend can run .*device lost"):
        engine.infer_batch([FrameRequest(image), FrameRequest(image)])


class WrongBatch(Compiled):
    def infer_batch(self, frames):
        answers = [tuple(x.copy() for x in self.infer(*frame)) for frame in frames]
        return [(1.1 * depth, 1.1 * points) for depth, points in answers]


def test_a_batch_has_to_pass_the_check_too(monkeypatch):
    """And what was compiled is not kept."""
    forgotten = []
    backend = broken_backend(WrongBatch)
    backend.ANY_SIZE, backend.forget = False, forgotten.append
    substitute(monkeypatch, tensorrt=backend)
    engine = DepthEngine.load(camera_size=(64, 96), backend="tensorrt", batch=3)
    assert engine.failures[0].startswith("tensorrt: failed to start: its depth differs from the reference by 1.0e-01")
    assert [job.batch for job in forgotten] == [3]
    engine = DepthEngine.load(camera_size=(64, 96), backend="torch", batch=3)
    assert (engine.backend_name, engine.batches, engine.failures) == ("torch", True, [])


def test_an_engine_has_one_stream_at_a_time(image):
    engine = DepthEngine.load(camera_size=(480, 640))
    stream = engine.stream((image, K) for _ in range(3))
    next(stream)
    with pytest.raises(RuntimeError, match="one stream at a time"):
        next(engine.stream([(image, K)]))
    stream.close()
    assert len(list(engine.stream([(image, K)]))) == 1


def test_a_projection_matrix_is_no_reason_to_give_up_a_backend(image):
    engine = DepthEngine.load(camera_size=(480, 640))
    with pytest.raises(ValueError, match=r"expected intrinsics \[3, 3\], got \[3, 4\]"):
        engine.infer(image, np.eye(3, 4))
    assert engine.failures == []


@pytest.mark.parametrize("usable", [True, False])
def test_a_card_that_torch_cannot_use_is_none(monkeypatch, usable):
    monkeypatch.setattr(backends, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(backends.importlib.metadata, "version", lambda _name: "2.13.0+cu130")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    assert backends.automatic_order()[0] == ("tensorrt" if usable else "openvino")


def test_a_compiler_learns_that_nobody_waits_any_more(monkeypatch):
    jobs = []
    gate = threading.Event()

    def create(job):
        jobs.append(job)
        gate.wait()
        raise RuntimeError("abandoned")

    backend = broken_backend(create)
    backend.ANY_SIZE = False
    substitute(monkeypatch, tensorrt=backend)
    engine = DepthEngine.load(camera_size=(64, 96), backend="tensorrt", background=True)
    while not jobs:
        time.sleep(0.01)
    assert not jobs[0].abandoned.is_set()
    del engine
    assert jobs[0].abandoned.is_set()
    gate.set()


def test_without_another_backend_the_compiler_is_waited_for(monkeypatch, image):
    gate = threading.Event()
    threading.Timer(0.3, gate.set).start()
    missing = broken_backend(None, missing="not installed")
    broken = slow_backend(gate, failing(RuntimeError("no device")))
    substitute(monkeypatch, tensorrt=broken, inductor=slow_backend(gate), openvino=missing)
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "inductor", "openvino"))
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    assert engine.backend_name == "inductor"
    assert [line.split(":")[0] for line in engine.failures] == ["openvino", "tensorrt"]


def test_wrong_answers_of_a_compiled_backend_do_not_pass_its_check(monkeypatch, image):
    class Wrong(Compiled):
        def infer(self, *arguments):
            depth, points = super().infer(*arguments)
            return depth * np.float32(1.01), points

    gate = threading.Event()
    gate.set()
    substitute(monkeypatch, tensorrt=slow_backend(gate, Wrong))
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "openvino"))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.backend_name == "openvino"
    assert "its depth differs from the reference by 1.0e-02 in the median" in engine.failures[0]


class FailsInTheMiddle:
    """OpenVINO whose stream breaks when it has answered two frames, with more on their way."""

    def __init__(self, job):
        self._inner = openvino_backend.create(job)
        self.device, self.takes_network_size, self.infer = self._inner.device, True, self._inner.infer

    def stream(self, frames, points):
        for number, answer in enumerate(self._inner.stream(frames, points)):
            if number == 2:
                raise RuntimeError("device lost")
            yield answer


@pytest.mark.parametrize("fails", [False, True])
def test_stream_gives_what_infer_gives_in_order(monkeypatch, fails):
    rng = np.random.default_rng(1)
    frames = [(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), K * (1 + i)) for i in range(9)]
    frames[4] = (frames[4][0], None)
    engine = DepthEngine.load(camera_size=(64, 96), input_size=(64, 96))
    alone = []
    for frame in frames:
        result = engine.infer(*frame, limits=(0.0, 50.0))
        alone.append((result.depth.copy(), None if result.points is None else result.points.copy()))
    if fails:
        substitute(monkeypatch, openvino=broken_backend(FailsInTheMiddle))
        engine = DepthEngine.load(camera_size=(64, 96), input_size=(64, 96))
    results = list(engine.stream(iter(frames), limits=(0.0, 50.0)))
    assert len(results) == len(frames)
    for (depth, points), result in zip(alone, results, strict=True):
        np.testing.assert_allclose(result.depth, depth, rtol=1e-3)
        if points is None:
            assert result.points is None
        else:
            np.testing.assert_allclose(result.points, points, rtol=1e-3, atol=1e-3)
    assert engine.failures == (["openvino: failed while running: device lost"] if fails else [])


def test_signals_are_survived_after_engines_are_gone():
    """In whatever order they go; in a process of its own, since what is tested for is its death."""
    program = """
import signal
from fadepth_core.runtime.engine import DepthEngine
engines = [DepthEngine.load(camera_size=(64, 96), input_size=(64, 96), backend="openvino") for _ in range(2)]
while engines:
    del engines[0]
signal.signal(signal.SIGINT, lambda *_: print("caught"))
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "caught\n"), done.stderr


def test_a_bad_frame_ends_a_stream_after_all_before_it():
    good = np.zeros((64, 96, 3), np.uint8)
    engine = DepthEngine.load(camera_size=(64, 96), input_size=(64, 96))
    results = engine.stream([(good, None)] * 3 + [(good[:10], None), (good, None)], points=False)
    assert [next(results).depth.shape for _ in range(3)] == [(64, 96)] * 3
    with pytest.raises(ValueError, match=r"got \[10, 96\]"):
        next(results)
    assert engine.failures == []
    assert len(list(engine.stream([(good, None)] * 2, points=False))) == 2, "the engine is as good as before"


def test_without_an_int8_graph_depth_comes_in_the_default_precision(tmp_path, checkpoint, caplog):
    path = tmp_path / "net.safetensors"
    export_checkpoint(load_network(checkpoint), checkpoint.description, path)
    engine = DepthEngine.load(path, backend="openvino", precision="int8")
    assert (engine.backend_name, engine.precision) == ("openvino", "fp32")
    assert engine.degraded
    assert "net.safetensors was saved without an int8 graph; make one with 'fadepth export" in caplog.text
    assert engine.failures[1] == "torch: does not compute in int8"


@pytest.fixture
def requests(image):
    return [
        FrameRequest(image, K, scale=2.0),
        FrameRequest(image[::-1], 1.1 * K, points=False, limits=(0.2, 10.0)),
        FrameRequest(image[:, ::-1]),
    ]


def expect_each_alone(engine, requests, results):
    for r, result in zip(requests, results, strict=True):
        alone = engine.infer(r.image, r.intrinsics, points=r.points, scale=r.scale, limits=r.limits)
        np.testing.assert_allclose(result.depth, alone.depth, rtol=1e-3)
        assert (result.points is None) == (alone.points is None)
        if alone.points is not None:
            np.testing.assert_allclose(result.points, alone.points, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(result.intrinsics, alone.intrinsics)


def test_a_batch_is_its_frames_each_with_its_own_arguments(requests):
    engine = DepthEngine.load(camera_size=(480, 640))
    assert not engine.batches
    expect_each_alone(engine, requests, engine.infer_batch(requests))
    assert engine.infer_batch([]) == []


class BatchingBackend(Tampered):
    """OpenVINO in the dress of a backend that runs frames at once."""

    def __init__(self, job, sizes, works=True):
        super().__init__(job, lambda depth, points: (depth, points))
        self._sizes, self._works = sizes, works

    def infer_batch(self, frames):
        self._sizes.append([image.shape for image, *_ in frames])
        if not self._works:
            raise RuntimeError("out of memory")
        return [tuple(None if a is None else a.copy() for a in self.infer(*frame)) for frame in frames]


def test_a_backend_that_batches_gets_several_frames_at_once(monkeypatch, requests):
    sizes = []
    substitute(monkeypatch, openvino=broken_backend(lambda job: BatchingBackend(job, sizes)))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.batches
    expect_each_alone(engine, requests, engine.infer_batch(requests))
    engine.infer_batch(requests[:1])
    assert sizes == [3 * [(*engine.framing.network_size, 3)]], "one frame goes the way of one frame"


def test_a_batch_that_fails_loses_no_frame(monkeypatch, requests):
    substitute(monkeypatch, openvino=broken_backend(lambda job: BatchingBackend(job, [], works=False)))
    engine = DepthEngine.load(camera_size=(480, 640))
    results = engine.infer_batch(requests)
    assert engine.backend_name == "torch"
    assert engine.failures == ["openvino: failed while running: out of memory"]
    expect_each_alone(engine, requests, results)


def test_when_nothing_works_every_reason_is_told(monkeypatch):
    substitute(
        monkeypatch,
        openvino=broken_backend(None, missing="not installed"),
        torch=broken_backend(None, precisions=("fp16",)),
    )
    with pytest.raises(EngineError, match=r"(?s)openvino: not installed.*torch: does not compute in fp32"):
        DepthEngine.load(precision="fp32")


def test_a_graph_that_cannot_be_remade_without_torch_is_explained(monkeypatch, tmp_path, checkpoint):
    from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError

    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(checkpoint.path.read_bytes())
    monkeypatch.setattr(openvino_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"alone\.onnx: no such file; make it with 'fadepth export"):
        openvino_backend.onnx_file(Checkpoint(alone))
