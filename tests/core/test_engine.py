"""`DepthEngine`: single frames, batches and streams give the same depth on every backend, and bad input is refused."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fadepth_core.common.framing import FramingError
from fadepth_core.runtime.backends import openvino as openvino_backend
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.engine import DepthEngine, EngineError, FrameRequest
from fake_backends import ChangedOutput, fake_type, replace_backends

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
SMALL = (64, 96)


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine():
    """The shipped checkpoint for a camera of 480x640; tests must not let it fail."""
    return DepthEngine.load(camera_size=(480, 640))


@pytest.fixture
def requests(image):
    return [
        FrameRequest(image, K, scale=2.0),
        FrameRequest(image[::-1], 1.1 * K, points=False, limits=(0.2, 10.0)),
        FrameRequest(image[:, ::-1]),
    ]


def assert_equal_results(result, expected):
    np.testing.assert_allclose(result.depth, expected.depth, rtol=1e-3)
    assert (result.points is None) == (expected.points is None)
    if expected.points is not None:
        np.testing.assert_allclose(result.points, expected.points, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(result.intrinsics, expected.intrinsics)


def assert_results_of_infer(engine, requests, results):
    for request, result in zip(requests, results, strict=True):
        assert_equal_results(result, engine.infer(request))


@pytest.mark.parametrize("options", [{}, {"full_resolution": True}, {"input_size": (128, 416), "crop_to_aspect": True}])
def test_backends_agree(image, options):
    results = {}
    for name in ("torch", "openvino"):
        engine = DepthEngine.load(camera_size=(480, 640), backend=name, **options)
        assert engine.backend_name == name, engine.failures
        result = engine.infer(FrameRequest(image, K, limits=(0.2, 10.0)))
        assert result.depth.shape == engine.framing.output_size == result.points.shape[:2]
        results[name] = (result.depth.copy(), result.points.copy())
    a, b = results["torch"], results["openvino"]
    both = np.isfinite(a[0]) & np.isfinite(b[0])
    assert both.mean() > 0.2
    np.testing.assert_allclose(b[0][both], a[0][both], rtol=1e-3)
    np.testing.assert_allclose(b[1][both], a[1][both], rtol=1e-3, atol=1e-3)


def test_points_need_intrinsics_and_a_request(engine, image):
    assert engine.infer(FrameRequest(image)).points is None
    assert engine.infer(FrameRequest(image)).intrinsics is None
    assert engine.infer(FrameRequest(image, K, points=False)).points is None
    assert engine.infer(FrameRequest(image, K)).points is not None


def test_depth_is_the_same_with_and_without_points(engine, image):
    depth = engine.infer(FrameRequest(image)).depth.copy()
    np.testing.assert_allclose(engine.infer(FrameRequest(image, K)).depth, depth, rtol=1e-5)


def test_an_image_of_another_type_or_size_is_refused(engine, image):
    with pytest.raises(ValueError, match=r"expected a uint8 image \[H, W, 3\], got float32"):
        engine.infer(FrameRequest(image.astype(np.float32)))
    with pytest.raises(ValueError, match=r"got \[100, 100\]"):
        engine.infer(FrameRequest(image[:100, :100]))


def test_a_projection_matrix_is_refused_without_a_fallback(engine, image):
    with pytest.raises(ValueError, match=r"expected intrinsics \[3, 3\], got \[3, 4\]"):
        engine.infer(FrameRequest(image, np.eye(3, 4)))
    assert engine.failures == []


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"image": [[[0, 0, 0]]]}, TypeError, "expected an image as numpy array, got list"),
        ({"image": None}, TypeError, "got NoneType"),
        ({"image": np.zeros((480, 640), np.uint8)}, ValueError, r"got uint8 \[480, 640\]"),
        ({"intrinsics": np.full((3, 3), np.nan)}, ValueError, "expected finite intrinsics"),
        ({"intrinsics": K * 1e300}, ValueError, "expected finite intrinsics"),
        ({"intrinsics": K[::-1]}, ValueError, r"expected intrinsics \[\[fx"),
        ({"intrinsics": K * np.array([[-1.0], [1], [1]])}, ValueError, "with positive fx, fy"),
        ({"intrinsics": "K"}, ValueError, "could not convert"),
        ({"limits": (1, 2, 3)}, ValueError, r"expected limits as two numbers.*\(1, 2, 3\)"),
        ({"limits": None}, ValueError, "expected limits as two numbers"),
        ({"limits": (0.0, np.nan)}, ValueError, "expected limits with the nearest first"),
        ({"limits": (5.0, 1.0)}, ValueError, "expected limits with the nearest first"),
        ({"scale": np.nan}, ValueError, "expected a positive, finite scale, got nan"),
        ({"scale": -1.0}, ValueError, "expected a positive, finite scale"),
        ({"scale": 1e300}, ValueError, "expected a positive, finite scale"),
        ({"scale": "2"}, TypeError, "expected a number as scale, got str"),
    ],
)
def test_a_callers_mistake_is_no_failure_of_a_backend(engine, image, change, error, reason):
    good = FrameRequest(image, K)
    bad = replace(good, **change)
    for run in (
        lambda: engine.infer(bad),
        lambda: engine.infer_batch([good, bad]),
        lambda: list(engine.stream([good, bad])),
    ):
        with pytest.raises(error, match=reason):
            run()
    assert engine.failures == []
    assert engine.infer(good).points is not None


def test_what_is_no_request_is_refused(engine, image):
    with pytest.raises(TypeError, match="expected a FrameRequest, got ndarray"):
        engine.infer(image)
    assert engine.failures == []


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_an_image_with_negative_strides_is_taken(backend):
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (*SMALL, 3), dtype=np.uint8)
    engine = DepthEngine.load(camera_size=SMALL, input_size=SMALL, backend=backend)
    expected = engine.infer(FrameRequest(np.ascontiguousarray(bgr[..., ::-1]))).depth.copy()
    np.testing.assert_array_equal(engine.infer(FrameRequest(bgr[..., ::-1])).depth, expected)
    assert engine.failures == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"camera_size": (480,)}, "camera_size must be two whole numbers"),
        ({"camera_size": (480.0, 640.0)}, "camera_size must be two whole numbers"),
        ({"input_size": 128}, "input_size must be two whole numbers"),
        ({"threads": -1}, "threads must be a whole number of at least 0"),
        ({"batch": 0}, "batch must be a whole number of at least 1"),
    ],
)
def test_arguments_that_no_engine_can_have_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        DepthEngine.load(**arguments)


def test_whether_an_engine_can_be_built_is_found_out_without_building_one(monkeypatch, tmp_path):
    DepthEngine.check()
    with pytest.raises(CheckpointError, match="no such file"):
        DepthEngine.check(tmp_path / "nowhere.safetensors")

    def create(spec):
        raise RuntimeError("no memory")

    replace_backends(monkeypatch, torch=fake_type(unavailable="not installed"), openvino=fake_type(create))
    with pytest.raises(
        EngineError, match=r"(?s)no backend can run .*openvino: failed to start: no memory.*not installed"
    ):
        DepthEngine.check()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown backend 'tpu'; known backends: tensorrt, inductor, openvino, torch"):
        DepthEngine.load(backend="tpu")
    with pytest.raises(ValueError, match=r"unknown precision 'int3'"):
        DepthEngine.load(precision="int3")
    with pytest.raises(FramingError, match="multiples of 32"):
        DepthEngine.load(input_size=(100, 100))


# -------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_equals_its_frames_each_with_its_own_request(engine, requests):
    assert not engine.batches
    assert_results_of_infer(engine, requests, engine.infer_batch(requests))
    assert engine.infer_batch([]) == []


class BatchingBackend(ChangedOutput):
    """OpenVINO that declares to run frames together; notes the image shapes of each batch."""

    supports_batch = True

    def __init__(self, spec, shapes, error=None):
        super().__init__(spec, lambda output: output)
        self._shapes, self._error = shapes, error

    def infer_batch(self, frames):
        self._shapes.append([frame.image.shape for frame in frames])
        if self._error is not None:
            raise self._error
        return super().infer_batch(frames)


def test_a_backend_that_batches_gets_several_frames_at_once(monkeypatch, requests):
    shapes = []
    replace_backends(monkeypatch, openvino=fake_type(lambda spec: BatchingBackend(spec, shapes)))
    engine = DepthEngine.load(camera_size=(480, 640))
    assert engine.batches
    assert_results_of_infer(engine, requests, engine.infer_batch(requests))
    engine.infer_batch(requests[:1])
    assert shapes == [3 * [(*engine.framing.network_size, 3)]], "one frame alone is no batch"


def test_a_batch_that_fails_loses_no_frame(monkeypatch, requests):
    error = RuntimeError("out of memory")
    replace_backends(monkeypatch, openvino=fake_type(lambda spec: BatchingBackend(spec, [], error)))
    engine = DepthEngine.load(camera_size=(480, 640))
    results = engine.infer_batch(requests)
    assert engine.backend_name == "torch"
    assert engine.failures == ["openvino: failed while running: out of memory"]
    assert_results_of_infer(engine, requests, results)


# -------------------------------------------------------------------------------------------------------------- streams


class FailingStream(ChangedOutput):
    """OpenVINO whose stream fails after two results, with more frames in flight."""

    def __init__(self, spec):
        super().__init__(spec, lambda output: output)

    def stream(self, frames):
        for number, output in enumerate(self.openvino.stream(frames)):
            if number == 2:
                raise RuntimeError("device lost")
            yield output


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_gives_the_results_of_infer_in_order(monkeypatch, fails):
    rng = np.random.default_rng(1)
    requests = [
        FrameRequest(rng.integers(0, 256, (*SMALL, 3), dtype=np.uint8), K * (1 + i), limits=(0.0, 50.0 - i))
        for i in range(9)
    ]
    requests[4] = replace(requests[4], intrinsics=None)
    requests[7] = replace(requests[7], points=False, scale=2.0)
    engine = DepthEngine.load(camera_size=SMALL, input_size=SMALL)
    expected = []
    for request in requests:
        result = engine.infer(request)
        points = None if result.points is None else result.points.copy()
        expected.append(replace(result, depth=result.depth.copy(), points=points))
    if fails:
        replace_backends(monkeypatch, openvino=fake_type(FailingStream))
        engine = DepthEngine.load(camera_size=SMALL, input_size=SMALL)
    results = list(engine.stream(iter(requests)))
    for result, wanted in zip(results, expected, strict=True):
        assert_equal_results(result, wanted)
    assert engine.failures == (["openvino: failed while running: device lost"] if fails else [])


def test_an_engine_has_one_stream_at_a_time(engine, image):
    request = FrameRequest(image, K)
    stream = engine.stream([request] * 3)
    next(stream)
    with pytest.raises(RuntimeError, match="one stream at a time"):
        next(engine.stream([request]))
    stream.close()
    assert len(list(engine.stream([request]))) == 1


def test_a_bad_frame_ends_a_stream_after_all_results_before_it():
    good = np.zeros((*SMALL, 3), np.uint8)
    engine = DepthEngine.load(camera_size=SMALL, input_size=SMALL)
    results = engine.stream(map(FrameRequest, [good] * 3 + [good[:10], good]))
    assert [next(results).depth.shape for _ in range(3)] == [SMALL] * 3
    with pytest.raises(ValueError, match=r"got \[10, 96\]"):
        next(results)
    assert engine.failures == []
    assert len(list(engine.stream(map(FrameRequest, [good] * 2)))) == 2, "the engine still works"


# ------------------------------------------------------------------------------------------------------------- failures


def test_once_every_backend_has_failed_every_call_raises(monkeypatch, image):
    replace_backends(monkeypatch, torch=fake_type(unavailable="not installed"), openvino=fake_type(FailingStream))
    engine = DepthEngine.load(camera_size=(480, 640))
    with pytest.raises(EngineError, match=r"(?s)no backend can run .*device lost"):
        list(engine.stream([FrameRequest(image, K)] * 5))
    with pytest.raises(EngineError, match=r"(?s)no backend can run .*device lost"):
        engine.infer(FrameRequest(image, K))
    with pytest.raises(EngineError, match=r"(?s)no backend can run .*device lost"):
        engine.infer_batch([FrameRequest(image), FrameRequest(image)])
    assert engine.description == "no backend"
    assert not engine.batches
    with pytest.raises(EngineError, match=r"(?s)no backend can run .*device lost"):
        _ = engine.backend_name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # bf16 also asks the processor what it can do
def test_signals_do_not_crash_a_process_that_has_released_engines(precision):
    """In a process of its own, since a failure would end it. Engines are released in the order of their creation, which
    leaves the thread that has used OpenVINO first with a freed signal stack."""
    program = f"""
import signal
from fadepth_core.runtime.engine import DepthEngine
sizes = dict(camera_size=(64, 96), input_size=(64, 96))
engines = [DepthEngine.load(**sizes, backend="openvino", precision="{precision}") for _ in range(2)]
while engines:
    del engines[0]
signal.signal(signal.SIGINT, lambda *_: print("caught"))
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "caught\n"), done.stderr


def test_a_missing_graph_that_cannot_be_exported_without_torch_is_explained(monkeypatch, tmp_path, checkpoint):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(checkpoint.path.read_bytes())
    monkeypatch.setattr(openvino_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"alone\.onnx: no such file; make it with 'fadepth export"):
        openvino_backend.onnx_file(Checkpoint(alone))
