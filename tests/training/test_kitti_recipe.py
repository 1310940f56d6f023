"""The paper's recipe from a KITTI tree to figures, on two rendered drives in KITTI's layout."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fadepth_core.data.kitti import KittiDataset, KittiTest
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.training.pose_checkpoint import load_pose_net
from kitti_tree import SIZE, TEST, TRAIN, write_kitti

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, str(ROOT / "training" / "run.py")]


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe") / "kitti"
    write_kitti(root)
    return root


def test_the_tree_is_read_as_kitti(kitti):
    """Metric depth, moving frames and speed: what a run on it learns from is what a run on KITTI learns from."""
    sample = KittiDataset(kitti, size=(64, 96), entries=kitti / "train.txt")[1]
    assert sample.name == f"{TRAIN.split('/')[1]}/image_02/2"
    assert sample.speed > 1
    assert (sample.frames[0] - sample.frames[1]).abs().mean() > 0.005
    image = KittiTest(kitti, split="val", entries=kitti / "test.txt")[0]
    assert image.name == f"{TEST.split('/')[1]}/1"
    assert image.depth.shape == SIZE
    below = image.depth[2 * SIZE[0] // 3 :]
    assert (below > 0).mean() > 0.1
    assert 2 < np.median(below[below > 0]) < 30


def test_fit_is_interrupted_and_resumed_and_evaluated(kitti, tmp_path):
    output = tmp_path / "run"
    command = [*RUN, "fit", "--config", str(ROOT / "config" / "training" / "kitti.yaml")]
    for override in (
        f"output={output}", "data.size=[64, 96]", "data.batch_size=2", "data.workers=0", "data.statistics_images=4",
        "pose.network=small", "schedule.warmup=1", "log.every=1", "log.save_every=1", "log.evaluate_every=1",
        f"data.train.0.root={kitti}", f"data.train.0.entries={kitti / 'train.txt'}",
        f"validation.data.root={kitti}", f"validation.data.entries={kitti / 'test.txt'}", "validation.frames=2",
        f"evaluation.data.root={kitti}", f"evaluation.data.entries={kitti / 'test.txt'}",
    ):  # fmt: skip
        command += ["--set", override]

    interrupted = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(1800):  # in case it hangs
            if (output / "state.pt").is_file() or interrupted.poll() is not None:
                break
            time.sleep(0.1)
        interrupted.send_signal(signal.SIGINT)
        _, errors = interrupted.communicate(timeout=120)
    finally:
        interrupted.kill()
    assert interrupted.returncode == 1, errors
    assert f"interrupted; the state is in {output}, go on with --resume" in errors
    done = torch.load(output / "state.pt", weights_only=True)["iteration"]

    resumed = _run([*command, "--resume", "--set", f"schedule.iterations={done + 2}"])
    assert "abs_rel" in resumed
    log = EventAccumulator(str(output)).Reload()
    assert [point.step for point in log.Scalars("loss/total")] == list(range(1, done + 3))
    assert [point.step for point in log.Scalars("validation/abs_rel")] == list(range(done + 3))
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["protocol"]["name"] == "kitti_eigen"
    assert [image["name"] for image in metrics["images"]] == [f"{TEST.split('/')[1]}/{n}" for n in (1, 2, 3)]
    measured = {point.step: point.value for point in log.Scalars("validation/abs_rel")[1:]}
    best = Checkpoint(output / "best.safetensors").description
    assert int(best.provenance["iterations"]) == min(measured, key=measured.get)
    assert Checkpoint(output / "checkpoint.safetensors").description.provenance["iterations"] == str(done + 2)
    pose_net, size, _ = load_pose_net(output / "pose.safetensors")
    assert (type(pose_net).__name__, size) == ("SmallPoseNet", (64, 96))

    table = _run([
        *RUN, "evaluate", str(output / "depth.safetensors"), "--protocol", "kitti_eigen", "--root", str(kitti),
        "--entries", str(kitti / "test.txt"), "--out", str(tmp_path / "measured"),
    ])  # fmt: skip
    assert "kitti_eigen: 3 images, garg crop, up to 80 m" in table
    assert "SmallDepth" not in table, "published figures are of the published list"
    figures = json.loads((tmp_path / "measured" / "kitti_eigen.json").read_text())["metrics"]
    assert figures["abs_rel"] == pytest.approx(metrics["metrics"]["abs_rel"], rel=0.01)


def _run(command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout
