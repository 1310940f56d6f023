"""The service `~/save`."""

from __future__ import annotations

import itertools
import time

import cv2
import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_srvs.srv import Trigger

from cards import PATIENCE, image_message, info_message, noise
from fadepth_core.messages.cdr import Stamp
from fadepth_core.messages.outgoing import CloudWriter
from fadepth_ros.messages import read_cloud
from fadepth_ros.node import DepthNode
from fakes import SECOND, EngineLoader


class Robot:
    """A node in this process whose cameras publish without a pause, and a client of its service."""

    def __init__(self, namespace, folder, cameras=("",)):
        overrides = {"save_folder": str(folder), "cameras": list(cameras), "points.max_rate": 0.001}
        parameters = [Parameter(name, value=value) for name, value in overrides.items()]
        self.node = DepthNode(EngineLoader(), namespace=namespace, parameter_overrides=parameters)
        self._camera = rclpy.create_node("camera", namespace=namespace)
        self._executor = SingleThreadedExecutor()
        for node in (self.node, self._camera):
            self._executor.add_node(node)
        prefixes = [f"{name}/" if name else "" for name in cameras]
        self.images = [self._camera.create_publisher(Image, f"{prefix}image", 5) for prefix in prefixes]
        self._infos = [self._camera.create_publisher(CameraInfo, f"{prefix}camera_info", 5) for prefix in prefixes]
        self._client = self._camera.create_client(Trigger, "depth/save")
        self._stamps = itertools.count(SECOND)
        self.pixels = noise()

    def step(self, with_info=True, count=None):
        stamp = next(self._stamps)
        for image, info in zip(self.images[:count], self._infos, strict=False):
            if with_info:
                info.publish(info_message())
            image.publish(image_message(self.pixels, "rgb8", stamp))
        self._executor.spin_once(0.01)

    def wait_for(self, condition, **step):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            self.step(**step)

    def save(self, **step):
        """(success, message) of the service."""
        self.wait_for(self._client.service_is_ready)
        future = self._client.call_async(Trigger.Request())
        self.wait_for(future.done, **step)
        return future.result().success, future.result().message

    def close(self):
        self._executor.shutdown()
        self.node.destroy_node()
        self._camera.destroy_node()


@pytest.fixture
def start(request, tmp_path, monkeypatch):
    monkeypatch.setattr("fadepth_ros.camera_topics.LINGER", 0.0)
    robots = []

    def make(folder=tmp_path / "new" / "folder", **options):
        robots.append(Robot(f"/{request.node.originalname}", folder, **options))
        return robots[-1]

    yield make
    for robot in robots:
        robot.close()


def test_picture_depth_and_cloud_of_a_frame_are_saved_without_subscribers(start):
    robot = start()
    robot.node.autostart()
    robot.wait_for(lambda: not robot.images[0].get_subscription_count())
    for _ in range(2):  # the second frame has a cloud, too, although none is due
        success, message = robot.save()
        assert success, message
        png, npy, ply = message.split(", ")
        np.testing.assert_array_equal(cv2.imread(png)[..., ::-1], robot.pixels)
        depth = np.load(npy)
        assert (depth.max(), depth.min()) == (10.0, 1.0)
        with open(ply, "rb") as file:
            assert f"element vertex {depth.size}\n".encode() in file.read(200)
    robot.wait_for(lambda: not robot.images[0].get_subscription_count())


def test_the_frames_of_several_cameras_are_saved_under_their_names(start, tmp_path):
    robot = start(cameras=("front", "side/left"))
    robot.node.autostart()
    success, message = robot.save(with_info=False)
    assert success
    assert message.count("(no cloud: the frame has no usable camera_info)") == 2
    kinds = {path.name.split("_1_")[0] + path.suffix for path in (tmp_path / "new" / "folder").iterdir()}
    assert kinds == {"front.png", "front.npy", "side.left.png", "side.left.npy"}


def test_why_nothing_is_saved_is_answered(start, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    robot = start(folder=tmp_path / "taken", cameras=("front", "rear"))
    assert robot.save() == (False, "the node is not active")
    robot.node.autostart()
    monkeypatch.setattr("fadepth_ros.saving.PATIENCE", 1.0)
    success, message = robot.save(count=1)
    assert not success
    front, rear = message.split("; ")
    assert "front: " in front
    assert "taken" in front
    assert rear == "rear: no depth within 1 s, see /diagnostics"


@pytest.mark.parametrize("fields", ["xyz", "xyzrgb", "xyzi"])
def test_a_cloud_is_read_as_it_was_written(fields):
    random = np.random.default_rng(0)
    points = random.normal(size=(3, 4, 3)).astype(np.float32)
    grey = random.integers(0, 256, (3, 4), dtype=np.uint8)
    rgb = np.stack([grey] * 3, -1)
    raw = CloudWriter("camera", (3, 4), fields).write(Stamp(1, 2), points, rgb)
    arrays = read_cloud(deserialize_message(raw, PointCloud2))
    expected = {"points": points} | {"xyz": {}, "xyzrgb": {"colors": rgb}, "xyzi": {"intensity": grey}}[fields]
    assert set(arrays) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(arrays[name], values, rtol=1e-6)
