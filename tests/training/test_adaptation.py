"""Adaptation: labelled pictures of a recording, and what happens when the network became better or worse."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fadepth_core import cli_adapt
from fadepth_core.adaptation import adapt as adapt_module
from fadepth_core.adaptation import prepare as prepare_module
from fadepth_core.adaptation import teaching
from fadepth_core.adaptation.adapt import adapt, predictor
from fadepth_core.adaptation.prepare import Prepared, PrepareOptions, prepare
from fadepth_core.cli import main
from fadepth_core.common.errors import DataError
from fadepth_core.data.folder import read_index
from fadepth_core.data.images import read_depth, write_depth
from fadepth_core.data.pictures import PictureDataset
from fadepth_core.models import add_confidence
from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.export import export_checkpoint
from fadepth_core.runtime.network import load_network
from fadepth_core.training.confidence import ConfidenceOptions
from street_canyon import render_view, write_frames

STEP = 0.1
MATRIX = np.array([[210.0, 0, 142], [0, 210, 73], [0, 0, 1]])


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (teaching, adapt_module):
        for name in ("TEACHING", "FORGOTTEN"):
            scenes = [replace(scene, count=2, size=(64, 96)) for scene in getattr(teaching, name)]
            monkeypatch.setattr(module, name, tuple(scenes))


@pytest.fixture
def recording(tmp_path):
    """A clip of 120 frames with measured depth in all of them but the first."""
    folder = tmp_path / "drive"
    write_frames(folder, count=120, step=STEP)
    (folder / "measured").mkdir()
    for number in range(1, 120):
        write_depth(folder / "measured" / f"{number:06d}.png", render_view(STEP * number)[1])
    values = json.loads((folder / "camera.json").read_text())
    (folder / "camera.json").write_text(json.dumps({**values, "depth": "measured"}))
    return folder


def network():
    return predictor(Checkpoint())


def test_measured_depth_teaches_and_judges(recording, tmp_path):
    prepared = prepare(recording, "drive", tmp_path / "work", PrepareOptions(), network())
    assert (prepared.labels, prepared.truth, prepared.measured, prepared.metric) == (
        *["measured depth"] * 2,
        True,
        True,
    )
    assert prepared.counts["frames"] == 120
    frames = {}
    for kind in ("teach", "validate", "judge"):
        entries = read_index(tmp_path / "work" / kind / "drive")
        assert len(entries) == prepared.counts[kind] > 0
        frames[kind] = {entry.name for entry in entries}
    assert not frames["teach"] & frames["judge"]
    assert not frames["teach"] & frames["validate"]
    sample = PictureDataset(tmp_path / "work/teach/drive", prepared.size)[0]
    truth = cv2.resize(render_view(STEP * int(sample.name))[1], prepared.size[::-1], interpolation=cv2.INTER_NEAREST)
    error = np.abs(sample.depth.numpy() - truth) / truth
    assert np.median(error) < 0.02

    def unexpected(*_arguments):
        raise AssertionError("prepared again")

    assert prepare(recording, "drive", tmp_path / "work", PrepareOptions(), unexpected) == prepared


def test_too_few_labelled_frames_are_an_error_that_says_how_many(recording, tmp_path):
    for path in sorted((recording / "measured").iterdir())[35:]:
        write_depth(path, np.zeros((64, 96)))
    with pytest.raises(DataError, match=r"drive: depth could be measured in \d+ frames, 20 are needed"):
        prepare(recording, "drive", tmp_path / "work", PrepareOptions(judge_last=0.5), network())


def _own_work(folder):
    (folder / "work" / "teach").mkdir(parents=True)
    (folder / "work" / "teach" / "notes.txt").write_text("mine")


def _own_page(folder):
    (folder / "work").mkdir()
    (folder / "work" / "report.html").write_text("mine")


@pytest.mark.parametrize(
    ("arguments", "prepare_folder", "message"),
    [
        (["drive", "--out", "robot.onnx"], None, "robot.onnx: a checkpoint's name ends in .safetensors"),
        (["drive", "--out", "r.safetensors"], lambda f: (f / "r.safetensors").mkdir(), "r.safetensors: a folder"),
        (
            ["drive", "--out", "r.safetensors", "--work", "work"],
            _own_work,
            "work/teach: exists, and fadepth did not write",
        ),
        (
            ["drive", "--out", "r.safetensors", "--work", "work"],
            _own_page,
            "work/report.html: exists, and fadepth did not",
        ),
        (["none.mcap", "--out", "r.safetensors"], None, "none.mcap: no such file or folder"),
        (
            ["short", "--out", "r.safetensors"],
            None,
            "short: too short: of 15 frames in 1.4 s, 0 may teach (20 are needed)",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_before_all_work(
    tmp_path, monkeypatch, capsys, arguments, prepare_folder, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drive").mkdir()
    write_frames(tmp_path / "short", count=15)
    if prepare_folder:
        prepare_folder(tmp_path)
    before = sorted(path.read_bytes() for path in tmp_path.glob("work/**/*.*") if path.is_file())
    assert main(["adapt", *arguments]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in error
    assert not (tmp_path / "r.safetensors").is_file()
    assert sorted(path.read_bytes() for path in tmp_path.glob("work/**/*.*") if path.is_file()) == before


def test_ctrl_c_is_one_line_and_the_same_command_continues(recording, tmp_path, monkeypatch, capsys):
    """The stage that was interrupted is continued; those before it are not repeated."""
    monkeypatch.chdir(tmp_path)
    command = ["adapt", "drive", "--out", "r.safetensors", "--frames", "24"]

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    for place in ("write_labels", "write_pictures"):
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, place, interrupt)
            assert main(command) == 1
        assert "error: interrupted; the same command continues\n" in capsys.readouterr().err
    monkeypatch.setattr(prepare_module, "write_labels", None)  # the labels are finished
    monkeypatch.setattr(cli_adapt, "adapt", interrupt)
    assert main(command) == 1
    assert len(read_index(tmp_path / "r_adaptation/teach/drive")) == 24


@pytest.mark.parametrize("better", [True, False])
def test_a_network_that_became_worse_is_not_written(better, tmp_path, monkeypatch):
    """The true depth is what the better one of two networks predicts."""
    start, taught = Checkpoint("smalldepth_nc"), Checkpoint("smalldepth")
    work = tmp_path / "work"
    prepared = labelled_by(taught if better else start, work)

    def teach(_config):
        return teaching.Taught(taught.path, 5, False, ((0.0, 0.3), (1.0, 0.2)))

    monkeypatch.setattr(adapt_module, "teach", teach)
    out = tmp_path / "robot.safetensors"
    result = adapt([prepared], work, start, out, minutes=1.0)
    assert result.better is better
    assert ("fell" in result.verdict and "did not" not in result.verdict) is better
    assert out.is_file() is better
    page = result.report.read_text(encoding="utf-8")
    assert f"ros2 param set /depth checkpoint {out if better else taught.path}" in page
    if better:
        written, expected = Checkpoint(out), read_depth(work / "judge/drive/0_depth.png")
        picture = cv2.imread(str(work / "judge/drive/0.png"))
        found = 1 / predictor(written)(picture, MATRIX)
        assert np.abs(found / expected - 1).mean() < 0.01


def labelled_by(right, work):
    """A prepared recording of one picture, of which the depth is that of the checkpoint `right`."""
    for kind in ("teach", "validate", "judge"):
        folder = work / kind / "drive"
        folder.mkdir(parents=True)
        picture = cv2.resize(cv2.cvtColor(render_view(0.0)[0], cv2.COLOR_GRAY2RGB), (288, 192))
        depth = 1 / predictor(right)(picture, MATRIX)
        cv2.imwrite(str(folder / "0.png"), picture)
        write_depth(folder / "0_depth.png", depth)
        entry = {"id": "0", "rgb": "0.png", "depth": "0_depth.png", "fx": 210, "fy": 210, "cx": 142, "cy": 73}
        (folder / "index.json").write_text(json.dumps([entry]))
    counts = {"frames": 3, "teach": 1, "validate": 1, "judge": 1}
    return Prepared(
        "drive", "drive.mcap", (192, 288), "stereo pairs", "measured depth", True, True, counts, (), {}, "", ()
    )


def test_an_adapted_network_has_a_confidence_head_if_the_one_before_has(tmp_path, monkeypatch):
    start, work, out = tmp_path / "start.safetensors", tmp_path / "work", tmp_path / "robot.safetensors"
    network, shipped = load_network(Checkpoint("smalldepth_nc")), Checkpoint("smalldepth_nc").description
    add_confidence(network)
    export_checkpoint(network, shipped, start)
    taught = Checkpoint("smalldepth")
    prepared = labelled_by(taught, work)
    monkeypatch.setattr(adapt_module, "teach", lambda _config: teaching.Taught(taught.path, 5, False, ()))
    monkeypatch.setattr(
        adapt_module, "ConfidenceOptions", lambda **options: ConfidenceOptions(2, batch_size=1, **options)
    )
    assert adapt([prepared], work, Checkpoint(start), out, minutes=1.0).better
    assert Checkpoint(out).description.has_confidence


def test_what_was_adapted_is_stated_in_the_checkpoint(tmp_path, recording):
    """The configuration can be used, and starts from exactly the given network."""
    config = teaching.teaching_config(
        Checkpoint(), {tmp_path: 1.0}, tmp_path, tmp_path, {tmp_path: (64, 96)}, 3.0, True, {"adapted": "drive"}
    )
    assert config.schedule.minutes == 3.0
    assert config.data.focal_length == Checkpoint().description.focal_length
    assert config.model.freeze_statistics == 0
    assert config.provenance == {"adapted": "drive"}
    assert sum(source.share for source in config.data.train) == pytest.approx(1.0)
