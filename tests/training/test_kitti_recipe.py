"""The paper's recipe, from KITTI's files to figures, on two rendered drives in KITTI's layout."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fadepth_core.data.kitti import KittiDataset, KittiTest
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.training.pose_checkpoint import load_pose_net
from kitti_tree import SIZE, TEST, TRAIN, write_kitti
from short_runs import COMMAND, ROOT, fadepth


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe") / "kitti"
    write_kitti(root)
    return root


def test_the_rendered_files_are_read_as_kitti(kitti):
    """Frames that move, speed, and metric depth."""
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
    command = ["fit", "--config", str(ROOT / "config" / "training" / "kitti.yaml")]
    for override in (
        f"output={output}", "data.size=[32, 64]", "data.batch_size=2", "data.workers=0", "data.statistics_images=4",
        "pose.network=small", "schedule.warmup=1", "log.every=1", "log.save_every=1", "log.evaluate_every=1",
        f"data.train.0.root={kitti}", f"data.train.0.entries={kitti / 'train.txt'}",
        f"validation.data.root={kitti}", f"validation.data.entries={kitti / 'test.txt'}", "validation.frames=1",
        f"evaluation.data.root={kitti}", f"evaluation.data.entries={kitti / 'test.txt'}",
    ):  # fmt: skip
        command += ["--set", override]

    with open(tmp_path / "errors.txt", "w+") as errors:  # a file, because a full pipe would block the process
        interrupted = subprocess.Popen([*COMMAND, *command], stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while not (output / "state.pt").is_file() and interrupted.poll() is None:
                time.sleep(0.1)
            interrupted.send_signal(signal.SIGINT)
            interrupted.wait()
        finally:
            interrupted.kill()
        errors.seek(0)
        message = errors.read()
    assert interrupted.returncode == 1, message
    assert f"interrupted; the state is in {output}, continue with --resume" in message
    done = torch.load(output / "state.pt", weights_only=True)["iteration"]

    resumed = fadepth(*command, "--resume", "--set", f"schedule.iterations={done + 1}")
    assert resumed.returncode == 0, resumed.stderr
    assert "abs_rel" in resumed.stdout
    log = EventAccumulator(str(output)).Reload()
    assert [point.step for point in log.Scalars("loss/total")] == list(range(1, done + 2))
    assert [point.step for point in log.Scalars("validation/abs_rel")] == list(range(done + 2))
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["protocol"]["name"] == "kitti_eigen"
    assert [image["name"] for image in metrics["images"]] == [f"{TEST.split('/')[1]}/{n}" for n in (1, 2, 3)]
    measured = {point.step: point.value for point in log.Scalars("validation/abs_rel")[1:]}
    best = Checkpoint(output / "best.safetensors").description
    assert int(best.provenance["iterations"]) == min(measured, key=measured.get)
    assert Checkpoint(output / "checkpoint.safetensors").description.provenance["iterations"] == str(done + 1)
    pose_net, size, _ = load_pose_net(output / "pose.safetensors")
    assert (type(pose_net).__name__, size) == ("SmallPoseNet", (32, 64))

    table = fadepth(
        "evaluate", output / "depth.safetensors", "--protocol", "kitti_eigen", "--root", kitti,
        "--entries", kitti / "test.txt", "--out", tmp_path / "measured",
    )  # fmt: skip
    assert table.returncode == 0, table.stderr
    assert "kitti_eigen: 3 images, garg crop, up to 80 m" in table.stdout
    assert "SmallDepth" not in table.stdout, "published figures are for the published list only"
    figures = json.loads((tmp_path / "measured" / "kitti_eigen.json").read_text())["metrics"]
    assert figures["abs_rel"] == pytest.approx(metrics["metrics"]["abs_rel"], rel=0.01)
