"""Adaptation: which frames teach and which judge, and stages that are computed once or continued."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fadepth_core.adaptation import teaching
from fadepth_core.adaptation.hold_back import GAP, assign_roles
from fadepth_core.adaptation.stages import run_stage
from fadepth_core.training.config import TrainConfig
from fadepth_core.training.run_folder import STATE, TrainingError

FPS = 10


def times(count):
    return np.arange(count) / FPS


@pytest.mark.parametrize(
    ("count", "truth", "judge_last"),
    [
        (1000, (), None),
        (1000, range(1, 11), None),
        (1000, range(0, 1000, 2), None),
        (370, (), 0.3),
        (200, (), None),
        (130, (), None),
    ],
)
def test_no_frame_that_teaches_is_near_one_that_is_held_back(count, truth, judge_last):
    roles = assign_roles(times(count), truth, judge_last)
    assert all(roles)
    assert len(roles.teach) > 0.4 * count
    for frames, others in ((roles.teach, roles.validate), (roles.teach, roles.judge), (roles.validate, roles.judge)):
        distances = np.abs(np.subtract.outer(frames, others)).min()
        assert distances >= GAP * FPS


def test_frames_with_withheld_depth_judge():
    assert assign_roles(times(1000), range(1, 11)).judge == list(range(1, 11))  # few: all of them
    assert {n % 2 for n in assign_roles(times(1000), range(0, 1000, 2)).judge} == {0}  # many: those in the blocks
    assert assign_roles(times(1000), range(3), judge_last=0.3).judge == list(range(700, 1000))


def test_a_stage_is_computed_again_only_if_its_settings_change(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"count": len(calls)}

    assert run_stage(tmp_path, "labels", {"nearest": 4.0, "size": (1, 2)}, compute).result == {"count": 1}
    assert run_stage(tmp_path, "labels", {"nearest": 4.0, "size": (1, 2)}, compute).result == {"count": 1}
    assert run_stage(tmp_path, "labels", {"nearest": 2.0, "size": (1, 2)}, compute).result == {"count": 2}
    (tmp_path / "labels.json").write_text("{damaged")
    assert run_stage(tmp_path, "labels", {"nearest": 2.0, "size": (1, 2)}, compute).result == {"count": 3}
    record = json.loads((tmp_path / "labels.json").read_text())
    assert record["result"] == {"count": 3}
    (tmp_path / "labels.json").write_text(json.dumps({**record, "format": 0}))  # of an older version
    assert run_stage(tmp_path, "labels", {"nearest": 2.0, "size": (1, 2)}, compute).result == {"count": 4}


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cu")])
def test_a_stage_is_computed_again_if_its_files_are_damaged(tmp_path, damage):
    folder, written = tmp_path / "labels", []

    def compute():
        folder.mkdir(exist_ok=True)
        for name in ("0.png", "1.png"):
            if not (folder / name).exists():  # as an interrupted stage is continued
                written.append(name)
                (folder / name).write_bytes(b"picture")
        return {}

    for _ in range(2):
        run_stage(tmp_path, "stage", {}, compute, [folder])
    damage(folder / "1.png")
    for _ in range(2):
        run_stage(tmp_path, "stage", {}, compute, [folder])
    assert written == ["0.png", "1.png", "1.png"]
    assert (folder / "1.png").read_bytes() == b"picture"


def test_a_damaged_run_says_what_to_remove(tmp_path, monkeypatch):
    (tmp_path / STATE).write_bytes(b"cut")

    def fit(_config, resume):
        assert resume
        raise TrainingError("state.pt: damaged")

    monkeypatch.setattr(teaching, "fit", fit)
    with pytest.raises(TrainingError, match=f"damaged; remove {tmp_path} to teach from the start again"):
        teaching.teach(TrainConfig(output=tmp_path))


def test_a_stage_that_fails_leaves_no_result(tmp_path):
    with pytest.raises(RuntimeError):
        run_stage(tmp_path, "labels", {}, lambda: (_ for _ in ()).throw(RuntimeError()))
    assert run_stage(tmp_path, "labels", {}, lambda: {"ok": True}).result == {"ok": True}
