"""Canonical focal length: scaled scenes look the same, and predictions are scaled to the camera's focal length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fadepth_core.common.framing import focal_length
from fadepth_core.data import collate
from fadepth_core.data.focal import at_focal_length
from fadepth_core.evaluation import NetworkPredictor
from fadepth_core.geometry import relative_motion, reproject
from fadepth_core.models.depth_network import DepthFeatures
from fadepth_core.runtime.checkpoint import Checkpoint, Description
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.synthetic.dataset import SyntheticDataset

SIZE = (64, 96)
DESCRIPTION = Description(
    "smalldepth",
    "deploy",
    SIZE,
    (0.1, 100.0),
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    True,
    focal_length=120.0,
)


@pytest.fixture(scope="module")
def sample():
    return SyntheticDataset("driving", SIZE, length=1, seed=3, moving=False)[0]


def test_the_scaled_scene_looks_the_same(sample):
    """If depth and motion are scaled together, the optical flow does not change."""
    scaled = at_focal_length(sample, 2.5 * focal_length(sample.intrinsics), SIZE[1])
    assert torch.allclose(scaled.depth, 2.5 * sample.depth)
    assert torch.allclose(scaled.speed, 2.5 * sample.speed)
    assert torch.equal(scaled.poses[:, :3, :3], sample.poses[:, :3, :3])
    assert torch.equal(scaled.frames, sample.frames)
    before, after = (_flow_to_next(item) for item in (sample, scaled))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert before.abs().max() > 2, "the camera must move"
    assert not torch.allclose(_flow_to_next(replace(scaled, poses=sample.poses)), before, atol=0.5)


def test_the_focal_length_is_that_at_the_networks_size(sample):
    half = at_focal_length(sample, focal_length(sample.intrinsics) / 2, SIZE[1] // 2)
    assert torch.allclose(half.depth, sample.depth)


class Constant(torch.nn.Module):
    """Predicts one disparity everywhere."""

    min_depth, max_depth = 0.1, 100.0

    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(0.0125))

    def forward(self, image):
        return DepthFeatures((self.x.expand(len(image), 1, *image.shape[-2:]),), (), ())


def test_predicted_depth_is_proportional_to_the_focal_length():
    picture = np.zeros((128, 192, 3), np.uint8)
    k = np.array([[300.0, 0, 95.5], [0, 300.0, 63.5], [0, 0, 1]])
    plain = NetworkPredictor(Constant().eval(), SIZE)(picture, k)
    # 300 pixels at 128x192 are 150 at the network's 64x96.
    same = NetworkPredictor(Constant().eval(), SIZE, focal=150.0)(picture, k)
    wide = NetworkPredictor(Constant().eval(), SIZE, focal=600.0)(picture, k)
    np.testing.assert_allclose(same, plain, rtol=1e-6)
    np.testing.assert_allclose(wide, 4 * plain, rtol=1e-6)


def test_the_engines_depth_is_proportional_to_the_focal_length(network, tmp_path):
    """Twice the focal length gives twice the depth; the focal length is converted to pixels of the network's input."""
    path = tmp_path / "net.safetensors"
    export_checkpoint(network, DESCRIPTION, path)
    assert Checkpoint(path).description.focal_length == 120.0
    engine = DepthEngine.load(path, SIZE, (128, 192), backend="torch")
    image = np.random.default_rng(0).integers(0, 255, (128, 192, 3), np.uint8)
    unscaled = engine.infer(FrameRequest(image)).depth.copy()
    for focal, factor in ((240.0, 1.0), (480.0, 2.0)):
        k = np.array([[focal, 0, 95.5], [0, focal, 63.5], [0, 0, 1]])
        result = engine.infer(FrameRequest(image, k, points=False))
        np.testing.assert_allclose(result.depth, factor * unscaled, rtol=1e-5)


def test_a_negative_focal_length_is_refused():
    text = DESCRIPTION.to_json()
    assert Description.from_json(text).focal_length == 120.0
    with pytest.raises(ValueError, match="its focal_length is -3, not a positive number"):
        Description.from_json(text.replace("120.0", "-3"))


def _flow_to_next(sample):
    batch = collate([sample])
    depth = batch.depth[:, None].clamp(max=1e4)  # sky
    return reproject(depth, relative_motion(batch.poses[:, 1], batch.poses[:, 2]), batch.intrinsics).flow
