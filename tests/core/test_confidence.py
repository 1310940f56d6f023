"""The confidence head from the network through the exported files to `DepthResult`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fadepth_core.models import MODELS, add_confidence, build_model
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network

CAMERA = (120, 160)
K = np.array([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The shipped network with a confidence head of random weights."""
    torch.manual_seed(0)
    shipped = Checkpoint()
    network = load_network(shipped)
    add_confidence(network)
    path = tmp_path_factory.mktemp("confidence") / "net.safetensors"
    export_checkpoint(network, shipped.description, path)
    return path


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    return np.kron(noise, np.ones((8, 8, 1), np.uint8))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "unet"])
def test_every_network_has_the_same_confidence_in_training_and_deployed_form(name):
    torch.manual_seed(0)
    network = build_model(name, confidence=True).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        decoder = network(image).decoder
        x, confidence = network.fuse()(image, True)
    assert x.shape == confidence.shape == (1, 1, 64, 96)
    assert 0 <= confidence.min() < confidence.max() <= 1
    with torch.inference_mode():
        torch.testing.assert_close(confidence, network.confidence(decoder), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
@pytest.mark.parametrize("full_resolution", [False, True])
def test_confidence_comes_with_depth_when_it_is_asked_for(path, image, backend, full_resolution):
    engine = DepthEngine.load(path, None, CAMERA, backend, full_resolution=full_resolution)
    assert (engine.backend_name, engine.has_confidence, engine.failures) == (backend, True, [])
    alone = engine.infer(FrameRequest(image, K))
    assert alone.confidence is None
    depth, points = alone.depth.copy(), alone.points.copy()
    for request in (FrameRequest(image, K, confidence=True), FrameRequest(image, K, points=False, confidence=True)):
        result = engine.infer(request)
        assert result.confidence.shape == depth.shape
        assert 0 < result.confidence.min() < result.confidence.max() < 1
        np.testing.assert_allclose(result.depth, depth, rtol=1e-5)
    np.testing.assert_allclose(engine.infer(FrameRequest(image, K, confidence=True)).points, points, rtol=1e-4)
    streamed = list(engine.stream(FrameRequest(image, K, confidence=c) for c in (True, False, True)))
    assert [r.confidence is None for r in streamed] == [False, True, False]
    batch = engine.infer_batch([FrameRequest(image, K, confidence=c) for c in (False, True)])
    assert [r.confidence is None for r in batch] == [True, False]


def test_backends_agree_on_confidence(path, image):
    request = FrameRequest(image, K, confidence=True)
    found = [
        DepthEngine.load(path, None, CAMERA, name).infer(request).confidence.copy() for name in ("openvino", "torch")
    ]
    np.testing.assert_allclose(*found, rtol=1e-3)


def test_a_checkpoint_without_the_head_gives_no_confidence(image, tmp_path):
    shipped, path = Checkpoint(), tmp_path / "plain.safetensors"
    network = load_network(shipped)
    network.confidence = None
    export_checkpoint(network, shipped.description, path)
    engine = DepthEngine.load(path, None, CAMERA)
    assert not engine.has_confidence
    result = engine.infer(FrameRequest(image, K, confidence=True))
    assert result.confidence is None
    assert result.confident(0.99) is result


def test_unsure_pixels_lose_depth_and_points(path, image):
    result = DepthEngine.load(path, None, CAMERA).infer(FrameRequest(image, K, confidence=True))
    least = float(np.median(result.confidence))
    kept = result.confident(least)
    unsure = result.confidence < np.float32(least)
    assert 0.3 < unsure.mean() < 0.7
    assert np.array_equal(np.isnan(kept.depth), unsure)
    assert np.array_equal(np.isnan(kept.points).all(-1), unsure)
    assert np.array_equal(kept.depth[~unsure], result.depth[~unsure])


def test_a_backend_with_other_confidence_does_not_serve(path, tmp_path):
    """The golden frame holds confidence, and each backend's is compared with it."""
    checkpoint, changed = Checkpoint(path), tmp_path / "net.safetensors"
    golden = {**checkpoint.golden, "confidence": checkpoint.golden["confidence"] * np.float32(0.9)}
    description = replace(checkpoint.description, onnx_sha256="")
    save_checkpoint(changed, checkpoint.weights, description, golden)
    with pytest.raises(Exception, match="its confidence differs from the reference"):
        DepthEngine.load(changed, None, CAMERA)


@pytest.mark.parametrize(
    ("golden", "reason"),
    [
        ({"confidence": None}, "does not fit its option 'confidence'"),
        ({"confidence": np.full((64, 96), np.nan, np.float32)}, "outside 0 to 1"),
        ({"confidence": np.ones((64, 95), np.float32)}, r"its golden confidence is float32 \[64, 95\]"),
    ],
)
def test_a_checkpoint_with_wrong_golden_confidence_is_refused(path, tmp_path, golden, reason):
    checkpoint, changed = Checkpoint(path), tmp_path / "net.safetensors"
    values = {name: value for name, value in {**checkpoint.golden, **golden}.items() if value is not None}
    save_checkpoint(changed, checkpoint.weights, checkpoint.description, values)
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(changed)
