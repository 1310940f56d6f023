"""The demo: three processes over real topics, pictures at the end, and no process left behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.executors import SingleThreadedExecutor
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from cards import PATIENCE, SIZE, cloud_message, image_message, noise
from fadepth_core.common.errors import DataError
from fadepth_core.common.folders import visible
from fadepth_ros.clip_publisher import DEMO_CLIP, ClipError, ClipPublisher, read_camera_info, read_frames
from fadepth_ros.scene import Scene
from fadepth_ros.viewer import FileView, Viewer, draw_points

ROOT = Path(__file__).resolve().parents[2]


class Demo:
    """The demo without a screen in `directory`, in a process group of its own."""

    def __init__(self, directory: Path, *arguments: str):
        environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
        environment |= {"PYTHONPATH": str(ROOT), "ROS_DOMAIN_ID": str(101 + os.getpid() % 100)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fadepth_ros.demo", *arguments],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.video, self.sheet = directory / "demo_output" / "depth.mp4", directory / "demo_output" / "depth.png"

    def wait_for_line(self, *words: str) -> None:
        """Read the output up to a line that contains `words`."""
        read = []
        for line in self._process.stdout:
            read.append(line)
            if all(word in line for word in words):
                return
        raise AssertionError("the demo ended; it printed:\n" + "".join(read))

    def finish(self) -> tuple[int, str]:
        """Wait until it ends; exit status and the rest of the output. No process of the group may be left."""
        output, _ = self._process.communicate(timeout=PATIENCE)
        wait_for(lambda: not group_members(self.pid))
        return self._process.returncode, output


def wait_for(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"no success within {PATIENCE} s"
        time.sleep(0.05)


def group_members(pgid):
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _pgid(p) == pgid]


def _pgid(process):
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[2])
    except (FileNotFoundError, ProcessLookupError):
        return None


def write_clip(directory, frames=20, fps=20):
    """A clip with its intrinsics."""
    path = directory / "clip.mp4"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 20.0, (320, 96))
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (12, 40, 3), dtype=np.uint8), (400, 96), interpolation=cv2.INTER_CUBIC)
    for index in range(frames):
        left = index // 2 % 80
        video.write(np.ascontiguousarray(picture[:, left : left + 320]))
    video.release()
    values = {"width": 320, "height": 96, "fps": fps, "fx": 280.0, "fy": 280.0, "cx": 160.0, "cy": 48.0}
    path.with_suffix(".json").write_text(json.dumps(values))
    return path


def test_the_headless_demo_ends_with_the_clip(tmp_path):
    status, output = Demo(tmp_path, "--clip", str(write_clip(tmp_path))).finish()
    assert status == 0, output


@pytest.mark.parametrize(
    ("send", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["terminal", "supervisor"]
)
def test_a_signal_ends_the_demo_with_a_video_and_a_sheet(tmp_path, send, number):
    """A terminal sends SIGINT to all processes, a supervisor SIGTERM to the first one only."""
    # Ten minutes at 2 frames a second: the signal comes before the clip's end, however slow the machine.
    demo = Demo(tmp_path, "--clip", str(write_clip(tmp_path, frames=1200, fps=2)))
    demo.wait_for_line("Writing demo_output/depth.mp4 and demo_output/depth.png")
    demo.wait_for_line("frames/s", "latency", "dropped", "openvino")
    wait_for(lambda: demo.video.is_file())  # created with the first picture
    send(demo.pid, number)
    status, output = demo.finish()
    assert status == 0, output
    assert "Traceback" not in output, output
    assert cv2.VideoCapture(str(demo.video)).get(cv2.CAP_PROP_FRAME_COUNT) >= 1
    assert cv2.imread(str(demo.sheet)).std() > 20


def test_a_signal_during_imports_ends_the_demo_quietly(tmp_path):
    demo = Demo(tmp_path)
    wait_for(lambda: len(group_members(demo.pid)) > 1)  # the first process has just been started
    os.killpg(demo.pid, signal.SIGINT)
    _, output = demo.finish()
    assert "Traceback" not in output, output


def test_a_clip_of_another_size_than_its_json_is_an_error(tmp_path):
    path = write_clip(tmp_path)
    values = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(values | {"width": 640}))
    status, output = Demo(tmp_path, "--clip", str(path)).finish()
    assert status == 1
    assert "its frames are 320x96, its JSON says 640x96" in output


@pytest.mark.parametrize("clip", ["~/clip.mp4", "clip.mp4", "./clip.mp4"])
def test_the_path_of_a_clip_may_begin_with_the_home_folder(tmp_path, monkeypatch, clip):
    write_clip(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ClipPublisher(cli_args=["--ros-args", "-p", f"clip:={clip}"]).destroy_node()
    with pytest.raises(ClipError, match=r"~nobody_here/clip\.json: no such file"):  # no user of that name
        ClipPublisher(cli_args=["--ros-args", "-p", "clip:=~nobody_here/clip.mp4"])


def test_a_missing_clip_is_an_error(tmp_path):
    status, output = Demo(tmp_path, "--clip", str(tmp_path / "missing.mp4")).finish()
    assert status == 1
    assert "missing.json: no such file; it holds the clip's width, height, fps, fx, fy, cx, cy" in output
    assert "the camera ended with status 1" in output


def test_clip_errors_name_the_file(tmp_path):
    path = write_clip(tmp_path)
    path.write_bytes(b"no video")
    with pytest.raises(ClipError, match=r"clip\.mp4: not a video that OpenCV can read"):
        next(read_frames(path))
    path.with_suffix(".json").write_text('{"fx": 1}')
    with pytest.raises(ClipError, match=r"clip\.json: has no 'height'; needed are"):
        read_camera_info(path)


def test_the_bundled_clip_has_the_size_and_rate_of_its_json():
    info, fps = read_camera_info(DEMO_CLIP)
    frames = sum(1 for frame in read_frames(DEMO_CLIP) if frame.shape == (info.height, info.width, 3))
    assert (frames, fps) == (235, 25.0)


def frames_of(path):
    video = cv2.VideoCapture(str(path))
    return sum(1 for _ in iter(lambda: video.grab(), False))


def scene(height, width):
    rng = np.random.default_rng(0)
    image, colors = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((height, width), (32, 64)))
    points = rng.random((32, 64, 3), np.float32) + 1
    return Scene(image, points, colors, "camera_optical_frame", 10**9, {"frames_per_second": 9.0}, "warning")


@pytest.mark.parametrize(
    "sizes", [[(96, 160), (120, 160), (480, 64)], [(16, 16384), (96, 160)], [(16384, 16)], [(1, 1), (2, 3)]]
)
def test_a_video_holds_frames_of_any_size(tmp_path, sizes):
    view = FileView(tmp_path, 25.0)
    for size in sizes:
        view.show(scene(*size))
    view.close()
    assert frames_of(view.video_path) == len(sizes)
    assert cv2.imread(str(view.sheet_path)).std() > 20


@pytest.mark.parametrize("name", ["depth.mp4", "depth.png"])
def test_the_viewer_replaces_its_own_files_only(tmp_path, name):
    (tmp_path / name).write_bytes(b"own")
    with pytest.raises(DataError, match=f"{name}: exists, and fadepth did not write it"):
        FileView(tmp_path, 25.0)
    assert (tmp_path / name).read_bytes() == b"own"
    (tmp_path / name).unlink()
    for count in (1, 3):
        view = FileView(tmp_path, 25.0)
        for _ in range(count):
            view.show(scene(96, 160))
        view.close()
        assert frames_of(view.video_path) == count
    assert visible(tmp_path) == []


def test_a_sheet_that_cannot_be_written_loses_no_video(tmp_path, capsys):
    view = FileView(tmp_path, 25.0)
    view.show(scene(96, 160))
    view.sheet_path.mkdir()
    view.close()
    assert frames_of(view.video_path) == 1
    assert "depth.png cannot be written" in capsys.readouterr().out


def test_a_message_that_cannot_be_shown_does_not_end_the_viewer(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    arguments = ["--ros-args", "-r", "__ns:=/viewer", "-p", "mode:=files", "-p", f"directory:={tmp_path}"]
    viewer, camera = Viewer(cli_args=arguments), rclpy.create_node("camera", namespace="/viewer")
    kinds = {"image": Image, "depth/points": PointCloud2}
    publishers = {topic: camera.create_publisher(kind, topic, 10) for topic, kind in kinds.items()}
    diagnostics = camera.create_publisher(DiagnosticArray, "/diagnostics", 10)
    executor = SingleThreadedExecutor()
    executor.add_node(viewer)
    wait_for(lambda: all(publisher.get_subscription_count() for publisher in publishers.values()))

    def publish(second, encoding="rgb8", cut=None, size=SIZE):
        cloud = cloud_message(np.full((1, 2, 3), 2.0))
        cloud.header.stamp.sec = second
        for topic, message in (
            ("image", image_message(noise(size), "rgb8", second * 10**9)),
            ("depth/points", cloud),
        ):
            if topic == "image":
                message.encoding = encoding
            publishers[topic].publish(serialize_message(message)[:cut])
        for _ in range(8):
            executor.spin_once(timeout_sec=0.05)

    status = DiagnosticStatus(name="other: depth", values=[KeyValue(key="dropped: x", value="many")])
    diagnostics.publish(DiagnosticArray(status=[status]))
    shown, show = [], FileView.show
    monkeypatch.setattr(FileView, "show", lambda view, scene: (show(view, scene), shown.append(scene)))
    seconds = itertools.count(1)

    def another(count):
        """Whether there are more than `count`, after one more frame: the first may be lost while connections form."""
        publish(next(seconds))
        return len(shown) > count

    wait_for(lambda: another(0))
    publish(900, encoding="no such encoding")
    publish(901, cut=40)
    publish(902, cut=3)
    publish(903, size=(10, 300))
    before = len(shown)
    wait_for(lambda: another(before))
    viewer.close()
    assert frames_of(tmp_path / "depth.mp4") == len(shown)
    assert "cannot be shown" in capsys.readouterr().out
    viewer.destroy_node()
    camera.destroy_node()


def test_recorded_depth_is_shown_beside_compressed_images(tmp_path, monkeypatch):
    """Without a node: there is no `depth/color`, and the stamps are old."""
    options = ["-r", "image:=/camera/image_raw", "-p", "image_transport:=compressed", "-p", "mode:=files"]
    arguments = ["--ros-args", "-r", "__ns:=/played", *options, "-p", f"directory:={tmp_path}"]
    viewer, player = Viewer(cli_args=arguments), rclpy.create_node("player")
    publishers = [
        player.create_publisher(CompressedImage, "/camera/image_raw/compressed", 10),
        player.create_publisher(PointCloud2, "/played/depth/points", 10),
    ]
    executor = SingleThreadedExecutor()
    executor.add_node(viewer)
    shown = []
    monkeypatch.setattr(FileView, "show", lambda view, scene: shown.append(scene))
    points = np.full((3, 4, 3), 1, np.float32)
    points[..., 2] = np.linspace(2, 80, 12).reshape(3, 4)
    points[0, 0, 2] = np.nan
    image = CompressedImage(format="png", data=cv2.imencode(".png", noise(SIZE))[1].tobytes())
    cloud = cloud_message(points)

    def played():
        for publisher, message in zip(publishers, (image, cloud), strict=True):
            publisher.publish(message)
            executor.spin_once(timeout_sec=0.05)
        return shown

    wait_for(played)
    np.testing.assert_array_equal(shown[0].depth, points[..., 2])
    assert (shown[0].points.shape, shown[0].finite.sum()) == ((3, 4, 3), 11)
    assert "latency" not in shown[0].status
    viewer.destroy_node()
    player.destroy_node()


def test_drawn_points_are_not_mirrored_and_near_points_hide_far_ones():
    near = np.array([[-2.0, 0.0, 10.0]], np.float32).repeat(50, 0)
    far = np.array([[4.0, 0.0, 20.0]], np.float32).repeat(50, 0)
    picture = draw_points(
        np.vstack([near, far]), np.vstack([np.full((50, 3), (255, 0, 0)), np.full((50, 3), (0, 0, 255))]), (200, 300)
    )
    red, blue = (np.argwhere((picture == color).all(-1)) for color in ((255, 0, 0), (0, 0, 255)))
    assert red[:, 1].max() < 150 < blue[:, 1].min()
    assert red[:, 0].mean() > blue[:, 0].mean(), "from above, nearer is lower in the picture"
    assert (draw_points(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), (20, 30)) == 24).all()
