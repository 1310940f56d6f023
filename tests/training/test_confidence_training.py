"""`fadepth confidence`: the head learns where the network's depth is wrong, and depth stays the same."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from fadepth_core.cli import main
from fadepth_core.data.folder import camera_values, write_index
from fadepth_core.data.frames import Frames
from fadepth_core.data.images import write_depth
from fadepth_core.losses import error_likelihood
from fadepth_core.runtime.checkpoint import ASSETS, Checkpoint
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network

SIZE = (64, 192)
FOCAL = 100.0
K = np.array([[FOCAL, 0, 95.5], [0, FOCAL, 31.5], [0, 0, 1]])


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The shipped network, for pictures of `SIZE`."""
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    shipped = Checkpoint()
    export_checkpoint(load_network(shipped), replace(shipped.description, network_size=SIZE, focal_length=FOCAL), path)
    return path


@pytest.fixture(scope="module")
def frames():
    """Frames of the demo clip, at `SIZE`."""
    return [
        cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA) for image in Frames(ASSETS / "demo.mp4").evenly(7)
    ]


def write_pictures(folder, engine, images):
    """Pictures whose true depth is the network's where that is near, and six times as far elsewhere."""
    (folder / "depth").mkdir(parents=True)
    entries = []
    for number, image in enumerate(images):
        depth = engine.infer(FrameRequest(image, K)).depth.copy()
        depth[depth > np.median(depth)] *= 6
        cv2.imwrite(str(folder / f"{number}.png"), image[..., ::-1])
        write_depth(folder / f"depth/{number}.png", depth)
        entries.append({"id": str(number), "rgb": f"{number}.png", "depth": f"depth/{number}.png", **camera_values(K)})
    write_index(folder, entries)


def test_the_head_learns_where_depth_is_wrong(start, frames, tmp_path, capsys):
    before = DepthEngine.load(start, SIZE, SIZE)
    write_pictures(tmp_path / "pictures", before, frames[:-1])
    out = tmp_path / "net.safetensors"
    options = ["--out", str(out), "--iterations", "100", "--batch-size", "2"]
    assert main(["confidence", str(start), "--data", str(tmp_path / "pictures"), *options]) == 0
    assert "the head expected" in capsys.readouterr().out
    assert "100 batches of 2 pictures" in Checkpoint(out).description.provenance["confidence"]
    after = Checkpoint(out).weights
    for name, value in Checkpoint(start).weights.items():
        if not name.startswith("confidence."):  # the head that it had
            assert np.array_equal(after[name], value), "the network is frozen"
    request = FrameRequest(frames[-1], K, confidence=True)
    result = DepthEngine.load(out, SIZE, SIZE).infer(request)
    depth = before.infer(request).depth
    np.testing.assert_allclose(result.depth, depth, rtol=1e-4)
    expected_error = 1 / result.confidence - 1
    right, wrong = expected_error[depth < np.quantile(depth, 0.4)], expected_error[depth > np.quantile(depth, 0.6)]
    assert np.median(wrong) > 2 * np.median(right)


def test_pictures_without_depth_are_refused(start, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures/a.png"), np.zeros((*SIZE, 3), np.uint8))
    assert (
        main(["confidence", str(start), "--data", str(tmp_path / "pictures"), "--out", str(tmp_path / "o.safetensors")])
        == 1
    )
    assert "no picture in it has depth" in capsys.readouterr().err


def test_the_likelihood_is_best_at_the_mean_error():
    random = torch.Generator().manual_seed(0)
    truth = torch.exp(torch.randn(2, 40, 40, generator=random) + 1)
    truth[:, :5] = 0  # unknown
    disparity = torch.full((2, 1, 40, 40), 0.02)
    losses = {}
    for log_u in np.linspace(-3, 2, 101):
        s = torch.full((2, 1, 40, 40), float(log_u))
        losses[float(log_u)], error = error_likelihood(s, disparity, truth, 0.1, 100.0)
    best = min(losses, key=losses.get)
    assert np.exp(best) == pytest.approx(float(error), rel=0.06)


def test_a_common_factor_is_no_error_for_a_network_without_scale():
    disparity = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.01
    truth = 3 / ((1 / 0.1 - 1 / 100) * disparity[:, 0] + 1 / 100)
    s = torch.zeros_like(disparity)
    assert float(error_likelihood(s, disparity, truth, 0.1, 100.0)[1]) == pytest.approx(np.log(3), rel=1e-3)
    assert float(error_likelihood(s, disparity, truth, 0.1, 100.0, scaled=True)[1]) < 1e-3
