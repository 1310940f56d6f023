"""Without subscribers of its outputs the node is not subscribed to the camera."""

from __future__ import annotations

import itertools
import logging
import time

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from cards import PATIENCE, image_message, info_message, noise
from fadepth_ros.node import DepthNode
from fadepth_ros.statistics import Statistics
from fakes import SECOND, EngineLoader


class Robot:
    """A node in this process, and its camera.

    Attributes:
        loader: of the node's engines.
        depth: stamps of the depth images that `listener` got.
        status, statuses: the last one in /diagnostics, and how many there were: one a second.
    """

    def __init__(self, namespace, **parameters):
        self.loader = EngineLoader()
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = DepthNode(self.loader, namespace=namespace, parameter_overrides=overrides)
        self._camera = rclpy.create_node("camera", namespace=namespace)
        self._executor = SingleThreadedExecutor()
        for node in (self.node, self._camera):
            self._executor.add_node(node)
        self.image = self._camera.create_publisher(Image, "image", qos_profile_sensor_data)
        self.info = self._camera.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._stamps = itertools.count(1)
        self.depth, self.status, self.statuses, self._listener = [], None, 0, None
        self._camera.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.node.autostart()

    def _on_diagnostics(self, message):
        for status in message.status:
            if status.name.startswith(self.node.get_fully_qualified_name()):
                self.status, self.statuses = status, self.statuses + 1

    def listen(self):
        self._listener = self._camera.create_subscription(
            Image, "depth/image", lambda message: self.depth.append(message.header.stamp.sec), 2
        )

    def leave(self):
        self._camera.destroy_subscription(self._listener)

    def publish(self):
        """An image and its camera_info."""
        stamp = next(self._stamps)
        self.info.publish(info_message())
        self.image.publish(image_message(noise(), "rgb8", stamp * SECOND))
        return stamp

    def wait_for(self, condition, step=lambda: None):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            step()
            self._executor.spin_once(0.02)

    def wait_until_idle(self):
        self.wait_for(lambda: not self.image.get_subscription_count() and not self.info.get_subscription_count())

    def close(self):
        self._executor.shutdown()
        self.node.destroy_node()
        self._camera.destroy_node()


@pytest.fixture
def start(request, monkeypatch):
    monkeypatch.setattr("fadepth_ros.camera_topics.LINGER", 0.0)
    robots = []

    def make(**parameters):
        robots.append(Robot(f"/{request.node.originalname}{len(robots)}", **parameters))
        return robots[-1]

    yield make
    for robot in robots:
        robot.close()


@pytest.mark.parametrize("events", [True, False])
def test_the_camera_is_subscribed_while_depth_has_a_subscriber(start, monkeypatch, capfd, events):
    """Also if the middleware or rclpy (Humble) does not report subscribers."""
    if not events:
        monkeypatch.setattr("fadepth_ros.camera_topics.PublisherEventCallbacks", lambda: None)
    robot = start()
    for _ in range(1 + events):
        robot.wait_for(lambda: not robot.image.get_subscription_count(), robot.publish)
        robot.depth.clear()
        robot.listen()
        robot.wait_for(lambda: robot.depth, robot.publish)
        robot.leave()
    log = capfd.readouterr().err
    assert "offering incompatible QoS" not in log
    assert log.count("requesting incompatible QoS") <= 1, "the camera warns at most once, while it is not known"


def test_diagnostics_say_that_there_are_no_subscribers(start):
    robot = start()
    robot.info.publish(info_message())
    robot.wait_until_idle()
    robot.wait_for(lambda: robot.status and "no subscribers" in robot.status.message)
    assert robot.status.level == DiagnosticStatus.OK
    robot.listen()
    robot.wait_for(lambda: "per second" in robot.status.message, robot.publish)


def test_a_camera_is_not_silent_when_it_is_needed_again():
    statistics = Statistics(logging.getLogger("test"))
    assert statistics.report().silent
    statistics.resume()
    assert not statistics.report().silent


def test_the_engine_is_built_for_the_size_in_camera_info_before_there_is_a_subscriber(start):
    robot = start()
    robot.wait_for(lambda: not robot.image.get_subscription_count())
    assert robot.loader.engines == []
    robot.wait_for(lambda: robot.loader.engines, lambda: robot.info.publish(info_message()))
    robot.wait_until_idle()
    robot.listen()
    robot.wait_for(lambda: robot.depth, robot.publish)
    assert len(robot.loader.engines) == 1


def test_the_camera_stays_subscribed_if_the_node_is_not_lazy(start):
    robot = start(lazy=False)
    robot.wait_for(lambda: robot.statuses >= 2)
    assert robot.image.get_subscription_count() == 1
    robot.node.set_parameters([Parameter("lazy", value=True)])
    robot.wait_for(lambda: not robot.image.get_subscription_count())
    robot.node.set_parameters([Parameter("lazy", value=False)])
    robot.wait_for(robot.image.get_subscription_count)


def test_a_camera_without_subscribers_is_idle_beside_one_that_has_them(start):
    """The subscribers of the idle one are noticed although images of the other arrive without a pause."""
    robot = start()
    robot.node.trigger_deactivate()
    robot.node.set_parameters([Parameter("cameras", value=["front", "rear"])])
    robot.node.trigger_activate()
    camera = rclpy.create_node("cameras", namespace=robot.node.get_namespace())
    try:
        images = {name: camera.create_publisher(Image, f"{name}/image", 2) for name in ("front", "rear")}
        stamps = itertools.count(1)
        received = {name: [] for name in images}

        def listen(name):
            camera.create_subscription(Image, f"{name}/depth/image", received[name].append, 2)

        def publish():
            stamp = next(stamps) * SECOND
            for image in images.values():
                image.publish(image_message(noise(), "rgb8", stamp))
            rclpy.spin_once(camera, timeout_sec=0.0)

        listen("front")
        robot.wait_for(lambda: received["front"] and not images["rear"].get_subscription_count(), publish)
        listen("rear")
        robot.wait_for(lambda: received["rear"], publish)
    finally:
        camera.destroy_node()
