"""`fit` and `evaluate`, from a configuration to the files in the run's folder, on tiny rendered scenes."""

from __future__ import annotations

import json
import re
import subprocess

import cv2
import numpy as np
import pytest
import torch
import yaml

from fadepth_core.data import DataError, Sample
from fadepth_core.data.registry import build_dataset
from fadepth_core.evaluation.motion import motion_errors
from fadepth_core.runtime.checkpoint import Checkpoint, CheckpointError
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.training.config import ConfigError, load_config
from fadepth_core.training.fit import SPEED_WEIGHT, fit, training_set, with_speed_weight
from short_runs import COMMAND, fadepth

TINY = {
    "data": {
        "train": [{"name": "synthetic", "length": 4}],
        "size": [32, 64],
        "batch_size": 2,
        "workers": 0,
        "cache": True,
    },
    "model": {"residual_drop": 0.0},
    "pose": {"network": "small"},
    "loss": {"levels": ["cr", "flip"]},
    "schedule": {"iterations": 2, "warmup": 1},
    "evaluation": {
        "data": {"name": "synthetic", "length": 2},
        "motion": {"name": "synthetic", "length": 2, "seed": 7},
    },
}


def run_process(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder, and the printed text."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    result = fadepth("fit", "--config", path, "--set", f"output={folder / 'out'}")
    assert result.returncode == 0, result.stderr
    return folder / "out", result.stdout


def test_a_finished_run_has_a_checkpoint_for_the_node(finished):
    engine = DepthEngine.load(finished[0] / "depth.safetensors", camera_size=(64, 64))
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    depth = engine.infer(FrameRequest(image, np.array([[50.0, 0, 32], [0, 50, 32], [0, 0, 1]]))).depth
    assert np.isfinite(depth).all()
    assert engine.backend_name == "openvino", engine.failures
    assert f"for the depth node: --ros-args -p checkpoint:={finished[0] / 'depth.safetensors'}" in finished[1]


def test_a_finished_run_has_figures_pictures_and_settings(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    assert metrics["iterations"] == 2
    assert len(metrics["images"]) == 2
    assert metrics["figures"]["abs_rel"] == pytest.approx(metrics["metrics"]["abs_rel"])
    assert metrics["figures"]["motion_rotation"] > 0
    assert f"{metrics['figures']['abs_rel']:.4f}" in finished[1]
    assert cv2.imread(str(finished[0] / "pictures.png")).std() > 10
    again = load_config(finished[0] / "config.yaml", [])
    assert again.loss.speed == 0.0, "null was replaced by the value used"


def test_a_finished_run_can_be_evaluated(finished, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("rgb", "depth"):
        (tmp_path / name).mkdir()
    entries = []
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"rgb/{i}.png"), rng.integers(0, 255, (96, 128, 3), np.uint8))
        cv2.imwrite(str(tmp_path / f"depth/{i}.png"), rng.integers(256, 5000, (96, 128)).astype(np.uint16))
        entries.append(
            {"id": f"p{i}", "rgb": f"rgb/{i}.png", "depth": f"depth/{i}.png", "fx": 90, "fy": 90, "cx": 64, "cy": 48,
             "group": f"g{i}"}
        )  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps(entries))
    arguments = ("--protocol", "folder", "--root", tmp_path, "--out", tmp_path / "out")
    result = fadepth("evaluate", finished[0] / "checkpoint.safetensors", *arguments)
    assert result.returncode == 0, result.stderr
    assert re.search(r"checkpoint +\d\.\d{3}", result.stdout), result.stdout
    assert "g0" in result.stdout
    deployed = fadepth("evaluate", finished[0] / "depth.safetensors", *arguments, "--flip", "--scaling", "none")
    assert deployed.returncode == 0, deployed.stderr
    assert "depth‡" in deployed.stdout
    assert "scaling: none" in deployed.stdout
    written = json.loads((tmp_path / "out" / "folder.json").read_text())
    assert written["protocol"]["scaling"] == "none"
    assert (tmp_path / "out" / "folder.png").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.train.0.name=imagenet"],
            "no data set 'imagenet'; there are kitti, ddad, video, pictures, synthetic, assets",
        ),
        (["data.train.0.rooot=x"], "data set 'synthetic'"),
        (["data.train.0.preset=moon"], "preset must be 'driving' or 'indoor', got 'moon'"),
        (["data.train.1.name=video"], "'1' is not the number of an item of a list of 1"),
        (["data.train=[{name: video, root: /nowhere}]"], "/nowhere"),
        (["data.train=[{name: kitti, root: /nowhere}]"], "/nowhere"),
        (["data.train=[]"], "data.train"),
        (["evaluation.protocol=kitti"], "no protocol 'kitti'; there are kitti_eigen"),
        (["model.start=/nowhere.safetensors"], "/nowhere.safetensors"),
    ],
)
def test_wrong_data_sets_protocols_and_checkpoints_are_named(config_file, tmp_path, overrides, message):
    with pytest.raises((ConfigError, DataError, CheckpointError), match=re.escape(message)):
        fit(load_config(config_file, [f"output={tmp_path / 'out'}", *overrides]))
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_errors_are_one_line_and_a_status(config_file):
    result = run_process("fit", "--config", config_file, "--set", "data.train=[{name: kitti, root: /nowhere}]")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    missing = fadepth("fit", "--config", "/nowhere.yaml")
    assert missing.returncode == 1
    assert missing.stderr == "error: /nowhere.yaml: no such file\n"


