"""`training/run.py` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fadepth_core.data.synthetic import SyntheticDataset
from fadepth_core.evaluation.report import MAP_SIZE, TILE_WIDTH
from fadepth_core.evaluation.video import rgb
from fadepth_core.models import SmallDepth
from fadepth_core.runtime.checkpoint import Checkpoint, save_checkpoint
from fadepth_core.runtime.engine import DepthEngine

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "training" / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_models_lists_what_can_be_built():
    out = run("models").stdout
    assert "smalldepth " in out
    assert "smalldepth_k5" in out
    assert " M" in out


def test_init_is_reproducible_and_runs(tmp_path):
    for name in ("a", "b"):
        result = run("init", "smalldepth_k5", tmp_path / f"{name}.safetensors", "--seed", 3)
        assert result.returncode == 0, result.stderr
    a, b = (Checkpoint(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert a.weights_sha256 == b.weights_sha256
    assert not a.description.trained
    engine = DepthEngine.load(a)
    assert engine.backend_name == "openvino", engine.failures
    depth = engine.infer(np.random.default_rng(0).integers(0, 256, (128, 416, 3), dtype=np.uint8)).depth
    assert depth.shape == (128, 416)
    assert depth.std() > 0


def test_export_remakes_both_files(tmp_path):
    shipped = Checkpoint()
    copy = tmp_path / "robot.safetensors"
    copy.write_bytes(shipped.path.read_bytes())
    assert Checkpoint(copy).onnx_problem() is not None
    result = run("export", copy)
    assert result.returncode == 0, result.stderr
    assert Checkpoint(copy).onnx_problem() is None
    assert Checkpoint(copy).weights_sha256 == shipped.weights_sha256


def test_export_does_not_overwrite_a_training_run(tmp_path):
    shipped = Checkpoint()
    run_path = tmp_path / "run.safetensors"
    weights = {name: value.numpy() for name, value in SmallDepth().state_dict().items()}
    save_checkpoint(run_path, weights, replace(shipped.description, form="training", onnx_sha256=""))
    before = run_path.read_bytes()
    result = run("export", run_path)
    assert result.returncode == 1
    assert "a training checkpoint; name another file with --out" in result.stderr
    assert run("export", run_path, "--out", tmp_path / "robot.onnx").returncode == 1
    assert run("export", run_path, "--out", tmp_path / "robot.safetensors").returncode == 0
    assert run_path.read_bytes() == before
    assert Checkpoint(tmp_path / "robot.safetensors").onnx_problem() is None


def test_video_is_measured_beside_baselines(tmp_path):
    """Three rendered frames of a drive with their poses."""
    three = SyntheticDataset("driving", (64, 192), length=1, seed=3, moving=False)[0]
    clip = tmp_path / "clips" / "drive"
    clip.mkdir(parents=True)
    for number, frame in enumerate(three.frames):
        cv2.imwrite(str(clip / f"{number}.png"), rgb(frame)[..., ::-1])
    np.savetxt(clip / "poses.txt", three.poses[:, :3].reshape(3, 12))
    fx, _, cx, _, fy, cy = three.intrinsics[:2].flatten().tolist()
    camera = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "fps": 10, "poses": "poses.txt"}
    (clip / "camera.json").write_text(json.dumps(camera))
    result = run(
        "evaluate", Checkpoint().path, "--protocol", "video", "--root", tmp_path / "clips", "--size", 64, 192,
        "--baselines", "--camera-height", 1.5, "--untrained", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "out" / "video.json").read_text())
    assert list(figures) == ["constant depth", "ground plane, camera 1.5 m above", "untrained", "smalldepth"]
    for name, values in figures.items():
        assert name in result.stdout
        assert 0 < values["figures"]["photometric"] < 1
        assert list(values["clips"]) == ["drive"]
    assert cv2.imread(str(tmp_path / "out" / "video.png")).shape[1] == 2 * TILE_WIDTH + MAP_SIZE[1]


@pytest.mark.parametrize("command", [("export", "/no/such/net.safetensors")])
def test_errors_are_one_line(command):
    result = run(*command)
    assert result.returncode == 1
    assert result.stderr.strip() == "error: /no/such/net.safetensors: no such file"
