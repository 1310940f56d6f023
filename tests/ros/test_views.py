"""What the page and Foxglove show of a scene, without a browser."""

from __future__ import annotations

import io
import json
import socket
import zipfile
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from cards import cloud_message
from fadepth_core.common.pinhole import unproject
from fadepth_core.data.bag_scan import scan
from fadepth_core.runtime.pictures import depth_to_color
from fadepth_ros.foxglove_view import BODY_FRAME, OPTICAL_TO_BODY, FoxgloveView
from fadepth_ros.page_view import PageView, depth_range, draw_legend, fit_view, pack_snapshot, split_by_depth
from fadepth_ros.scene import Scene, cloud_arrays, status_line
from fadepth_ros.viewer import Viewer

LAYOUT = Path(__file__).resolve().parents[2] / "config" / "foxglove.json"
SIZE, FOCAL = (48, 96), 60.0
K = np.array([[FOCAL, 0, 48.0], [0, FOCAL, 24.0], [0, 0, 1]])


def road_and_wall() -> np.ndarray:
    """[h, w, 3], a road below the camera and a wall 20 m ahead; the top rows are unknown."""
    below = np.arange(SIZE[0])[:, None] - K[1, 2]
    depth = np.minimum(np.where(below > 0, 1.5 * FOCAL / np.maximum(below, 1), np.inf), 20.0).repeat(SIZE[1], 1)
    depth[:5] = np.nan
    return unproject(depth, K).astype(np.float32)


def scene(points=None, warning="") -> Scene:
    points = road_and_wall() if points is None else points
    rng = np.random.default_rng(0)
    image = np.full((60, 100, 3), (200, 120, 40), np.uint8)
    colors = rng.integers(0, 256, points.shape, dtype=np.uint8)
    figures = {"frames_per_second": 25.0, "latency_ms": 9.5, "dropped": 2, "engine": "openvino fp32"}
    return Scene(image, points, colors, "front_optical", 12 * 10**9 + 5, figures, warning)


def test_a_cloud_is_read_by_the_names_of_its_fields():
    points = road_and_wall()
    rgb = np.array([10, 20, 30, 0], np.uint8).view(np.float32)[0]  # blue, green, red
    _, colors = cloud_arrays(cloud_message(points, ("x", "y", "z", "rgb"), np.full(SIZE, rgb)))
    assert (colors == (30, 20, 10)).all()
    for fields, columns, grey in (
        (("x", "y", "z"), (), 200),
        (("x", "y", "z", "intensity"), (np.full(SIZE, 77.0),), 77),
    ):
        read, colors = cloud_arrays(cloud_message(points, fields, *columns))
        np.testing.assert_array_equal(read, points)
        assert (colors == grey).all()


def test_an_unorganised_cloud_has_no_depth_image():
    points = road_and_wall()
    flat = scene(points[np.isfinite(points).all(-1)][None])
    assert np.isnan(flat.depth).all()
    assert flat.finite.all()


def test_the_line_of_status_has_the_known_figures():
    assert status_line({}) == "waiting for depth"
    assert status_line({"frames_per_second": 9.0}) == "  9.0 frames/s"
    assert status_line(scene().figures) == " 25.0 frames/s   latency   9.5 ms   dropped 2   openvino fp32"


def test_points_are_as_large_as_their_distance_from_the_next():
    points = road_and_wall()
    parts = split_by_depth(points, np.zeros(points.shape, np.uint8), (2.0, 15.0), 6)
    assert sum(len(own) for own, _, _ in parts) == ((points[..., 2] >= 2) & (points[..., 2] <= 15)).sum()
    for own, colors, size in parts:
        assert own.shape == colors.shape
        if len(own):
            assert 1.0 <= size / (np.median(own[:, 2]) / FOCAL) < 1.5


