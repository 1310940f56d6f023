"""`fadepth adapt` as a whole, from a bag to a checkpoint and a page."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fadepth_core.adaptation import adapt as adapt_module
from fadepth_core.adaptation import teaching
from fadepth_core.cli import main
from fadepth_core.runtime.checkpoint import Checkpoint
from street_canyon import write_frames

pytest.importorskip("rosbags")


@pytest.mark.slow
def test_a_bag_with_odometry_teaches_the_network_beside_one_that_cannot_be_used(tmp_path, monkeypatch, capsys):
    """A street between two walls, 12 s of it. Stereo measures it well, and the shipped network has never seen such walls."""
    from bags import write_bag

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (teaching, adapt_module):
        for name in ("TEACHING", "FORGOTTEN"):
            scenes = [replace(scene, count=4) for scene in getattr(teaching, name)]
            monkeypatch.setattr(module, name, tuple(scenes))
    clip, out = tmp_path / "clip", tmp_path / "robot.safetensors"
    write_frames(clip, count=120, step=0.15)
    write_bag(clip, tmp_path / "drive.mcap", clip / "camera.json", motion="tf")
    (tmp_path / "cut.mcap").write_bytes((tmp_path / "drive.mcap").read_bytes()[:100])
    recordings = [str(tmp_path / name) for name in ("drive.mcap", "cut.mcap")]
    assert main(["adapt", *recordings, "--out", str(out), "--minutes", "0.5", "--frames", "30", "--nearest", "3"]) == 0
    output = capsys.readouterr().out
    assert "1 of 2 recordings can be used" in output
    assert "failed  cut" in output
    assert "120 frames" in output
    assert "The odometry fits the images" in output
    work = tmp_path / "robot_adaptation"
    result = json.loads((work / "adaptation.json").read_text())
    before, after = result["figures"]["held back"]["in metres"]
    assert after < 0.8 * before
    description = Checkpoint(out).description
    assert description.form == "deploy"
    assert description.provenance["adapted"].endswith("frames of drive.mcap")
    assert description.provenance["labels"] == "multi-view stereo"
    assert "data:image" in (work / "report.html").read_text(encoding="utf-8")
    assert np.load(work / "recordings/drive/poses.npy").shape == (120, 4, 4)
