"""Sparsification: AUSE and AURG of an uncertainty."""

import json

import cv2
import numpy as np
import pytest
import torch

from fadepth_core.cli import main
from fadepth_core.data.folder import camera_values, write_index
from fadepth_core.data.images import write_depth
from fadepth_core.evaluation.uncertainty import flip_difference, sparsification_areas
from fadepth_core.models import add_confidence
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network

#: Errors uniform in [0, 1]: all pixels have the mean 1/2, the best share 1 - f of them has (1 - f) / 2.
COST = np.random.default_rng(0).permutation(np.linspace(0, 1, 10_001))


def test_the_best_order_is_that_of_the_errors():
    ause, aurg = sparsification_areas(COST, COST)
    assert ause == pytest.approx(0, abs=1e-9)
    assert aurg == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("uncertainty", [None, np.zeros_like(COST)])
def test_a_random_order_gains_nothing(uncertainty):
    ause, aurg = sparsification_areas(COST, uncertainty)
    assert aurg == pytest.approx(0, abs=0.01)
    assert ause == pytest.approx(0.25, abs=0.02)


def test_the_reversed_order_is_worse_than_random():
    assert sparsification_areas(COST, -COST)[1] == pytest.approx(-0.25, abs=0.01)


def test_the_error_of_squared_errors_is_the_root_of_their_mean():
    """Two pixels, 0 and 1 m off: RMSE 0.71 m, and 0 m after half of the pixels."""
    ause, aurg = sparsification_areas(np.array([1.0, 0.0]), np.array([1.0, 0.0]), root=True)
    assert (ause, aurg) == (pytest.approx(0), pytest.approx(0.5 * np.sqrt(0.5), abs=0.02))


def test_flip_difference_is_zero_for_a_symmetric_prediction():
    image = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)

    def brightness(image, intrinsics):
        return 1.0 + image.mean(-1)

    def left_half(image, intrinsics):
        return np.where(np.arange(12) < 6, 2.0, 1.0) * np.ones((8, 1))

    assert np.abs(flip_difference(brightness)(image, np.eye(3))).max() < 1e-12
    np.testing.assert_allclose(flip_difference(left_half)(image, np.eye(3)), np.log(2))


@pytest.mark.parametrize("engine", [[], ["--backend", "openvino"]])
def test_evaluate_measures_the_confidence_of_a_checkpoint(tmp_path, capsys, engine):
    torch.manual_seed(0)
    network, shipped = load_network(Checkpoint()), Checkpoint()
    add_confidence(network).set_start(0.5)
    export_checkpoint(network, shipped.description, tmp_path / "net.safetensors")
    data = tmp_path / "data"
    data.mkdir()
    random = np.random.default_rng(0)
    k = np.array([[80.0, 0, 47.5], [0, 80, 31.5], [0, 0, 1]])
    entries = []
    for name in "ab":
        cv2.imwrite(str(data / f"{name}.png"), random.integers(0, 255, (64, 96, 3), np.uint8))
        write_depth(data / f"{name}_depth.png", np.full((64, 96), 2.0, np.float32))
        entries.append({"id": name, "rgb": f"{name}.png", "depth": f"{name}_depth.png", **camera_values(k)})
    write_index(data, entries)
    arguments = ["--protocol", "folder", "--root", str(data), "--out", str(tmp_path / "out"), "--confidence", *engine]
    assert main(["evaluate", str(tmp_path / "net.safetensors"), *arguments]) == 0
    assert "AUSE AbsRel" in capsys.readouterr().out
    values = json.loads((tmp_path / "out/folder.confidence.json").read_text())
    assert list(values["sparsification"]) == ["confidence", "flip difference", "none (random)"]
    sums = {row["ause_abs_rel"] + row["aurg_abs_rel"] for row in values["sparsification"].values()}
    assert max(sums) == pytest.approx(min(sums)), "AUSE and AURG add up to the area between random and best"
    assert values["relative_error"]["expected"] == pytest.approx(0.5, rel=0.3)
