"""Which backend serves: order, fallback at start and while running, and builds in the background."""

import threading
import weakref

import numpy as np
import pytest
import torch

from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import torch as torch_backend
from fadepth_core.runtime.engine import DepthEngine, EngineError, FrameRequest
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fake_backends import (
    ChangedOutput,
    CompiledBackend,
    fails_after,
    fails_to_start,
    fake_type,
    gated_type,
    replace_backends,
)

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
GPU_ORDER = ("tensorrt", "inductor", "torch", "openvino")


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)


def assert_about_the_same(depth, expected):
    """Equal up to the rounding of a frame that was resized to bytes."""
    assert np.median(np.abs(depth / expected - 1)) < 0.02


def finish_build(gate, engine, image):
    """Let a gated build finish, and infer the frame at which the engine takes it over."""
    gate.set()
    engine.wait_for_build()
    engine.infer(FrameRequest(image, K))


@pytest.mark.parametrize("usable", [True, False])
def test_a_gpu_that_torch_cannot_use_does_not_count(monkeypatch, usable):
    monkeypatch.setattr(backends, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(backends.importlib.metadata, "version", lambda _name: "2.13.0+cu130")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    assert backends.automatic_order()[0] == ("tensorrt" if usable else "openvino")


def test_an_unavailable_backend_is_noted_with_its_reason(monkeypatch, caplog):
    caplog.set_level("INFO")
    replace_backends(monkeypatch, openvino=fake_type(unavailable="the package openvino is not installed"))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.backend_name == "torch"
    assert engine.failures == ["openvino: the package openvino is not installed"]
    assert not engine.degraded, "an unavailable backend has not failed"
    assert "backend openvino is not used: the package openvino is not installed" in caplog.text


def test_a_backend_that_fails_to_start_is_replaced(monkeypatch, image):
    replace_backends(monkeypatch, openvino=fake_type(fails_to_start(RuntimeError("no such device"))))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.backend_name == "torch"
    assert engine.failures == ["openvino: failed to start: no such device"]
    assert np.isfinite(engine.infer(FrameRequest(image)).depth).all()


def test_no_backend_is_tried_twice_in_one_precision(monkeypatch):
    tried = []

    def broken(name):
        def create(spec):
            tried.append((name, spec.precision))
            raise RuntimeError("no such device")

        return fake_type(create, precisions=("fp32", "bf16"))

    replace_backends(monkeypatch, openvino=broken("openvino"), torch=broken("torch"))
    first = [("openvino", "fp32"), ("torch", "fp32")]
    for precision, expected in {"fp32": first, "bf16": [("openvino", "bf16"), ("torch", "bf16"), *first]}.items():
        tried.clear()
        with pytest.raises(EngineError):
            DepthEngine.load(camera_size=(64, 96), precision=precision)
        assert tried == expected


def test_when_no_backend_works_the_error_has_every_reason(monkeypatch):
    replace_backends(
        monkeypatch, openvino=fake_type(unavailable="not installed"), torch=fake_type(precisions=("fp16",))
    )
    with pytest.raises(EngineError, match=r"(?s)openvino: not installed.*torch: does not compute in fp32"):
        DepthEngine.load(precision="fp32")


def test_without_an_int8_graph_the_default_precision_is_used(tmp_path, checkpoint, caplog):
    path = tmp_path / "net.safetensors"
    export_checkpoint(load_network(checkpoint), checkpoint.description, path)
    engine = DepthEngine.load(path, backend="openvino", precision="int8")
    assert (engine.backend_name, engine.precision) == ("openvino", "fp32")
    assert engine.degraded
    assert "net.safetensors was saved without an int8 graph; make one with 'fadepth export" in caplog.text
    assert engine.failures[1] == "torch: does not compute in int8"


def test_a_backend_that_fails_while_running_loses_no_frame(monkeypatch, image):
    runs = []

    def fail_later(output):
        runs.append(1)
        if len(runs) > 4:
            raise RuntimeError("device lost")
        return output

    replace_backends(monkeypatch, openvino=fake_type(lambda spec: ChangedOutput(spec, fail_later)))
    engine = DepthEngine.load(camera_size=(480, 640))
    first = engine.infer(FrameRequest(image, K)).depth.copy()
    names = [engine.backend_name]
    for _ in range(4):
        np.testing.assert_allclose(engine.infer(FrameRequest(image, K)).depth, first, rtol=1e-3)
        names.append(engine.backend_name)
    assert names[0] == "openvino"
    assert names[-1] == "torch"
    assert engine.failures == ["openvino: failed while running: device lost"]
    assert engine.degraded


def test_a_failed_backend_is_released_before_the_next_is_created(monkeypatch, image):
    """Both may not fit into memory."""
    failed, alive = [], []

    class Failing(CompiledBackend):
        def infer(self, frame):
            if frame.image.any():
                failed.append(weakref.ref(self))
                raise RuntimeError("out of memory")
            return super().infer(frame)

    def create(spec):
        alive.append(failed[0]() is not None)
        return torch_backend.create(spec)

    replace_backends(monkeypatch, openvino=fake_type(Failing), torch=fake_type(create))
    monkeypatch.setattr("fadepth_core.runtime.backend_chain.check_golden_frame", lambda backend_type, spec: None)
    engine = DepthEngine.load(camera_size=(480, 640))
    engine.infer(FrameRequest(image, K))
    assert engine.backend_name == "torch"
    assert alive == [False]


def test_another_backend_serves_until_the_compiled_one_is_ready(monkeypatch, image, caplog):
    caplog.set_level("INFO")
    gate = threading.Event()
    replace_backends(monkeypatch, tensorrt=gated_type(gate))
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "openvino", "torch"))
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    assert engine.backend_name == "openvino"
    assert "(tensorrt is being built)" in engine.description
    small = engine.framing.to_network(image)
    expected = engine.infer(FrameRequest(small, K)).depth.copy()
    gate.set()
    engine.wait_for_build()
    # A frame already resized for the serving backend is not lost, and the next one may come at the camera's size.
    np.testing.assert_array_equal(engine.infer(FrameRequest(small, K)).depth, expected)
    assert engine.backend_name == "openvino"
    assert not engine.takes_network_size
    assert_about_the_same(engine.infer(FrameRequest(image, K)).depth, expected)
    assert engine.backend_name == "tensorrt"
    assert not engine.degraded
    with pytest.raises(ValueError, match=r"expected an image of \[480, 640\] \(height"):
        engine.infer(FrameRequest(small, K))