def test_the_first_range_of_depth_is_that_of_the_scene():
    near, far = depth_range(scene())  # a road from 4 m on, a wall at 20 m
    assert 2.0 < near < 4.0
    assert 20.0 < far < 30.0
    near, far = depth_range(scene(0.1 * road_and_wall()))
    assert near < 0.4
    assert 2.0 < far < 3.0
    assert depth_range(scene(np.full((4, 6, 3), np.nan, np.float32)))


def test_points_without_an_image_of_them_have_a_size():
    points = road_and_wall()
    flat = points[np.isfinite(points).all(-1)][None]
    assert all(size > 0 for _, _, size in split_by_depth(flat, np.zeros(flat.shape, np.uint8), (0.1, 100.0), 4))


@pytest.mark.parametrize("aspect", [0.5, 1.3, 3.0])
def test_the_first_view_has_the_whole_cloud_and_no_more(aspect):
    points = road_and_wall()
    points = points[np.isfinite(points).all(-1)]
    fov = np.radians(50.0)
    position, target = fit_view(points, aspect, fov, np.radians(12.0))
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    ahead = (points - position) @ forward
    x = (points - position) @ right / ahead / (np.tan(fov / 2) * aspect)
    y = (points - position) @ down / ahead / np.tan(fov / 2)
    inside = (ahead > 0) & (np.abs(x) <= 1.05) & (np.abs(y) <= 1.05)
    assert inside.mean() > 0.95
    seen = [np.quantile(np.abs(values), 0.99) for values in (x, y)]
    assert max(seen) > 0.9, "one direction fills the view"
    assert abs(np.quantile(y, (0.01, 0.99)).mean()) < 0.1, "in the middle"


def test_the_legend_has_the_colours_of_depth():
    legend = draw_legend(1.0, 10.0, (40, 101))
    np.testing.assert_array_equal(
        legend[0, [0, 100]], depth_to_color(np.array([[1.0, 10.0]], np.float32), 1.0, 10.0)[0]
    )
    assert (legend[25:] == 255).any(), "numbers below"


def test_the_saved_frame_holds_picture_depth_and_cloud():
    shown = scene()
    archive = zipfile.ZipFile(io.BytesIO(pack_snapshot(shown, "frame")))
    assert sorted(archive.namelist()) == ["frame.npy", "frame.ply", "frame.png"]
    np.testing.assert_array_equal(np.load(io.BytesIO(archive.read("frame.npy"))), shown.depth)


def test_the_page_shows_any_scene():
    pytest.importorskip("viser", reason="viser is not installed")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    view = PageView("localhost", port)
    assert view.url == f"http://localhost:{port}"
    nothing = np.full((4, 6, 3), np.nan, np.float32)
    flat = road_and_wall()[10:].reshape(1, -1, 3)
    for points in (road_and_wall(), nothing, flat, road_and_wall()):
        view.show(scene(points))
    view.close()


def test_only_foxglove_records(tmp_path):
    arguments = ["--ros-args", "-r", "__ns:=/views", "-p", "mode:=files", "-p", f"directory:={tmp_path}"]
    with pytest.raises(ValueError, match=r"record: shown\.mcap: only with mode foxglove"):
        Viewer(cli_args=[*arguments, "-p", "record:=shown.mcap"])


