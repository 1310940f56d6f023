"""DepthEngine: which backend it takes, what it does when one fails, and that backends agree."""

import types

import numpy as np
import pytest

from fadepth_core.runtime import backends
from fadepth_core.runtime.backends import openvino as openvino_backend
from fadepth_core.runtime.engine import DepthEngine, EngineError, FrameRequest
from fadepth_core.runtime.framing import FramingError

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
    with pytest.raises(ValueError, match=r"unknown backend 'tpu'; known backends: openvino, torch"):
        DepthEngine.load(backend="tpu")
    with pytest.raises(ValueError, match=r"unknown precision 'int3'"):
        DepthEngine.load(precision="int3")
    with pytest.raises(FramingError, match="multiples of 32"):
        DepthEngine.load(input_size=(100, 100))


def broken_backend(create, missing=None, precisions=("fp32",)):
    return types.SimpleNamespace(create=create, missing=lambda: missing, PRECISIONS=precisions)


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
    with pytest.raises(
        CheckpointError, match=r"alone\.onnx: no such file; make it with 'python training/run.py export"
    ):
        openvino_backend.onnx_file(Checkpoint(alone))