def test_two_processes_train_together_and_resume(config_file, tmp_path):
    """One of them validates, saves and prints; both load the state, and end together."""
    options = [
        "--set", f"output={tmp_path / 'out'}", "--set", "loss.levels=[cr]", "--set", "evaluation={}",
        "--set", "data.statistics_images=2", "--set", "model.etm=null",
    ]  # fmt: skip
    alone = fadepth("fit", "--config", config_file, *options, "--set", "schedule.iterations=1")
    assert alone.returncode == 0, alone.stderr
    options += ["--set", "devices=2", "--set", "validation.data={name: synthetic, length: 2, seed: 2}"]
    result = run_process("fit", "--config", config_file, *options, "--resume")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("for the depth node") == 1
    assert "exported the best network in validation: iteration 2" in result.stdout
    provenance = Checkpoint(tmp_path / "out" / "checkpoint.safetensors").description.provenance
    assert (provenance["batch"], provenance["iterations"]) == ("4", "2")


class ClipWithSpeed(torch.utils.data.Dataset):
    """A data set of one sample with or without speed."""

    def __init__(self, speed):
        self._speed = speed

    def __getitem__(self, index):
        return Sample(torch.zeros(3, 3, 8, 8), torch.eye(3), torch.tensor(0.1), "clip", self._speed)


@pytest.mark.parametrize(
    ("source", "speed", "overrides", "weight"),
    [
        ("video", torch.tensor(3.0), [], SPEED_WEIGHT),
        ("video", None, [], 0.0),
        ("synthetic", torch.tensor(3.0), [], 0.0),
        ("video", torch.tensor(3.0), ["pose.network=known"], 0.0),
        ("video", torch.tensor(3.0), ["loss.speed=0"], 0.0),
        ("synthetic", torch.tensor(3.0), ["loss.speed=0.3"], 0.3),
    ],
)
def test_the_speed_loss_is_on_by_default_for_video_with_speed(source, speed, overrides, weight):
    config = load_config(None, [f"data.train=[{{name: {source}}}]", "pose.network=small", *overrides])
    assert with_speed_weight(config, ClipWithSpeed(speed)).loss.speed == weight


def test_motion_errors_of_the_true_motion_are_zero():
    """Half the true motion has half the rotation of no motion, and scale 2."""
    dataset = build_dataset("synthetic", (64, 64), length=3)

    class Known(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor, self.index = torch.nn.Parameter(torch.tensor(factor)), 0

        def forward(self, pairs):
            poses = dataset[self.index].poses
            self.index += 1
            vectors = []
            for a, b in ((0, 1), (1, 2)):
                motion = torch.linalg.inv(poses[b]) @ poses[a]
                rotation = rotation_vector(motion[:3, :3])
                vectors.append(torch.cat([rotation, motion[:3, 3]]) * self.factor)
            return torch.stack(vectors)

    errors = motion_errors(Known(1.0), dataset, (64, 64), 3)
    assert errors.rotation < 0.01
    assert errors.direction < 0.1
    assert errors.scale == pytest.approx(1, abs=1e-3)
    half = motion_errors(Known(0.5), dataset, (64, 64), 3)
    assert half.scale == pytest.approx(2, abs=1e-2)
    assert half.rotation == pytest.approx(errors.rotation_of_none / 2, rel=0.05)
    assert half.direction < 3


def rotation_vector(rotation):
    """Axis-angle vector of a small rotation matrix."""
    skew = (rotation - rotation.T) / 2
    vector = torch.stack([skew[2, 1], skew[0, 2], skew[1, 0]])
    sine = vector.norm()
    return vector * (torch.asin(sine.clamp(max=1)) / sine.clamp(min=1e-12))


def test_a_mixture_with_little_depth_trains_and_one_without_is_rejected(tmp_path):
    """Some batches have no depth at all."""
    with_depth = {"name": "synthetic", "length": 2, "static": True, "share": 0.2}
    clip = tmp_path / "clip"
    clip.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        cv2.imwrite(str(clip / f"{i}.png"), np.roll(rng.integers(0, 255, (64, 64, 3), np.uint8), 3 * i, axis=1))
    (clip / "camera.json").write_text(json.dumps({"fx": 50, "fy": 50, "cx": 32, "cy": 32, "fps": 10, "speed": 1.0}))
    own = {"name": "video", "root": str(clip), "share": 0.8, "cache": str(tmp_path)}
    values = {**TINY, "output": str(tmp_path / "out"), "evaluation": {}, "loss": {"levels": ["cr"], "depth": 1.0}}
    values["data"] = {**TINY["data"], "train": [own, with_depth], "batch_size": 1}
    values["schedule"] = {"iterations": 8, "warmup": 1}
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(values))
    fit(load_config(path, []))
    values["data"]["train"] = [own, own]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"loss\.depth: none of the data sets has depth"):
        training_set(load_config(path, []))