class TestFoxglove:
    """Against foxglove-sdk."""

    @pytest.fixture(autouse=True)
    def _sdk(self):
        pytest.importorskip("foxglove", reason="foxglove-sdk is not installed")

    @staticmethod
    def recorded(tmp_path, *scenes):
        """The messages of each topic in a recording: type and content."""
        view = FoxgloveView("127.0.0.1", 0, tmp_path / "shown.mcap")
        for shown in scenes:
            view.show(shown)
        view.close()
        found = defaultdict(list)
        for message in scan(tmp_path / "shown.mcap", pytest.fail):
            assert message.time == scenes[0].stamp
            found[message.topic].append((message.type, message.data))
        return found

    def test_a_recording_has_what_is_shown(self, tmp_path):
        shown = scene(warning="UNTRAINED")
        found = self.recorded(tmp_path, shown, shown)
        types = {topic: (messages[0][0], len(messages)) for topic, messages in found.items()}
        assert types == {
            "/tf": ("foxglove.FrameTransforms", 2),
            "/image": ("foxglove.CompressedImage", 2),
            "/depth/color": ("foxglove.CompressedImage", 2),
            "/depth/image": ("foxglove.RawImage", 2),
            "/depth/points": ("foxglove.PointCloud", 2),
            "/status": ("fadepth.Status", 2),
            "/log": ("foxglove.Log", 1),  # only when it changes
        }
        content = {topic: messages[0][1] for topic, messages in found.items()}
        assert np.ascontiguousarray(shown.depth).tobytes() in content["/depth/image"]
        start = content["/image"].index(b"\xff\xd8\xff")
        decoded = cv2.imdecode(np.frombuffer(content["/image"][start:], np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_allclose(decoded, shown.image, atol=5)
        assert json.loads(content["/status"]) == dict(shown.figures)
        assert b"UNTRAINED" in content["/log"]
        assert all(b"front_optical" in content[topic] for topic in ("/tf", "/image", "/depth/image", "/depth/points"))

    def test_the_recorded_points_are_those_with_depth_in_their_colours(self, tmp_path):
        shown = scene()
        ((_, content),) = self.recorded(tmp_path, shown)["/depth/points"]
        start = content.index(np.ascontiguousarray(shown.points[shown.finite][0]).tobytes())
        count = int(shown.finite.sum())
        packed = np.frombuffer(content[start : start + 16 * count], np.uint8).reshape(count, 16)
        np.testing.assert_array_equal(packed[:, :12].copy().view(np.float32), shown.points[shown.finite])
        np.testing.assert_array_equal(packed[:, [14, 13, 12]], shown.colors[shown.finite])

    def test_the_cameras_axis_points_forward_in_the_body_frame(self):
        x, y, z, w = OPTICAL_TO_BODY
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        np.testing.assert_allclose(rotation @ [0, 0, 1], [1, 0, 0], atol=1e-9)
        np.testing.assert_allclose(rotation @ [0, 1, 0], [0, 0, -1], atol=1e-9)

    def test_a_file_that_exists_is_not_replaced(self, tmp_path):
        (tmp_path / "own.mcap").write_bytes(b"own")
        with pytest.raises(OSError, match=r"own\.mcap: cannot be recorded: File exists"):
            FoxgloveView("127.0.0.1", 0, tmp_path / "own.mcap")
        assert (tmp_path / "own.mcap").read_bytes() == b"own"

    def test_an_address_that_cannot_be_served_is_named(self, tmp_path):
        view = FoxgloveView("127.0.0.1", 0)
        port = int(view.url.rpartition(":")[2])
        with pytest.raises(OSError, match=rf"cannot serve Foxglove on 127\.0\.0\.1:{port}: .*in use"):
            FoxgloveView("127.0.0.1", port, tmp_path / "new.mcap")
        view.close()

    def test_the_layout_shows_topics_that_exist(self, tmp_path):
        topics = set(self.recorded(tmp_path, scene()))
        layout = json.loads(LAYOUT.read_text())
        panels = layout["configById"]
        images = {panel["imageMode"]["imageTopic"] for name, panel in panels.items() if name.startswith("Image!")}
        (points,) = (panel for name, panel in panels.items() if name.startswith("3D!"))
        plotted = [
            path["value"] for name, panel in panels.items() if name.startswith("Plot!") for path in panel["paths"]
        ]
        assert images | set(points["topics"]) <= topics
        assert points["followTf"] == BODY_FRAME
        assert {value.partition(".")[0] for value in plotted} == {"/status"}
        assert {value.partition(".")[2] for value in plotted} <= set(scene().figures)

        def names(node):
            return {node} if isinstance(node, str) else names(node["first"]) | names(node["second"])

        assert names(layout["layout"]) == set(panels)
