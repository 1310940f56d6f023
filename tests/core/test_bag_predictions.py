"""`fadepth predict` from a recording to a recording, read back with rosbags."""

from __future__ import annotations

import functools
import json
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")

from rosbags.highlevel import AnyReader
from rosbags.typesys import get_types_from_msg

from bags import OPTICAL, SECOND, START, STORES, BagWriter
from fadepth_core.cli import main
from fadepth_core.data.bag import Topic
from fadepth_core.data.bag_writer import RecordingWriter
from fadepth_core.evaluation import bag_predictions
from fadepth_core.messages.images import read_image
from fadepth_core.runtime.engine import DepthEngine, EngineError, FrameRequest

SIZE = (96, 128)
K = np.array([[100.0, 0, 63.5], [0, 100.0, 47.5], [0, 0, 1]])
FRAMES = [np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8) for seed in range(3)]
DEPTH, INFO, POINTS = "/depth/image", "/depth/camera_info", "/depth/points"
IMAGE = "/camera/image_rect"


_load = functools.cache(DepthEngine.load)


@pytest.fixture
def one_engine(monkeypatch):
    """Starting a backend takes a second."""
    loaded = SimpleNamespace(load=lambda checkpoint, **options: _load(**options))
    monkeypatch.setattr(bag_predictions, "DepthEngine", loaded)


