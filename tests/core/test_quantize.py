"""The int8 graph of a checkpoint: small, and close to the float graph at every size."""

import cv2
import numpy as np
import pytest

from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network

pytest.importorskip("nncf", reason="int8 graphs are made by NNCF: pip install 'fadepth_ros[quantize]'")
from fadepth_core.runtime.quantize import MIN_FRAMES, quantize_checkpoint
from fadepth_core.runtime.verification import CHECK_BOUNDS


@pytest.fixture(scope="module")
def images(checkpoint):
    """Every ninth frame of the demo clip."""
    clip = cv2.VideoCapture(str(checkpoint.path.with_name("demo.mp4")))
    frames = []
    while clip.grab():
        frames.append(clip.retrieve()[1][..., ::-1])
    return [np.ascontiguousarray(frame) for frame in frames[::9]]


@pytest.fixture(scope="module")
def quantized(checkpoint, images, tmp_path_factory):
    """A copy of the shipped checkpoint with an int8 graph, and the relative difference of its depth from float32."""
    path = tmp_path_factory.mktemp("int8") / "net.safetensors"
    export_checkpoint(load_network(checkpoint), checkpoint.description, path)
    return Checkpoint(path), quantize_checkpoint(path, images)


def test_it_is_small_and_belongs_to_its_checkpoint(quantized):
    before, difference = quantized
    after = Checkpoint(before.path)
    assert after.int8_problem() is None
    assert after.onnx_problem() is None
    assert after.weights_sha256 == before.weights_sha256
    assert after.int8_path.stat().st_size < 0.6 * after.path.stat().st_size
    assert difference[0] < 0.03


@pytest.mark.parametrize("size", [(128, 416), (192, 256)])
def test_it_is_close_to_float_at_every_size(quantized, images, size):
    depth = {}
    for precision in ("fp32", "int8"):
        engine = DepthEngine.load(quantized[0].path, size, images[0].shape[:2], "openvino", precision)
        assert (engine.backend_name, engine.precision) == ("openvino", precision), engine.failures
        depth[precision] = [engine.infer(FrameRequest(image)).depth.copy() for image in images[::8]]
    difference = np.abs(np.array(depth["int8"]) / np.array(depth["fp32"]) - 1)
    assert 0 < np.median(difference) < CHECK_BOUNDS["int8"][0]
    assert np.quantile(difference, 0.9) < 0.15


def test_calibration_needs_frames(quantized, images):
    with pytest.raises(
        CheckpointError, match=rf"net\.safetensors: 3 frames; an int8 graph needs at least {MIN_FRAMES}"
    ):
        quantize_checkpoint(quantized[0].path, images[:3])
