"""Recordings of every format are read, and of damaged ones what is left."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install 'fadepth_ros[adapt]'")

from bags import SECOND, START, BagWriter
from fadepth_core.common.errors import DataError
from fadepth_core.data.bag import Recording, is_bag, stamp_of

COUNT = 200
SIZE = (64, 96)


def write(path, compression="", count=COUNT):
    with BagWriter(path, compression) as bag:
        for number in range(count):
            stamp = START + number * SECOND // 10
            pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)  # not compressible
            bag.image("/image", stamp, pixels, frame=f"frame{number}")
            bag.twist_stamped("/speed", stamp, float(number))
    return path


def speeds(recording):
    return [recording.decode(message).twist.linear.x for message in recording.messages(["/speed"])]


@pytest.mark.parametrize(
    ("name", "compression"),
    [
        ("a.mcap", ""),
        ("a.mcap", "zstd"),
        ("a.db3", ""),
        ("a.bag", ""),
        ("a.bag", "bz2"),
        ("a.bag", "lz4"),
        ("folder", ""),
        ("folder", "message"),
    ],
)
def test_every_format_has_the_same_messages(tmp_path, name, compression):
    path = write(tmp_path / name, compression, 12)
    assert is_bag(path)
    recording = Recording(path)
    assert {topic.name: (topic.type, topic.messages) for topic in recording.topics.values()} == {
        "/image": ("sensor_msgs/msg/Image", 12),
        "/speed": ("geometry_msgs/msg/TwistStamped", 12),
    }
    assert speeds(recording) == list(range(12))
    images = list(recording.messages(["/image"]))
    assert [stamp_of(message.raw) for message in images] == [START + i * SECOND // 10 for i in range(12)]
    decoded = recording.decode(images[7])
    assert (decoded.header.frame_id, decoded.width, decoded.encoding) == ("frame7", 96, "rgb8")
    assert recording.notes == []


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


@pytest.mark.parametrize(
    ("name", "compression"), [("a.mcap", ""), ("a.mcap", "zstd"), ("a.db3", ""), ("a.bag", ""), ("a.bag", "lz4")]
)
def test_of_a_cut_recording_the_first_part_is_read(tmp_path, name, compression):
    recording = Recording(cut(write(tmp_path / name, compression), 0.6))
    found = speeds(recording)
    assert found == list(range(len(found)))
    assert 0.3 * COUNT < len(found) < 0.65 * COUNT
    assert any(re.search("read up to there|the messages up to there are used", note) for note in recording.notes)
    assert speeds(recording) == found
    assert len(set(recording.notes)) == len(recording.notes)


def test_a_recording_of_ros_1_that_was_not_finished_is_read(tmp_path):
    path = cut(write(tmp_path / "a.bag", count=20), 0.9).rename(tmp_path / "a.bag.active")
    assert is_bag(path)
    found = speeds(Recording(path))
    assert found == list(range(len(found)))
    assert len(found) > 10


def test_the_old_name_of_tf_is_known(tmp_path):
    with BagWriter(tmp_path / "a.bag") as bag:
        bag.transform(START, np.diag([1.0, 1, 1, 1]), "odom", "base_link", kind="tf/tfMessage")
    recording = Recording(tmp_path / "a.bag")
    (message,) = recording.messages(["/tf"])
    assert recording.topics["/tf"].type == "tf2_msgs/msg/TFMessage"
    (transform,) = recording.decode(message).transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ("odom", "base_link")
    assert transform.header.stamp.sec * SECOND == START


def test_a_folder_without_metadata_is_read(tmp_path):
    folder = write(tmp_path / "drive", count=5)
    (folder / "metadata.yaml").unlink()
    recording = Recording(folder)
    assert speeds(recording) == list(range(5))
    assert recording.notes == [
        "no metadata.yaml: the recording was not finished; the 1 files in the folder are read without it"
    ]


def test_damage_in_the_middle_ends_the_reading(tmp_path):
    path = write(tmp_path / "a.mcap", "zstd")
    data = bytearray(path.read_bytes())
    start_of_a_chunk = data.index(b"\x28\xb5\x2f\xfd", len(data) // 2)
    data[start_of_a_chunk : start_of_a_chunk + 4] = bytes(4)
    path.write_bytes(data)
    recording = Recording(path)
    found = speeds(recording)
    assert found == list(range(len(found)))
    assert 0.2 * COUNT < len(found) < COUNT
    assert re.fullmatch(r"a\.mcap: damaged after \d+ of 200 messages, read up to there: .*", recording.notes[0])


def _empty(path):
    with BagWriter(path) as bag:
        bag.write("/speed", bag.make("std_msgs/Header", **vars(bag.header(START, ""))), START)


def _replace(old, new):
    def change(path):
        write(path, count=3)
        target = path / "metadata.yaml" if path.is_dir() else path
        data = target.read_bytes()
        assert old in data
        target.write_bytes(data.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("none.mcap", lambda path: None, "no such file or folder"),
        ("a.txt", lambda path: path.write_text("x"), "not a recording: expected a folder of rosbag2"),
        ("folder", lambda path: path.mkdir(), "not a recording: expected a folder of rosbag2"),
        ("a.mcap", lambda path: path.write_bytes(b""), "the file is empty"),
        ("a.mcap", lambda path: path.write_bytes(b"GIF89a" * 99), "not a recording .*another format"),
        ("a.mcap", _replace(b"\x89MCAP0", b"\x89MCAP9"), "version 'MCAP9' of the format is not supported"),
        ("a.bag", _replace(b"#ROSBAG V2.0", b"#ROSBAG V1.2"), "version 'ROSBAG V1.2' of the format is not supported"),
        ("a.db3", lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(99)), "a.db3: no message could be read"),
        ("a.mcap", lambda path: BagWriter(path).__enter__().__exit__(), "no messages in it"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recording_is_refused_in_one_line(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        Recording(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newer_folder_is_read_by_its_files(tmp_path):
    _replace(b"version: 9", b"version: 99")(tmp_path / "drive")
    recording = Recording(tmp_path / "drive")
    assert speeds(recording) == [0, 1, 2]
    assert "Rosbag2 version 99 not supported" in recording.notes[0]


def test_an_unknown_compression_is_named(tmp_path):
    path = write(tmp_path / "a.mcap", "zstd")
    path.write_bytes(path.read_bytes().replace(b"\x04\0\0\0zstd", b"\x04\0\0\0brot"))
    recording = Recording(path)
    assert speeds(recording) == []
    assert "Unsupported chunk compression 'brot'" in recording.notes[0]


def test_the_last_file_of_a_split_recording_may_be_cut(tmp_path):
    folder = write(tmp_path / "drive")
    shutil.copy(folder / "drive.mcap", folder / "drive_0.mcap")
    cut(folder / "drive.mcap", 0.5).rename(folder / "drive_1.mcap")
    (folder / "metadata.yaml").unlink()
    found = speeds(Recording(folder))
    assert found[:COUNT] == list(range(COUNT))
    assert found[COUNT:] == list(range(len(found) - COUNT))
    assert len(found) > 1.3 * COUNT