def stamps():
    return [START + number * SECOND // 10 + 7 for number in range(len(FRAMES))]


def record(path, info=True, others=False, frames=FRAMES, camera="/camera", **options):
    """A recording whose messages are recorded 3 ms after their stamps."""
    with BagWriter(path, **options) as bag:
        for stamp, pixels in zip(stamps(), frames, strict=True):
            bag.image(f"{camera}/image_rect", stamp, pixels, frame="optical", time=stamp + 3_000_000)
            if info:
                bag.camera_info(f"{camera}/camera_info", stamp, K, SIZE, frame="optical")
            if others:
                bag.odometry("/odom", stamp, np.eye(4))
        if others:
            bag.static_transform(OPTICAL, "base_link", "optical")
    return path


def read_bag(path):
    """(log time, message, CDR) of each message, by topic."""
    found = {}
    with AnyReader([path]) as reader:
        for connection, time, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            found.setdefault(connection.topic, []).append((time, message, raw))
    return found


def stamp_of(message):
    return message.header.stamp.sec * SECOND + message.header.stamp.nanosec


@pytest.mark.parametrize(
    ("source", "target", "options"),
    [
        ("drive.mcap", "out.mcap", []),
        ("drive.db3", "out.db3", []),
        ("drive", "out", ["--storage", "sqlite3"]),
        ("drive.bag", "out", []),
    ],
)
def test_each_frame_gets_depth_camera_info_and_points_with_its_stamps(one_engine, tmp_path, source, target, options):
    bag, out = record(tmp_path / source), tmp_path / target
    assert main(["predict", str(bag), "--out", str(out), *options]) == 0
    assert out.is_dir() == (not out.suffix)
    found = read_bag(out)
    assert set(found) == {DEPTH, INFO, POINTS}
    for messages in found.values():
        assert [stamp_of(message) for _, message, _ in messages] == stamps()
        assert [time - stamp_of(message) for time, message, _ in messages] == [3_000_000] * 3
        assert {message.header.frame_id for _, message, _ in messages} == {"optical"}
    engine = _load(camera_size=SIZE, backend="auto", precision="auto", full_resolution=False)
    for pixels, (_, depth, _), (_, info, _), (_, cloud, _) in zip(
        FRAMES, found[DEPTH], found[INFO], found[POINTS], strict=True
    ):
        result = engine.infer(FrameRequest(pixels, K))
        size = result.depth.shape
        assert (depth.encoding, depth.height, depth.width) == ("32FC1", *size)
        np.testing.assert_allclose(depth.data.view(np.float32).reshape(size), result.depth, rtol=1e-3)
        assert (info.height, info.width) == size
        np.testing.assert_allclose(info.k.reshape(3, 3), engine.framing.output_intrinsics(K))
        np.testing.assert_allclose(info.p.reshape(3, 4)[:, :3], info.k.reshape(3, 3))
        assert (cloud.height, cloud.width, cloud.point_step) == (*size, 16)
        xyz = cloud.data.view(np.float32).reshape(*size, 4)[..., :3]
        np.testing.assert_allclose(xyz, result.points, rtol=1e-3, atol=1e-4)


def test_without_camera_info_there_is_depth_only_and_a_note(tmp_path, capsys):
    out = tmp_path / "out.mcap"
    assert main(["predict", str(record(tmp_path / "drive.mcap", info=False)), "--out", str(out)]) == 0
    found = read_bag(out)
    assert {topic: len(messages) for topic, messages in found.items()} == {DEPTH: 3}
    assert f"no camera_info of {IMAGE}" in capsys.readouterr().err


def test_intrinsics_of_the_user_replace_camera_info(one_engine, tmp_path):
    camera, out = tmp_path / "camera.json", tmp_path / "out.mcap"
    camera.write_text(json.dumps({"fx": 90, "fy": 90, "cx": 60, "cy": 40}))
    bag = record(tmp_path / "drive.mcap")
    for options in (["--intrinsics", "90", "90", "60", "40"], ["--camera", str(camera)]):
        assert main(["predict", str(bag), "--out", str(out), "--no-points", *options]) == 0
        info = read_bag(out)[INFO][0][1]
        assert info.k[0] == pytest.approx(90 * info.width / SIZE[1])


def test_all_other_messages_are_copied_unchanged(one_engine, tmp_path):
    bag, out = record(tmp_path / "drive.mcap", others=True), tmp_path / "out"
    assert main(["predict", str(bag), "--out", str(out), "--copy", "--depth-encoding", "16UC1"]) == 0
    before, after = read_bag(bag), read_bag(out)
    assert set(after) == set(before) | {DEPTH, INFO, POINTS}
    for topic, messages in before.items():
        assert [(time, raw) for time, _, raw in after[topic]] == [(time, raw) for time, _, raw in messages]
    assert read_image(after[DEPTH][0][2]).pixels.dtype == np.uint16
    with AnyReader([out]) as reader:
        qos = {connection.topic: connection.ext.offered_qos_profiles for connection in reader.connections}
    assert [profile.durability.name for profile in qos["/tf_static"]] == ["TRANSIENT_LOCAL"]


def test_message_types_of_the_user_are_copied_with_their_definition(one_engine, tmp_path, capsys):
    STORES[False].register(get_types_from_msg("float64 metres", "robot_msgs/msg/Level"))
    bag, out = tmp_path / "drive.mcap", tmp_path / "out.mcap"
    with BagWriter(bag) as writer:
        writer.image(IMAGE, START, FRAMES[0])
        writer.image(DEPTH, START, FRAMES[0])
        writer.write("/level", writer.make("robot_msgs/Level", metres=1.5), START)
    assert main(["predict", str(bag), "--out", str(out), "--copy"]) == 0
    found = read_bag(out)
    assert found["/level"][0][1].metres == 1.5
    assert len(found[DEPTH]) == 1
    assert f"{DEPTH} of the recording is not copied" in capsys.readouterr().err


def test_a_type_without_recorded_hash_is_written_and_one_without_definition_is_not(tmp_path):
    """Recordings of ROS 2 Humble have no hashes."""
    with RecordingWriter(tmp_path / "out.mcap") as writer:
        assert writer.add(Topic("/level", "robot_msgs/msg/Level", 1, "float64 metres"))
        assert not writer.add(Topic("/other", "robot_msgs/msg/Other", 1))
        writer.write(
            "/level", START, bytes(STORES[False].serialize_cdr(SimpleNamespace(metres=2.5), "robot_msgs/msg/Level"))
        )
    assert read_bag(tmp_path / "out.mcap")["/level"][0][1].metres == 2.5


def test_images_that_cannot_be_decoded_are_counted_and_the_rest_is_written(one_engine, tmp_path, capsys):
    bag, out = tmp_path / "drive.mcap", tmp_path / "out.mcap"
    with BagWriter(bag) as writer:
        for number, stamp in enumerate(stamps()):
            if number == 1:
                writer.compressed_bytes("/image_rect/compressed", stamp, b"\xff\xd8\xff\xe0 not a picture")
            else:
                writer.compressed("/image_rect/compressed", stamp, FRAMES[number], suffix=".png")
    assert main(["predict", str(bag), "--out", str(out)]) == 0
    assert [stamp_of(message) for _, message, _ in read_bag(out)[DEPTH]] == [stamps()[0], stamps()[2]]
    assert "1 of 3 images have no depth (encoding 1); image 2: " in capsys.readouterr().err


def test_depth_before_a_failure_of_the_engine_is_kept(monkeypatch, tmp_path, capsys):
    engine = _load(camera_size=SIZE, backend="auto", precision="auto", full_resolution=False)
    requests = []

    class Failing:
        framing, takes_network_size, follows_camera = engine.framing, engine.takes_network_size, engine.follows_camera

        def infer(self, request):
            requests.append(request)
            if len(requests) == 3:
                raise EngineError("the GPU is gone")
            return engine.infer(request)

    monkeypatch.setattr(bag_predictions, "DepthEngine", SimpleNamespace(load=lambda *_, **__: Failing()))
    bag, out = record(tmp_path / "drive.mcap"), tmp_path / "out.mcap"
    assert main(["predict", str(bag), "--out", str(out)]) == 1
    assert [stamp_of(message) for _, message, _ in read_bag(out)[DEPTH]] == stamps()[:2]
    printed = capsys.readouterr()
    assert f"wrote 2 depth images and 2 clouds to {out}" in printed.out
    assert "error: stopped at image 3 of 3: the GPU is gone" in printed.err


def test_the_readable_part_of_a_cut_recording_is_used_and_said(one_engine, tmp_path, capsys):
    bag, out = record(tmp_path / "drive.mcap"), tmp_path / "out.mcap"
    whole = bag.read_bytes()
    bag.write_bytes(whole[: len(whole) // 2])
    assert main(["predict", str(bag), "--out", str(out)]) == 0
    assert 1 <= len(read_bag(out)[DEPTH]) < 3
    assert "note: drive.mcap" in capsys.readouterr().err


def test_a_camera_with_camera_info_comes_before_one_without(one_engine, tmp_path, capsys):
    bag, out = tmp_path / "drive.mcap", tmp_path / "out.mcap"
    with BagWriter(bag) as writer:
        for stamp, pixels in zip(stamps(), FRAMES, strict=True):
            writer.image("/a/image_raw", stamp, pixels)
            writer.image("/b/depth/image_rect_raw", stamp, pixels[..., 0].astype(np.uint16), "16UC1")
            writer.image("/c/image_rect", stamp, pixels, frame="c")
            writer.camera_info("/c/camera_info", stamp, K, SIZE, frame="c")
    assert main(["predict", str(bag), "--out", str(out)]) == 0
    assert read_bag(out)[DEPTH][0][1].header.frame_id == "c"
    assert "several cameras, /c/image_rect is used; --image names another: /a/image_raw" in capsys.readouterr().err
    options = ["--image", "/a/image_raw", "--camera-info", "/c/camera_info", "--overwrite"]
    assert main(["predict", str(bag), "--out", str(out), *options]) == 0
    assert len(read_bag(out)[POINTS]) == 3


@pytest.mark.parametrize(("options", "rectified"), [([], True), (["--rectify", "off"], False)])
def test_images_of_a_lens_with_distortion_are_rectified(one_engine, tmp_path, capsys, options, rectified):
    bag, out = tmp_path / "drive.mcap", tmp_path / "out.mcap"
    p = np.array([[30.0, 0, 63.5, 0], [0, 30.0, 47.5, 0], [0, 0, 1, 0]])
    with BagWriter(bag) as writer:
        writer.image("/camera/image_raw", START, FRAMES[0])
        writer.camera_info("/camera/camera_info", START, K, SIZE, [-0.2, 0.03, 0, 0, 0], p=p)
    assert main(["predict", str(bag), "--out", str(out), *options]) == 0
    assert ("images are rectified here (plumb_bob; P of camera_info; " in capsys.readouterr().err) == rectified
    found = read_bag(out)
    ((_, info, _),), ((_, depth, _),), ((_, cloud, _),) = found[INFO], found[DEPTH], found[POINTS]
    assert np.array_equal(info.k, info.p[[0, 1, 2, 4, 5, 6, 8, 9, 10]]) == rectified
    unknown = np.isnan(depth.data.view(np.float32))
    assert unknown[0] == rectified
    assert np.array_equal(np.isnan(cloud.data.view(np.float32)[::4]), unknown)


def test_jitter_of_consecutive_frames_is_removed(one_engine, tmp_path):
    still = cv2.resize(FRAMES[0][:12, :16], SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    frames = [still, np.clip(0.9 * still, 0, 255).astype(np.uint8), still]
    bag, depth = record(tmp_path / "drive.mcap", frames=frames), {}
    for mode in ("off", "scale"):
        out = tmp_path / f"{mode}.mcap"
        assert main(["predict", str(bag), "--out", str(out), "--temporal", mode, "--no-points"]) == 0
        depth[mode] = [message.data.view(np.float32) for _, message, _ in read_bag(out)[DEPTH]]
    np.testing.assert_array_equal(depth["scale"][0], depth["off"][0])
    change = {mode: np.median(np.abs(np.log(second / first))) for mode, (first, second, _) in depth.items()}
    assert 0 < change["scale"] < change["off"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--image", "/rear"], "drive.mcap: no topic /rear in it; it has /camera/image_rect"),
        (["--image", "/camera/camera_info"], "/camera/camera_info: has the type sensor_msgs/CameraInfo"),
        (["--format", "png"], "--format is for pictures and videos"),
        (["--storage", "sqlite3"], "a file of sqlite3 ends in .db3"),
        (["--out", "taken.mcap"], "taken.mcap: exists, and fadepth did not write it; .* add --overwrite"),
        (["--out", "taken.mcap", "--overwrite"], "taken.mcap: exists and is not a recording"),
        (["--out", "drive.mcap", "--overwrite"], "the result would replace the recording"),
        (["--out", "out.bag"], "recordings are written for ROS 2"),
        (["--out", "missing/out.mcap"], "missing: no such folder"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_no_file(tmp_path, monkeypatch, capsys, options, text):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "drive.mcap")
    (tmp_path / "taken.mcap").mkdir()
    (tmp_path / "taken.mcap" / "work.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["predict", "drive.mcap", "--out", "out.mcap", *options]) == 1
    error = capsys.readouterr().err
    assert re.search(text, error), error
    assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_options_for_recordings_are_refused_for_pictures(tmp_path, capsys):
    assert main(["predict", str(tmp_path), "--out", str(tmp_path / "out"), "--copy"]) == 1
    assert "--copy is for recordings" in capsys.readouterr().err
