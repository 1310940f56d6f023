"""The command `fadepth` as a user calls it; fit, distill and ablate have tests of their own."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stdout
from dataclasses import replace

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fadepth_core import cli
from fadepth_core.common.color import to_picture
from fadepth_core.data.images import write_depth
from fadepth_core.evaluation.report import TILE_WIDTH
from fadepth_core.evaluation.tiles import MAP_SIZE
from fadepth_core.models import MODELS, SmallDepth
from fadepth_core.models.posenet import build_pose_net
from fadepth_core.runtime.checkpoint import Checkpoint, save_checkpoint
from fadepth_core.runtime.engine import DepthEngine, FrameRequest
from fadepth_core.synthetic.dataset import SyntheticDataset
from fadepth_core.training.pose_checkpoint import save_pose_net
from short_runs import ROOT, fadepth
from street_canyon import GAP, write_frames
from street_canyon import SIZE as CLIP_SIZE


def test_models_lists_all_networks_and_the_papers_figures():
    result = fadepth("models")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    names = [line.split()[0] for line in lines[2:]]
    assert set(MODELS) <= set(names)
    found = lines[2 + names.index("mobilenetv3")].split()
    paper = lines[3 + names.index("mobilenetv3")].split()
    assert paper == ["paper", "15", "2.82", "/", "1.87", "0.23", "/", "1.09", "105.477", "/", "50.708"]
    assert found[1:11] == paper[1:], "the paper's figures are reproduced"


def test_output_to_a_closed_pipe_ends_quietly(monkeypatch, capsys):
    """As in `fadepth models | head -1`."""

    def build_nothing(name):
        raise ImportError("to save time")

    monkeypatch.setattr(cli, "build_model", build_nothing)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed, redirect_stdout(closed):
        assert cli.main(["models"]) == 141, "128 + SIGPIPE"
    assert capsys.readouterr().err == ""


def test_a_wrong_number_is_rejected_with_its_range(capsys):
    with pytest.raises(SystemExit):
        cli.main(["pack", "synthetic", "--out", "x", "--quality", "0"])
    assert "--quality: expected a whole number from 1 to 100, got 0" in capsys.readouterr().err


def test_init_is_reproducible_and_runs(tmp_path):
    for name in ("a", "b"):
        result = fadepth("init", "smalldepth_k5", tmp_path / f"{name}.safetensors", "--seed", 3)
        assert result.returncode == 0, result.stderr
    a, b = (Checkpoint(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert a.weights_sha256 == b.weights_sha256
    assert not a.description.trained
    engine = DepthEngine.load(a)
    assert engine.backend_name == "openvino", engine.failures
    depth = engine.infer(FrameRequest(np.random.default_rng(0).integers(0, 256, (128, 416, 3), np.uint8))).depth
    assert depth.shape == (128, 416)
    assert depth.std() > 0


def test_pictures_are_packed_labelled_and_trained_on(tmp_path):
    """`pack` writes pictures, `label` the depth that a network predicts for them, and `fit` trains with it."""
    result = fadepth(
        "pack", "synthetic", "--option", "preset=indoor", "--option", "static=true", "--count", 3, "--size", 64, 96, "--out",
        tmp_path / "pictures",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "wrote 3 pictures" in result.stdout
    result = fadepth("label", tmp_path / "pictures" / "rgb", "--teacher", "smalldepth", "--out", tmp_path / "labels")
    assert result.returncode == 0, result.stderr
    root = json.dumps(str(tmp_path / "labels"))
    result = fadepth(
        "fit", "--config", ROOT / "config" / "training" / "shipped" / "student.yaml", "--set", f"output={tmp_path / 'run'}",
        "--set", f"data.train=[{{name: pictures, root: {root}, sharp: false}}]", "--set", "data.size=[64, 96]",
        "--set", "data.batch_size=2", "--set", "schedule.iterations=2", "--set", "validation.data=null",
        "--set", "data.statistics_images=4",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert Checkpoint(tmp_path / "run" / "depth.safetensors").onnx_problem() is None
    assert fadepth("pack", "synthetic", "--option", "preset", "--out", tmp_path / "x").stderr.startswith(
        "error: --option preset: expected key=value"
    )


def test_export_replaces_checkpoint_and_graph(tmp_path):
    shipped = Checkpoint()
    copy = tmp_path / "robot.safetensors"
    copy.write_bytes(shipped.path.read_bytes())
    assert Checkpoint(copy).onnx_problem() is not None
    result = fadepth("export", copy)
    assert result.returncode == 0, result.stderr
    assert Checkpoint(copy).onnx_problem() is None
    assert Checkpoint(copy).weights_sha256 == shipped.weights_sha256


def test_export_does_not_overwrite_a_training_checkpoint(tmp_path):
    shipped = Checkpoint()
    run_path = tmp_path / "run.safetensors"
    weights = {name: value.numpy() for name, value in SmallDepth().state_dict().items()}
    save_checkpoint(run_path, weights, replace(shipped.description, form="training", options={}, onnx_sha256=""))
    before = run_path.read_bytes()
    result = fadepth("export", run_path)
    assert result.returncode == 1
    assert "a training checkpoint; name another file with --out" in result.stderr
    assert fadepth("export", run_path, "--out", tmp_path / "robot.onnx").returncode == 1
    assert fadepth("export", run_path, "--out", tmp_path / "robot.safetensors").returncode == 0
    assert run_path.read_bytes() == before
    assert Checkpoint(tmp_path / "robot.safetensors").onnx_problem() is None


def test_a_network_and_baselines_are_measured_on_video(tmp_path):
    """On three rendered frames of a drive with their poses."""
    drive = SyntheticDataset("driving", (64, 192), length=1, seed=3, moving=False)[0]
    clip = tmp_path / "clips" / "drive"
    clip.mkdir(parents=True)
    for number, frame in enumerate(drive.frames):
        cv2.imwrite(str(clip / f"{number}.png"), to_picture(frame)[..., ::-1])
    np.savetxt(clip / "poses.txt", drive.poses[:, :3].reshape(3, 12))
    (clip / "depth").mkdir()
    write_depth(clip / "depth" / "000001.png", drive.depth.numpy())
    fx, _, cx, _, fy, cy = drive.intrinsics[:2].flatten().tolist()
    camera = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "fps": 10, "poses": "poses.txt", "depth": "depth"}
    (clip / "camera.json").write_text(json.dumps(camera))
    result = fadepth(
        "evaluate", Checkpoint().path, "--protocol", "video", "--root", tmp_path / "clips", "--size", 64, 192,
        "--baselines", "--camera-height", 1.5, "--untrained", "--temporal", "off", "full", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "out" / "video.json").read_text())
    baselines = ["constant depth", "ground plane, camera 1.5 m above", "untrained"]
    assert list(figures) == [*baselines, "smalldepth", "smalldepth, temporal full"]
    for name, values in figures.items():
        assert name in result.stdout
        assert 0 < values["figures"]["photometric"] < 1
        assert 0 < values["figures"]["abs_rel"] < 1
        assert list(values["clips"]) == ["drive"]
    assert cv2.imread(str(tmp_path / "out" / "video.png")).shape[1] == 2 * TILE_WIDTH + MAP_SIZE[1]


def test_too_few_frames_for_int8_change_nothing(tmp_path):
    pytest.importorskip("nncf", reason="int8 graphs are made by NNCF: pip install 'fadepth_ros[quantize]'")
    copy = tmp_path / "robot.safetensors"
    copy.write_bytes(Checkpoint().path.read_bytes())
    (tmp_path / "frames").mkdir()
    cv2.imwrite(str(tmp_path / "frames" / "0.png"), np.zeros((96, 128, 3), np.uint8))
    result = fadepth("export", copy, "--int8", tmp_path / "frames")
    assert result.returncode == 1
    assert "frames: 1 frames; an int8 graph needs at least 24" in result.stderr
    assert copy.read_bytes() == Checkpoint().path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "robot.safetensors"]


def test_stereo_measures_depth_that_fit_trains_with(tmp_path):
    write_frames(tmp_path / "clip")
    size = [str(side) for side in CLIP_SIZE]
    result = fadepth(
        "stereo", tmp_path / "clip", "--out", tmp_path / "clip" / "depth", "--size", *size, "--nearest", GAP
    )
    assert result.returncode == 0, result.stderr
    assert f'14 pictures are in {tmp_path / "clip" / "depth"}; to use them, set "depth" in' in result.stdout
    camera = json.loads((tmp_path / "clip" / "camera.json").read_text())
    (tmp_path / "clip" / "camera.json").write_text(json.dumps(camera | {"depth": "depth"}))
    result = fadepth(
        *("fit", "--config", ROOT / "config" / "training" / "stereo.yaml"),
        *(
            "--set",
            f"data.train=[{{name: video, root: {tmp_path / 'clip'}}}]",
            "--set",
            f"data.size=[{', '.join(size)}]",
        ),
        *("--set", "data.workers=0", "--set", "data.batch_size=2", "--set", f"output={tmp_path / 'run'}"),
        *("--set", "schedule.iterations=2", "--set", "log.every=1", "--set", f"model.start={Checkpoint().path}"),
    )
    assert result.returncode == 0, result.stderr
    log = EventAccumulator(str(tmp_path / "run")).Reload()
    assert all(point.value > 0 for point in log.Scalars("cr/depth"))


def test_odometry_writes_a_trajectory_and_its_errors(tmp_path):
    write_frames(tmp_path / "clip", count=7)
    pose = tmp_path / "pose.safetensors"
    save_pose_net(pose, build_pose_net("small"), "small", CLIP_SIZE, None)
    result = fadepth("odometry", tmp_path / "clip", "--pose", pose, "--out", tmp_path / "out.txt", "--stride", 2)
    assert result.returncode == 0, result.stderr
    assert "wrote 4 poses" in result.stdout
    assert np.loadtxt(tmp_path / "out.txt").shape == (4, 12)
    errors = json.loads((tmp_path / "out.errors.json").read_text())
    assert errors["stride"] == 2
    assert errors["scale"] > 0
    assert f"{errors['rotation']:.4f} deg" in result.stdout

    camera = json.loads((tmp_path / "clip" / "camera.json").read_text())
    del camera["poses"]
    (tmp_path / "clip" / "camera.json").unlink()
    (tmp_path / "lens.json").write_text(json.dumps(camera))
    command = ("odometry", tmp_path / "clip", "--pose", pose, "--out", tmp_path / "tum.txt", "--format", "tum")
    assert "clip: no camera.json beside it" in fadepth(*command).stderr
    result = fadepth(*command, "--camera", tmp_path / "lens.json")
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.loadtxt(tmp_path / "tum.txt")[:, 0], np.arange(7) / 10)
    assert not (tmp_path / "tum.errors.json").exists()


def test_predict_writes_depth_and_coloured_depth_of_every_frame(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    (tmp_path / "hall").mkdir()
    cv2.imwrite(str(tmp_path / "hall" / "2.png"), image)
    cv2.imwrite(str(tmp_path / "hall" / "10.jpg"), image[:64])
    camera = tmp_path / "lens.json"
    camera.write_text('{"fx": 100.0, "fy": 100.0, "cx": 64.0, "cy": 48.0}')
    result = fadepth("predict", tmp_path / "hall", "--out", tmp_path / "png", "--camera", camera)
    assert result.returncode == 0, result.stderr
    result = fadepth(
        "predict", tmp_path / "hall", "--out", tmp_path / "npy", "--format", "npy", "--intrinsics", 200, 200, 64, 48
    )
    assert result.returncode == 0, result.stderr
    for name, height in (("2", 96), ("10", 64)):
        metres = np.load(tmp_path / "npy" / "depth" / f"{name}.npy")
        millimetres = cv2.imread(str(tmp_path / "png" / "depth" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert (metres.shape, metres.dtype, millimetres.dtype) == ((height, 128), np.float32, np.uint16)
        known = millimetres > 0
        assert known.any()
        # Twice the focal length gives twice the depth, for a checkpoint with a canonical focal length.
        factor = 2.0 if Checkpoint().description.focal_length else 1.0
        np.testing.assert_allclose(1000 * metres[known], factor * millimetres[known], rtol=1e-3, atol=1.5)
        assert cv2.imread(str(tmp_path / "png" / "color" / f"{name}.png")).shape == (height, 128, 3)


def test_predict_writes_a_video_for_a_video(tmp_path, caplog):
    writer = cv2.VideoWriter(str(tmp_path / "drive.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 96))
    for level in range(5):
        writer.write(np.full((96, 128, 3), 40 * level, np.uint8))
    writer.release()
    result = fadepth("predict", tmp_path / "drive.mp4", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "no intrinsics" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out" / "depth").iterdir()) == [f"{n:06d}.png" for n in range(5)]
    colored = cv2.VideoCapture(str(tmp_path / "out" / "color.mp4"))
    assert colored.get(cv2.CAP_PROP_FPS) == 10
    assert [colored.grab() for _ in range(6)] == [True] * 5 + [False]


def test_evaluate_measures_in_the_requested_precision_or_not_at_all(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(Checkpoint().path.read_bytes())
    write_test_folder(tmp_path / "test")
    arguments = ["evaluate", path, "--protocol", "folder", "--root", tmp_path / "test", "--out", tmp_path / "out"]
    assert "net in openvino fp32" in fadepth(*arguments, "--backend", "openvino", "--precision", "fp32").stdout
    result = fadepth(*arguments, "--backend", "torch", "--precision", "bf16")
    assert result.returncode == 1
    assert "requested torch bf16, got" in result.stderr


def write_test_folder(folder):
    """A test set of one picture with its depth."""
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "d.png"), np.full((64, 96), 5 * 256, np.uint16))
    entry = {"id": "a", "rgb": "a.png", "depth": "d.png", "fx": 80.0, "fy": 80.0, "cx": 48.0, "cy": 32.0}
    (folder / "index.json").write_text(json.dumps([entry]))


def test_errors_are_one_line():
    result = fadepth("export", "/no/such/net.safetensors")
    assert result.returncode == 1
    assert result.stderr.strip() == "error: /no/such/net.safetensors: no such file"


def test_a_damaged_video_ends_predict_with_an_error_after_its_depth_is_written(tmp_path):
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (128, 96))
    for level in range(12):
        writer.write(np.random.default_rng(level).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    result = fadepth("predict", path, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "of the 12 frames that the file states can be decoded" in result.stderr
    assert 1 <= len(list((tmp_path / "out" / "depth").iterdir())) < 6


def test_predict_does_not_replace_its_source(tmp_path):
    folder = tmp_path / "scene" / "color"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "0.png"), np.zeros((96, 128, 3), np.uint8))
    before = (folder / "0.png").read_bytes()
    for source in (folder, folder / "0.png"):
        result = fadepth("predict", source, "--out", tmp_path / "scene")
        assert result.returncode == 1
        assert "the results would replace" in result.stderr
    assert (folder / "0.png").read_bytes() == before


@pytest.mark.parametrize(
    "intrinsics",
    [(0, 200, 64, 48), ("nan", 200, 64, 48), (0.6, 0.8, 0.5, 0.5), (3.6, 3.6, 64, 48), (200, 200, 6400, 48)],
)
def test_intrinsics_of_no_camera_are_refused_on_the_command_line(tmp_path, intrinsics):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((96, 128, 3), np.uint8))
    result = fadepth("predict", tmp_path / "0.png", "--out", tmp_path / "out", "--intrinsics", *intrinsics)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: intrinsics: ")


def test_an_evaluation_is_kept_whatever_happens_to_its_output(tmp_path, monkeypatch):
    """Standard output that has no Unicode, or that is closed; a sheet that cannot be written."""
    write_test_folder(tmp_path / "test")
    out = tmp_path / "out"
    (out / "folder.png").mkdir(parents=True)
    arguments = ["evaluate", str(Checkpoint().path), "--protocol", "folder", "--root", str(tmp_path / "test"), "--flip"]
    for open_output in (lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"), lambda: None):
        output = open_output()
        monkeypatch.setattr("sys.stdout", output)
        assert cli.main([*arguments, "--out", str(out)]) == 0
        monkeypatch.undo()
        assert json.loads((out / "folder.json").read_text())["metrics"]["abs_rel"] > 0
        (out / "folder.json").unlink()
        if output is not None:
            output.flush()
            assert b"smalldepth\\u2021" in output.buffer.getvalue()


def test_export_and_init_make_the_folder(tmp_path):
    out = tmp_path / "new" / "folder" / "robot.safetensors"
    result = fadepth("export", "smalldepth", "--out", out)
    assert result.returncode == 0, result.stderr
    assert Checkpoint(out).onnx_problem() is None


def test_the_cache_is_shown_and_cleared(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "     0 decoded videos" in fadepth("cache").stdout
    folder = tmp_path / "fadepth"
    for name in ("clips/drive-0123456789abcdef.npy", "clips/drive-0123456789abcdef.flow1.npy", "engines/1.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(2**20))
    shown = fadepth("cache").stdout
    assert "     1 decoded videos           2.0 MiB, at most 20480 MiB (FADEPTH_CACHE_GIB)" in shown
    assert "     1 engines and graphs       1.0 MiB" in shown
    assert "removed all of them" in fadepth("cache", "--clear").stdout
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_paths_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result = fadepth("export", "~/none.safetensors")
    assert result.stderr.strip() == f"error: {tmp_path}/none.safetensors: no such file"


@pytest.mark.parametrize(
    "arguments",
    [
        ("shrink", "x", "--out", "y", "--mebibytes", "nan"),
        ("stereo", "x", "--out", "y", "--nearest", "inf"),
        ("label", "x", "--teacher", "y", "--out", "z", "--aspect", "0"),
        ("init", "smalldepth", "x.safetensors", "--seed", "9" * 30),
    ],
)
def test_numbers_that_no_command_can_use_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        cli.main([*arguments])
    assert f"got {arguments[-1]}" in capsys.readouterr().err
