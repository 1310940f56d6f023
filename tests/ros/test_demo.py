"""The demo: three processes over real topics, pictures at the end, and no process left behind."""

from __future__ import annotations

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

from fadepth_ros.clip_publisher import ClipError, read_camera_info, read_frames
from fadepth_ros.viewer import draw_points

ROOT = Path(__file__).resolve().parents[2]


def start_demo(directory, *arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"PYTHONPATH": str(ROOT), "ROS_DOMAIN_ID": str(101 + os.getpid() % 100)}
    return subprocess.Popen(
        [sys.executable, "-m", "fadepth_ros.demo", *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def write_clip(directory, frames=80):
    """A short clip with its intrinsics."""
    path = directory / "clip.mp4"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 20.0, (320, 96))
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (12, 40, 3), dtype=np.uint8), (400, 96), interpolation=cv2.INTER_CUBIC)
    for index in range(frames):
        video.write(np.ascontiguousarray(picture[:, index // 2 : index // 2 + 320]))
    video.release()
    values = {"width": 320, "height": 96, "fps": 20, "fx": 280.0, "fy": 280.0, "cx": 160.0, "cy": 48.0}
    path.with_suffix(".json").write_text(json.dumps(values))
    return path


def group_members(pgid):
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _pgid(p) == pgid]


def _pgid(process):
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[2])
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_headless_demo_leaves_a_video_and_a_sheet(tmp_path):
    demo = start_demo(tmp_path, "--clip", str(write_clip(tmp_path)))
    out, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, out
    assert "frames/s" in out
    assert "latency" in out
    assert "dropped" in out
    video = cv2.VideoCapture(str(tmp_path / "demo_output" / "depth.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) >= 10
    sheet = cv2.imread(str(tmp_path / "demo_output" / "depth.png"))
    assert sheet.std() > 20
    assert group_members(demo.pid) == []


@pytest.mark.parametrize("tell", [os.killpg, os.kill], ids=["all", "demo"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_every_process_ends_cleanly(tmp_path, tell, number):
    """A terminal tells all processes at once, a supervisor only the first."""
    demo = start_demo(tmp_path)
    lines = (line for line in demo.stdout if "openvino" in line and "frames/s" in line)
    assert next(lines)
    assert next(lines), "a second later, so that there are pictures"
    tell(demo.pid, number)
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0, out
    assert "Traceback" not in out, out
    time.sleep(0.2)
    assert group_members(demo.pid) == []
    assert (tmp_path / "demo_output" / "depth.png").is_file(), "what was seen so far is kept"


def test_told_to_end_at_once_nothing_is_left(tmp_path):
    demo = start_demo(tmp_path)
    time.sleep(0.3)  # in the middle of everybody's imports
    os.killpg(demo.pid, signal.SIGINT)
    out, _ = demo.communicate(timeout=60)
    assert "rclpy" not in out, out
    time.sleep(0.2)
    assert group_members(demo.pid) == []


def test_a_clip_of_another_size_than_its_json_is_named(tmp_path):
    path = write_clip(tmp_path)
    values = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(values | {"width": 640}))
    demo = start_demo(tmp_path, "--clip", str(path))
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "its frames are 320x96, its JSON says 640x96" in out


def test_a_clip_that_cannot_be_played_is_named(tmp_path):
    demo = start_demo(tmp_path, "--clip", str(tmp_path / "missing.mp4"))
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "missing.json: no such file; it holds the clip's width, height, fps, fx, fy, cx, cy" in out
    assert "the camera ended with status 1" in out
    assert group_members(demo.pid) == []


def test_clip_errors_name_the_file(tmp_path):
    path = write_clip(tmp_path)
    path.write_bytes(b"no video")
    with pytest.raises(ClipError, match=r"clip\.mp4: not a video that OpenCV can decode"):
        next(read_frames(path))
    path.with_suffix(".json").write_text('{"fx": 1}')
    with pytest.raises(ClipError, match=r"clip\.json: KeyError 'fy'"):
        read_camera_info(path)


def test_the_bundled_clip_matches_its_description():
    from fadepth_ros.clip_publisher import DEMO_CLIP

    info, fps = read_camera_info(DEMO_CLIP)
    frames = sum(1 for frame in read_frames(DEMO_CLIP) if frame.shape == (info.height, info.width, 3))
    assert (frames, fps) == (370, 25.0)


def test_drawn_points_keep_left_left_and_near_over_far():
    near = np.array([[-2.0, 0.0, 10.0]], np.float32).repeat(50, 0)
    far = np.array([[4.0, 0.0, 20.0]], np.float32).repeat(50, 0)
    picture = draw_points(
        np.vstack([near, far]), np.vstack([np.full((50, 3), (255, 0, 0)), np.full((50, 3), (0, 0, 255))]), (200, 300)
    )
    red, blue = (np.argwhere((picture == color).all(-1)) for color in ((255, 0, 0), (0, 0, 255)))
    assert red[:, 1].max() < 150 < blue[:, 1].min()
    assert red[:, 0].mean() > blue[:, 0].mean(), "from above, nearer is lower in the picture"
    assert (draw_points(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), (20, 30)) == 24).all()
