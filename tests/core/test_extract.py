"""A recording becomes a clip: pictures, camera, times, poses, speed and depth are those that were recorded."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install 'fadepth_ros[adapt]'")

from bags import OPTICAL, SECOND, START, BagWriter
from fadepth_core.cli import main
from fadepth_core.common.errors import DataError
from fadepth_core.data.bag_topics import NONE, Choice
from fadepth_core.data.images import read_depth, read_rgb
from fadepth_core.data.video import open_clips
from fadepth_core.labels.extract import extract

COUNT, STEP = 12, SECOND // 10
SIZE = (96, 128)
K = np.array([[100.0, 0, 63.5], [0, 100, 47.5], [0, 0, 1]])
MOUNT = np.linalg.inv(OPTICAL)  # from the camera to base_link
MOUNT[:3, 3] = [0.5, 0.1, 1.2]
LIDAR = np.eye(4)
LIDAR[:3, 3] = [0.0, 0.0, 1.8]
WALL = 8.0


def picture(number):
    """A frame that tells its number: a smooth picture whose red brightness is 10 times the number."""
    columns, rows = np.meshgrid(np.linspace(0, 200, SIZE[1]), np.linspace(0, 200, SIZE[0]))
    return np.stack([np.full(SIZE, 10.0 * number), columns, rows], axis=2).astype(np.uint8)


def body(seconds):
    """Pose of base_link: it moves forward and turns left."""
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0, 0, 0.2 * seconds]))[0]
    pose[:3, 3] = [2 * seconds, 0.1 * seconds, 0]
    return pose


def write(
    path,
    motion="odometry",
    compression="",
    stamps=None,
    encoding="rgb8",
    info=True,
    mount=True,
    extra=None,
    topic="/cam/image_raw",
):
    """A recording of one camera; returns the stamps."""
    stamps = [START + number * STEP for number in range(COUNT)] if stamps is None else stamps
    with BagWriter(path, compression) as bag:
        if mount:
            bag.static_transform(MOUNT, "base_link", "camera")
            bag.static_transform(LIDAR, "base_link", "lidar")
        for number, stamp in enumerate(stamps):
            time = START + number * STEP
            seconds = number * STEP / SECOND
            if info is True:
                bag.camera_info("/cam/camera_info", stamp, K, SIZE)
            elif info:
                info(bag, stamp)
            if encoding == "jpeg":
                bag.compressed(f"{topic}/compressed", stamp, picture(number), time=time)
            else:
                rgb = picture(number)
                pixels = {"rgb8": rgb, "bgr8": rgb[..., ::-1], "mono8": rgb[..., 0]}[encoding]
                bag.image(topic, stamp, pixels, encoding, time=time)
            for shift in (0.03, 0.07):  # never at the stamp of a picture
                moment = time + round(shift * SECOND)
                if motion == "odometry":
                    bag.odometry("/odom", moment, body(seconds + shift), speed=2.0)
                elif motion == "tf":
                    bag.transform(moment, body(seconds + shift), "odom", "base_link")
                elif motion == "pose":
                    bag.pose_stamped("/pose", moment, body(seconds + shift))
            if extra:
                extra(bag, number, stamp)
    return np.array(stamps)


def expected_poses(numbers, mount=MOUNT):
    return np.stack([body(number * STEP / SECOND) @ mount for number in numbers])


def poses_of(clip):
    (opened,) = open_clips(clip, (96, 128))
    return opened.poses


def assert_same_motion(found, expected, atol=2e-3):
    """Poses are those expected up to the place of the origin, which is at the first camera."""
    np.testing.assert_allclose(found[:, :3, :3], expected[:, :3, :3], atol=atol)
    np.testing.assert_allclose(found[:, :3, 3] - found[0, :3, 3], expected[:, :3, 3] - expected[0, :3, 3], atol=atol)


@pytest.mark.parametrize("motion", ["odometry", "tf", "pose"])
@pytest.mark.parametrize(
    ("name", "compression", "encoding"),
    [("a.mcap", "zstd", "rgb8"), ("a.db3", "", "jpeg"), ("a.bag", "lz4", "bgr8"), ("folder", "message", "mono8")],
)
def test_pictures_times_and_poses(tmp_path, name, compression, encoding, motion):
    stamps = write(tmp_path / name, motion, compression, encoding=encoding)
    result = extract(tmp_path / name, tmp_path / "clip")
    assert (result.frames, result.seconds) == (COUNT, pytest.approx(1.1))
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "clip" / "stamps.txt", dtype=np.int64), stamps)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "clip" / "times.txt"), (stamps - stamps[0]) / 1e9)
    camera = json.loads((tmp_path / "clip" / "camera.json").read_text())
    assert [camera[key] for key in ("fx", "fy", "cx", "cy", "width", "height")] == [100, 100, 63.5, 47.5, 128, 96]
    for number in (0, COUNT - 1):
        found = read_rgb(tmp_path / "clip" / f"{number:06d}.jpg").astype(int)
        expected = picture(number).astype(int) if encoding != "mono8" else picture(number)[..., :1].astype(int)
        assert np.abs(found - expected).mean() < 4
    # Before the first odometry nothing is known for longer than 50 ms; 30 ms are continued.
    assert result.poses == COUNT
    assert_same_motion(poses_of(tmp_path / "clip"), expected_poses(range(COUNT)))
    if motion == "pose":
        assert any("does not say what its poses are of; 'base_link' is assumed" in note for note in result.notes)
    assert result.speeds == (COUNT if motion == "odometry" else 0)


def test_a_recording_of_pictures_only(tmp_path):
    write(tmp_path / "a.mcap", motion=None, mount=False)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert (result.poses, result.speeds, result.measured) == (0, 0, 0)
    assert [text.partition(":")[0] for text in result.missing] == [
        "no right camera of a stereo pair",
        "no depth camera and no LiDAR",
        "no odometry, pose or /tf of the camera",
        "no speed",
    ]
    (clip,) = open_clips(tmp_path, (96, 128))
    assert clip.poses is None
    assert json.loads((tmp_path / "clip" / "recording.json").read_text())["complete"] is True


def test_lidar_and_its_motion_until_the_picture(tmp_path):
    """A LiDAR that turns with 10 Hz sees a wall 40 ms after each picture; the robot drives at 2 m/s."""
    y, z = np.meshgrid(np.linspace(-3, 3, 80), np.linspace(-2, 2, 60))
    seen = np.stack([np.zeros_like(y), y, z], axis=2).reshape(-1, 3)

    def scan(bag, number, stamp):
        later = body(number * STEP / SECOND + 0.04)
        wall = body(number * STEP / SECOND) @ MOUNT @ np.array([0, 0, WALL, 1])  # in front of the camera at the picture
        normal = (body(number * STEP / SECOND) @ MOUNT)[:3, 2]
        side, up = np.cross([0, 0, 1], normal), np.array([0, 0, 1])
        points = wall[:3] + seen[:, 1:2] * side + seen[:, 2:] * up
        to_lidar = np.linalg.inv(later @ LIDAR)
        bag.cloud("/velodyne_points", stamp + 4 * SECOND // 100, points @ to_lidar[:3, :3].T + to_lidar[:3, 3])

    write(tmp_path / "a.mcap", extra=scan)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert result.measured == COUNT
    depth = read_depth(tmp_path / "clip" / "measured" / "000005.png")
    assert (depth > 0).mean() > 0.2
    np.testing.assert_allclose(depth[depth > 0], WALL, atol=0.01)
    (clip,) = open_clips(tmp_path, (96, 128))
    assert sorted(clip.depths) == list(range(COUNT))
    without = extract(tmp_path / "a.mcap", tmp_path / "other", Choice(odometry=NONE, lidar=NONE))
    assert (without.measured, without.poses) == (0, 0)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "compressedDepth"])
def test_a_depth_camera_beside_the_camera(tmp_path, encoding):
    """It is 0.2 m to the left, has another focal length, and measures every third frame a wall."""
    beside = np.eye(4)
    beside[:3, 3] = [-0.2, 0, 0]
    metres = np.full((48, 64), WALL, np.float32)

    def measure(bag, number, stamp):
        if number == 0:
            bag.static_transform(beside, "camera", "depth_camera")
        if number % 3:
            return
        k = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
        bag.camera_info("/depth/camera_info", stamp, k, metres.shape, frame="depth_camera")
        millimetres = (1000 * metres).astype(np.uint16)
        if encoding == "compressedDepth":
            data = bytes(12) + cv2.imencode(".png", millimetres)[1].tobytes()
            bag.compressed_bytes(
                "/depth/image_raw/compressedDepth", stamp, data, "depth_camera", "16UC1; compressedDepth png"
            )
        else:
            bag.image(
                "/depth/image_raw", stamp, millimetres if encoding == "16UC1" else metres, encoding, "depth_camera"
            )

    write(tmp_path / "a.mcap", extra=measure)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert result.measured == COUNT // 3
    depth = read_depth(tmp_path / "clip" / "measured" / "000003.png")
    assert (depth > 0).mean() > 0.6
    np.testing.assert_allclose(depth[depth > 0], WALL, atol=0.01)


def test_a_stereo_pair(tmp_path):
    def right(bag, number, stamp):
        p = np.hstack([K, [[-100 * 0.12], [0], [0]]])
        bag.camera_info("/right/camera_info", stamp, K, SIZE, p=p, frame="right")
        bag.image("/right/image_raw", stamp, picture(number), frame="right")

    write(tmp_path / "a.mcap", extra=right)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert (result.sources["image"], result.right) == ("/cam/image_raw", COUNT)
    (clip,) = open_clips(tmp_path, (96, 128))
    assert (len(clip.right), clip.baseline) == (COUNT, pytest.approx(0.12))


def test_pictures_are_rectified_and_reduced(tmp_path):
    """A straight line in the world is straight in the clip, and depth and poses are those of the rectified camera."""
    d, turn = [-0.35, 0.12, 0, 0, 0], cv2.Rodrigues(np.array([0, 0.05, 0]))[0]
    p = np.hstack([np.array([[90.0, 0, 60], [0, 90, 46], [0, 0, 1]]), np.zeros((3, 1))])

    def info(bag, stamp):
        bag.camera_info("/cam/camera_info", stamp, K, SIZE, d=d, r=turn, p=p)

    write(tmp_path / "a.mcap", info=info)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip", longest_side=64)
    assert result.sources["camera"] == "/cam/camera_info, rectified here"
    camera = json.loads((tmp_path / "clip" / "camera.json").read_text())
    assert (camera["width"], camera["height"], camera["fx"]) == (64, 48, 45)
    assert camera["cx"] == pytest.approx((60 + 0.5) / 2 - 0.5)
    turned = MOUNT.copy()
    turned[:3, :3] = MOUNT[:3, :3] @ turn.T
    (clip,) = open_clips(tmp_path, (96, 128))
    assert_same_motion(clip.poses, expected_poses(range(COUNT), turned))


def test_every_second_picture(tmp_path):
    write(tmp_path / "a.mcap")
    assert extract(tmp_path / "a.mcap", tmp_path / "clip", every=2).frames == COUNT // 2
    assert_same_motion(poses_of(tmp_path / "clip"), expected_poses(range(0, COUNT, 2)))


def test_speed_alone(tmp_path):
    def speed(bag, number, stamp):
        bag.twist_stamped("/cmd_vel", stamp, 9.0)  # what was asked for, not what was driven
        if number > 5:
            bag.twist_stamped("/wheels", stamp + STEP // 2, 1.0 + number)

    write(tmp_path / "a.mcap", motion=None, extra=speed)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert result.sources["speed"] == "/wheels"
    (clip,) = open_clips(tmp_path, (96, 128))
    np.testing.assert_allclose(clip.speeds[-5:], np.arange(7.5, 12), atol=1e-5)
    assert np.isnan(clip.speeds[:6]).all()


def test_speed_from_gps(tmp_path):
    def fix(bag, number, stamp):
        bag.nav_sat_fix("/fix", stamp, 48.0 + number * 0.3 / 6_378_137 * 180 / np.pi, 11.0)  # 3 m/s

    write(tmp_path / "a.mcap", motion=None, extra=fix)
    extract(tmp_path / "a.mcap", tmp_path / "clip")
    (clip,) = open_clips(tmp_path, (96, 128))
    np.testing.assert_allclose(clip.speeds, 3, atol=0.01)


def test_gaps_in_the_odometry_are_unknown(tmp_path):
    def odometry(bag, number, stamp):
        if not 4 <= number <= 9:
            bag.odometry("/odom", stamp, body(number * STEP / SECOND))

    write(tmp_path / "a.mcap", motion=None, extra=odometry)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert np.isnan(poses_of(tmp_path / "clip")).any((1, 2)).tolist() == [4 <= i <= 9 for i in range(COUNT)]
    assert "the pose of 6 of 12 frames is not known: gaps in /odom of base_link, with the camera by /tf" in result.notes


# ------------------------------------------------------------------------------------------------------------ bad input


def _moved(number, seconds):
    stamps = [START + i * STEP for i in range(COUNT)]
    stamps[number] += seconds * SECOND
    return stamps


def _two_cameras(bag, number, stamp):
    for _ in range(2):
        bag.camera_info("/rear/camera_info", stamp, K, SIZE)
    if number % 2:
        bag.image("/rear/image_raw", stamp, picture(number))


def _info(**options):
    def write_info(bag, stamp):
        bag.camera_info("/cam/camera_info", stamp, **{"k": K, "size": SIZE} | options)

    return write_info


@pytest.mark.parametrize(
    ("options", "frames", "note"),
    [
        ({"stamps": _moved(5, -3600)}, 11, "1 of 12 pictures are left out: their stamps jump back or far ahead"),
        ({"stamps": _moved(5, 3600)}, 11, "1 of 12 pictures are left out: their stamps jump back or far ahead"),
        ({"stamps": _moved(11, 3600)}, 11, "1 of 12 pictures are left out"),
        ({"stamps": [0] * COUNT}, 12, "/cam/image_raw has stamps of zero: the times of recording are used"),
        (
            {"stamps": [i * STEP + SECOND for i in range(COUNT)]},
            12,
            "the stamps of /odom are of another clock than the pictures': they are aligned by the times of recording",
        ),
        (
            {"extra": _two_cameras},
            12,
            "several cameras, /cam/image_raw is used; --image names another: /rear/image_raw",
        ),
        (
            {"info": _info(size=(192, 256), k=np.diag([2, 2, 1]) @ K)},
            12,
            "/cam/camera_info is for 256x192 pixels, .* scaled",
        ),
    ],
)
def test_what_can_be_used_is_used_and_the_rest_is_counted(tmp_path, options, frames, note):
    write(tmp_path / "a.mcap", **options)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert result.frames == frames
    assert any(re.search(note, text) for text in result.notes), result.notes
    poses = poses_of(tmp_path / "clip")
    kept = [i for i in range(COUNT) if frames == COUNT or abs(options["stamps"][i] - START - i * STEP) < SECOND]
    assert_same_motion(poses, expected_poses(kept))


def _same_body(bag, number, stamp):
    bag.odometry("/odom", stamp, body(number * STEP / SECOND), child="gps", speed=2.0)


def test_odometry_of_another_frame_gives_the_speed_only(tmp_path):
    write(tmp_path / "a.mcap", motion=None, extra=_same_body)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert (result.poses, result.speeds) == (0, COUNT)
    assert any("'gps', and /tf and /tf_static do not connect it" in text for text in result.missing)


def test_damaged_pictures_are_counted(tmp_path):
    def damaged(bag, number, stamp):
        data = cv2.imencode(".jpg", picture(number))[1].tobytes()
        bag.compressed_bytes("/front/image/compressed", stamp, data[: 30 if number in (4, 7) else None], "camera")
        bag.camera_info("/front/camera_info", stamp, K, SIZE)
        bag.odometry("/odom", stamp, body(number * STEP / SECOND))

    write(tmp_path / "a.mcap", motion=None, extra=damaged)
    result = extract(tmp_path / "a.mcap", tmp_path / "clip", Choice(image="/front/image/compressed"))
    kept = [i for i in range(COUNT) if i not in (4, 7)]
    assert result.frames == len(kept)
    assert any(text.startswith("2 messages of /front/image/compressed are left out: ") for text in result.notes)
    assert_same_motion(poses_of(tmp_path / "clip"), expected_poses(kept))
    assert len(list((tmp_path / "clip").glob("*.jpg"))) == len(kept)
    assert (tmp_path / "clip" / f"{len(kept) - 1:06d}.jpg").is_file()


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_damaged_pictures_at_the_start_are_counted(tmp_path, transport):
    """A camera that starts may publish empty messages: they do not decide the size."""

    def write_camera(bag, number, stamp):
        topic = "/front/image"
        bag.camera_info("/front/camera_info", stamp, K, SIZE)
        if transport == "compressed":
            data = cv2.imencode(".png", picture(number))[1].tobytes() if number > 1 else b""
            bag.compressed_bytes(f"{topic}/compressed", stamp, data)
        else:
            bag.image(topic, stamp, picture(number)[: None if number > 1 else 0])

    write(tmp_path / "a.mcap", extra=write_camera)
    image = "/front/image" + ("/compressed" if transport == "compressed" else "")
    result = extract(tmp_path / "a.mcap", tmp_path / "clip", Choice(image=image))
    assert result.frames == COUNT - 2
    assert any(text.startswith(f"2 messages of {image} are left out: ") for text in result.notes)


def test_a_cut_recording_gives_a_shorter_clip(tmp_path):
    write(tmp_path / "a.mcap")
    data = (tmp_path / "a.mcap").read_bytes()
    (tmp_path / "a.mcap").write_bytes(data[: len(data) // 2])
    result = extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert 3 <= result.frames < COUNT
    assert any("the messages up to there are used" in text for text in result.notes)
    assert_same_motion(poses_of(tmp_path / "clip"), expected_poses(range(result.frames)))


def _speeds_only(path):
    with BagWriter(path) as bag:
        bag.twist_stamped("/speed", START, 1.0)


@pytest.mark.parametrize(
    ("make", "choice", "message"),
    [
        (_speeds_only, {}, r"no pictures of a camera in it; it has /speed \(geometry_msgs/TwistStamped\)"),
        (lambda p: write(p, info=False), {}, "/cam/image_raw: no camera_info, .* name the topic with --camera-info"),
        (lambda p: write(p, info=_info(size=(100, 128))), {}, "for 128x100 pixels, but /cam/image_raw has 128x96"),
        (lambda p: write(p, info=_info(k=0 * K)), {}, "/cam/camera_info: K is zero: the camera is not calibrated"),
        (lambda p: write(p, info=_info(model="omni", d=[1.0])), {}, "distortion model 'omni' is not supported"),
        (lambda p: write(p, stamps=[START] * COUNT), {}, "1 pictures of /cam/image_raw, need at least 3"),
        (write, {"image": "/none"}, "no topic /none in it; it has /tf_static"),
        (write, {"image": "/odom"}, "/odom: has the type nav_msgs/Odometry, expected sensor_msgs/Image or"),
        (write, {"odometry": "/cam/image_raw"}, "expected nav_msgs/Odometry or geometry_msgs/PoseStamped"),
        (write, {"right": "/cam/image_raw"}, r"P\[3\] = 0, so it is not the right camera"),
        (write, {"depth": "/cam/image_raw"}, "/cam/image_raw: not depth images"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, make, choice, message):
    make(tmp_path / "a.mcap")
    with pytest.raises(DataError, match=message) as caught:
        extract(tmp_path / "a.mcap", tmp_path / "clip", Choice(**choice))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "clip" / "camera.json").exists()


def test_intrinsics_may_come_from_a_file(tmp_path):
    write(tmp_path / "a.mcap", info=False)
    (tmp_path / "k.json").write_text(json.dumps({"fx": 90, "fy": 91, "cx": 60, "cy": 44}))
    extract(tmp_path / "a.mcap", tmp_path / "clip", Choice(camera_info=str(tmp_path / "k.json")))
    assert json.loads((tmp_path / "clip" / "camera.json").read_text())["fy"] == 91


def test_a_full_disk_is_one_line_that_says_where(tmp_path, monkeypatch, capsys):
    write(tmp_path / "a.mcap")

    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write() does, without a name

    monkeypatch.setattr(Path, "write_bytes", full)
    out = tmp_path / "clip"
    for command in ("extract", "adapt"):
        result = out if command == "extract" else tmp_path / "robot.safetensors"
        assert main([command, str(tmp_path / "a.mcap"), "--out", str(result)]) == 1
        where = out if command == "extract" else tmp_path / "robot_adaptation"
        assert capsys.readouterr().err.endswith(f"No space left on device: '{where}'\n")


def test_only_own_folders_are_replaced(tmp_path, monkeypatch):
    write(tmp_path / "a.mcap")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "000000.jpg").write_bytes(b"holiday")
    with pytest.raises(DataError, match="has files that fadepth extract did not write"):
        extract(tmp_path / "a.mcap", mine, overwrite=True)
    assert (mine / "000000.jpg").read_bytes() == b"holiday"
    extract(tmp_path / "a.mcap", tmp_path / "clip")
    with pytest.raises(DataError, match="has a clip already; --overwrite replaces it"):
        extract(tmp_path / "a.mcap", tmp_path / "clip")
    with pytest.raises(DataError, match="no such file or folder"):
        extract(tmp_path / "none.mcap", tmp_path / "clip", overwrite=True)
    assert len(list((tmp_path / "clip").glob("*.jpg"))) == COUNT
    extract(tmp_path / "a.mcap", tmp_path / "clip", every=3, overwrite=True)
    assert len(list((tmp_path / "clip").glob("*.jpg"))) == COUNT // 3
    shutil.rmtree(tmp_path / "clip")

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savetxt", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "a.mcap", tmp_path / "clip")
    assert extract(tmp_path / "a.mcap", tmp_path / "clip", every=2).frames == COUNT // 2
    assert len(list((tmp_path / "clip").glob("*.jpg"))) == COUNT // 2