def test_when_the_compiled_backend_fails_the_one_before_serves_again(monkeypatch, image):
    gate = threading.Event()
    message = "CUDA error: an illegal memory access was encountered"
    replace_backends(monkeypatch, tensorrt=gated_type(gate, fails_after(2, RuntimeError(message))))
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "openvino", "torch"))
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    expected = engine.infer(FrameRequest(image, K)).depth.copy()
    gate.set()
    engine.wait_for_build()
    assert_about_the_same(engine.infer(FrameRequest(image, K)).depth, expected)
    assert engine.backend_name == "openvino"
    assert engine.failures == [f"tensorrt: failed while running: {message}"]
    assert engine.degraded


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operators that cannot be converted: aten.foo"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["unconverted operator", "out of memory"],
)
def test_when_a_build_fails_the_next_one_begins(monkeypatch, image, error):
    first, second = threading.Event(), threading.Event()
    replace_backends(monkeypatch, tensorrt=gated_type(first, fails_to_start(error)), inductor=gated_type(second))
    monkeypatch.setattr(backends, "automatic_order", lambda: GPU_ORDER)
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    finish_build(first, engine, image)
    assert engine.failures == [f"tensorrt: failed to start: {error}"]
    assert engine.backend_name == "torch", "it serves until the next build has finished"
    finish_build(second, engine, image)
    assert engine.backend_name == "inductor"


def test_a_deferred_build_begins_when_the_compiled_backend_fails_while_running(monkeypatch, image):
    first, second = threading.Event(), threading.Event()
    tensorrt = gated_type(first, fails_after(2, RuntimeError("device lost")))
    replace_backends(monkeypatch, tensorrt=tensorrt, inductor=gated_type(second))
    monkeypatch.setattr(backends, "automatic_order", lambda: GPU_ORDER)
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    finish_build(first, engine, image)
    assert engine.backend_name == "torch", "it serves while the second is built"
    finish_build(second, engine, image)
    assert engine.backend_name == "inductor"


def test_without_another_backend_the_build_is_waited_for(monkeypatch, image):
    """Later, when the backend of the first build fails while running, the deferred one is built."""
    gate = threading.Event()

    def unavailable():
        gate.set()
        return "not installed"

    tensorrt = gated_type(gate, fails_after(2, RuntimeError("device lost")))
    replace_backends(
        monkeypatch,
        tensorrt=tensorrt,
        inductor=gated_type(gate),
        openvino=backends.BackendType(unavailable, tuple, CompiledBackend, compiled_per_size=False),
    )
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "inductor", "openvino"))
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    assert engine.backend_name == "tensorrt"
    engine.infer(FrameRequest(image, K))
    assert engine.backend_name == "inductor"
    assert engine.failures == ["openvino: not installed", "tensorrt: failed while running: device lost"]


def test_without_another_backend_a_build_that_fails_is_followed_by_the_next(monkeypatch):
    gate = threading.Event()

    def unavailable():
        gate.set()
        return "not installed"

    replace_backends(
        monkeypatch,
        tensorrt=gated_type(gate, fails_to_start(RuntimeError("no device"))),
        inductor=gated_type(gate),
        openvino=backends.BackendType(unavailable, tuple, CompiledBackend, compiled_per_size=False),
    )
    monkeypatch.setattr(backends, "automatic_order", lambda: ("tensorrt", "inductor", "openvino"))
    engine = DepthEngine.load(camera_size=(480, 640), background=True)
    assert engine.backend_name == "inductor"
    assert [line.split(":")[0] for line in engine.failures] == ["openvino", "tensorrt"]


def test_a_build_is_cancelled_when_its_engine_is_released(monkeypatch):
    specs, begun, gate = [], threading.Event(), threading.Event()

    def create(spec):
        specs.append(spec)
        begun.set()
        gate.wait()
        raise RuntimeError("cancelled")

    replace_backends(monkeypatch, tensorrt=fake_type(create, compiled_per_size=True))
    engine = DepthEngine.load(camera_size=(64, 96), backend="tensorrt", background=True)
    begun.wait()
    assert not specs[0].cancelled.is_set()
    del engine
    assert specs[0].cancelled.is_set()
    gate.set()
